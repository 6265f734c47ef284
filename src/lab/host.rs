//! One host: namespaces, engine, daemon.

use super::command::{eventually, output};
use super::engine::{self, EngineRoot};
use super::holder::Holder;
use crate::http::UnixClient;
use anyhow::Context as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// A host of the lab. Dropping it ends its processes; its files stay, see [`super::Lab::stop`].
pub struct Host {
    name: String,
    address: Ipv4Addr,
    port: String,
    dir: PathBuf,
    holder: Holder,
    engine: Option<Child>,
    daemon: Option<Child>,
}

impl Host {
    pub(super) fn new(name: &str, address: Ipv4Addr, port: String, dir: PathBuf, holder: Holder) -> Self {
        Self { name: name.to_owned(), address, port, dir, holder, engine: None, daemon: None }
    }
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Address on the bridge's network.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }
    /// Directory of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
    pub(super) fn port(&self) -> &str {
        &self.port
    }
    pub(super) fn holder(&self) -> &Holder {
        &self.holder
    }
    /// Process 1 of its namespaces, by its pid on the machine.
    pub fn pid(&self) -> u32 {
        self.holder.pid
    }
    /// A command in the host's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.holder.command(program)
    }
    /// Runs a command in the host's namespaces; arguments are split at blanks.
    ///
    /// # Errors
    /// It exits with another code than 0.
    pub async fn run(&self, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("empty command")?;
        output(self.command(program).args(words)).await
    }
    /// The engine's socket, reachable from the machine too.
    pub fn engine_socket(&self) -> PathBuf {
        self.dir.join("engine.sock")
    }
    /// skep's run directory.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }
    /// skep's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }
    /// skep's Docker API socket, reachable from the machine too.
    pub fn skep_socket(&self) -> PathBuf {
        self.run_dir().join("docker.sock")
    }
    /// A `docker` command for the host's engine, run on the machine.
    pub fn engine_cli(&self) -> Command {
        docker(&self.engine_socket())
    }
    /// A `docker` command for the host's skep, run on the machine.
    pub fn docker(&self) -> Command {
        docker(&self.skep_socket())
    }
    /// Runs `docker …` for the host's skep; arguments are split at blanks.
    ///
    /// # Errors
    /// It exits with another code than 0.
    pub async fn docker_run(&self, line: &str) -> anyhow::Result<String> {
        output(self.docker().args(line.split_whitespace())).await
    }

    /// Starts the host's Docker Engine and waits until it answers.
    ///
    /// # Errors
    /// dockerd cannot be started or does not answer; the error ends with the last lines of its log.
    pub async fn start_engine(&mut self, root: &EngineRoot) -> anyhow::Result<()> {
        let mut child = engine::start(&self.holder, &self.dir, &self.engine_socket(), root)?;
        let client = UnixClient::new(self.engine_socket());
        let answers =
            eventually("Docker Engine to answer", Duration::from_secs(30), || async { client.get("/_ping").await?.ok() });
        let up = tokio::select! {
            answers = answers => answers,
            ended = child.wait() => Err(anyhow::anyhow!("it exited with {}", ended?)),
        };
        self.engine = Some(child);
        let log = self.dir.join("engine.log");
        up.with_context(|| format!("Docker Engine of {} does not answer: {}", self.name, tail(&log)))
    }

    /// Stops the host's engine as a service manager does: SIGTERM, after 20 s SIGKILL.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn stop_engine(&mut self) -> anyhow::Result<()> {
        terminate(&mut self.engine).await
    }

    /// Starts `skep daemon` on the host and waits until its socket answers.
    ///
    /// # Errors
    /// It does not answer; the error ends with the last lines of its log.
    pub async fn start_daemon(&mut self, program: &Path, more: &[&str]) -> anyhow::Result<()> {
        let log = self.dir.join("skep.log");
        let out = std::fs::OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = self.command(program);
        command
            .arg("daemon")
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--engine")
            .arg(format!("unix://{}", self.engine_socket().display()))
            .args(more)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        self.daemon = Some(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
        let client = UnixClient::new(self.run_dir().join("admin.sock"));
        let up =
            eventually("skep daemon to answer", Duration::from_secs(15), || async { client.get("/healthz").await.map(drop) })
                .await;
        up.with_context(|| format!("skep daemon of {} does not answer: {}", self.name, tail(&log)))
    }

    /// Stops the daemon; `kill` does it with SIGKILL.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub async fn stop_daemon(&mut self, kill: bool) -> anyhow::Result<()> {
        if kill && let Some(child) = &self.daemon {
            signal_inside(child, "KILL").await?;
        }
        terminate(&mut self.daemon).await
    }

    /// Holds the engine: it accepts connections, and answers nothing until [`Self::resume_engine`].
    ///
    /// # Errors
    /// It cannot be signalled.
    pub async fn hold_engine(&self) -> anyhow::Result<()> {
        match &self.engine {
            Some(engine) => signal_inside(engine, "STOP").await,
            None => Ok(()),
        }
    }

    /// # Errors
    /// It cannot be signalled.
    pub async fn resume_engine(&self) -> anyhow::Result<()> {
        match &self.engine {
            Some(engine) => resume(engine).await,
            None => Ok(()),
        }
    }

    /// Last lines of the daemon's log.
    pub fn log_tail(&self) -> String {
        tail(&self.dir.join("skep.log"))
    }

    /// Ends containers, engine, daemon and every other process of the host.
    pub async fn stop(mut self) {
        // Containers first, then the engine, then the daemon: an engine without its network driver waits for a time-out at
        // each endpoint. The engine removes the containers, so that no cgroup is left, and kills them, without the stop grace.
        if self.engine.is_some() {
            let ids = output(self.engine_cli().args(["ps", "-aq"])).await.unwrap_or_default();
            if !ids.trim().is_empty() {
                let _ = output(self.engine_cli().args(["rm", "-f"]).args(ids.split_whitespace())).await;
            }
        }
        let _ = terminate(&mut self.engine).await;
        let _ = terminate(&mut self.daemon).await;
        self.holder.stop().await;
    }
}

fn docker(socket: &Path) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").arg("-H").arg(format!("unix://{}", socket.display()));
    command
}

/// The child is nsenter; the program that it started in the host, its only child, gets the signal.
async fn signal_inside(child: &Child, signal: &str) -> anyhow::Result<()> {
    let Some(outer) = child.id() else { return Ok(()) };
    let inside = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
    for pid in inside.split_whitespace() {
        output(Command::new("kill").args(["-s", signal, pid])).await?;
    }
    Ok(())
}

/// nsenter stops itself with the program that it waits for, and has that go on when it goes on itself.
async fn resume(child: &Child) -> anyhow::Result<()> {
    let Some(outer) = child.id() else { return Ok(()) };
    output(Command::new("kill").args(["-s", "CONT", &outer.to_string()])).await.map(drop)
}

async fn terminate(slot: &mut Option<Child>) -> anyhow::Result<()> {
    let Some(mut child) = slot.take() else { return Ok(()) };
    let _ = signal_inside(&child, "TERM").await;
    // A program that is stopped ends when it goes on, and nsenter after it.
    let _ = resume(&child).await;
    if tokio::time::timeout(Duration::from_secs(20), child.wait()).await.is_err() {
        signal_inside(&child, "KILL").await?;
        child.wait().await?;
    }
    Ok(())
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
