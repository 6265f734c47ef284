//! The daemon's side of the process: starts it, adopts it, replaces it, ends it.

use super::protocol::{HttpHello, PROTOCOL, control_socket, pid_file};
use super::state::HttpStatus;
use super::table::HttpTable;
use crate::datapath::NamespaceSockets;
use crate::datapath::side_process::{is_run_by, is_zombie, kill_locked};
use crate::http::UnixClient;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::time::timeout;

/// How long a request may take: the process replies from memory.
const REPLY: Duration = Duration::from_secs(10);
/// How long the process may take to start or to end.
const START: Duration = Duration::from_secs(15);
/// Time between checks of whether it did.
const POLL: Duration = Duration::from_millis(10);

/// What the process is started with.
#[derive(Clone, Debug)]
pub struct HttpProcessConfig {
    /// Directory of `http.sock` and `http.pid`.
    pub run_dir: PathBuf,
    /// Path of the mesh namespace's pin.
    pub mesh_pin: PathBuf,
    /// The skep binary, which is started as `skep http serve`.
    pub program: PathBuf,
    /// Filter of its log.
    pub log: String,
}

/// The process that serves now.
#[derive(Clone, Debug)]
pub(super) struct HttpProcess {
    client: UnixClient,
    pub pid: u32,
}

impl HttpProcessConfig {
    fn socket(&self) -> PathBuf {
        control_socket(&self.run_dir)
    }

    /// The process that serves, if there is one.
    pub(super) async fn running(&self) -> Option<HttpProcess> {
        let client = UnixClient::new(self.socket());
        let hello = hello(&client).await.ok()?;
        Some(HttpProcess { client, pid: hello.pid })
    }

    /// Adopts the process if it fits, otherwise starts one, which takes over from it.
    pub(super) async fn ensure(&self) -> anyhow::Result<HttpProcess> {
        let client = UnixClient::new(self.socket());
        match hello(&client).await {
            Ok(hello) => match self.misfit(&hello)? {
                None => {
                    tracing::debug!(pid = hello.pid, "HTTP process adopted");
                    return Ok(HttpProcess { client, pid: hello.pid });
                }
                Some(reason) => tracing::info!(pid = hello.pid, reason, "HTTP process is replaced"),
            },
            Err(_) => kill_locked(&pid_file(&self.socket()), "HTTP", START).await?,
        }
        self.start(client).await
    }

    fn misfit(&self, hello: &HttpHello) -> anyhow::Result<Option<String>> {
        let mesh = NamespaceSockets::open(&self.mesh_pin)?.id()?;
        Ok(if hello.protocol != PROTOCOL {
            Some(format!("it speaks protocol {}, this daemon {PROTOCOL}", hello.protocol))
        } else if hello.draining {
            Some("it ends: its last route had gone".to_owned())
        } else if hello.mesh != mesh {
            Some("it connects from an earlier mesh namespace".to_owned())
        } else if !is_run_by(&self.program, hello.pid) {
            Some(format!("it runs another build (version {})", hello.version))
        } else {
            None
        })
    }

    /// Starts a process and waits until it answers.
    async fn start(&self, client: UnixClient) -> anyhow::Result<HttpProcess> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["http", "serve", "--log", &self.log]).arg("--mesh").arg(&self.mesh_pin);
        command.arg("--control").arg(self.socket()).current_dir("/").stdin(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("cannot start {} http serve", self.program.display()))?;
        let answers = async {
            loop {
                if let Ok(hello) = hello(&client).await
                    && Some(hello.pid) == child.id()
                {
                    return Ok(hello.pid);
                }
                if let Some(status) = child.try_wait()? {
                    bail!("the HTTP process ended with {status}; skep's log says why");
                }
                tokio::time::sleep(POLL).await;
            }
        };
        let Ok(result) = timeout(START, answers).await else {
            let _ = child.kill().await;
            bail!("the HTTP process did not answer within {START:?}");
        };
        let pid = result?;
        // The process outlives this daemon. If it ends before, tokio reaps it.
        drop(child);
        Ok(HttpProcess { client, pid })
    }
}

async fn hello(client: &UnixClient) -> anyhow::Result<HttpHello> {
    timeout(REPLY, client.get("/hello")).await?.and_then(|reply| reply.json())
}

impl HttpProcess {
    /// Sends the table.
    pub(super) async fn apply(&self, table: &HttpTable) -> anyhow::Result<HttpStatus> {
        let body = serde_json::to_vec(table)?;
        let sent = self.client.send("PUT", "/table", &[("Content-Type", "application/json")], body.into());
        timeout(REPLY, sent).await?.and_then(|reply| reply.json())
    }

    pub(super) async fn status(&self) -> anyhow::Result<HttpStatus> {
        timeout(REPLY, self.client.get("/state")).await?.and_then(|reply| reply.json())
    }

    /// Returns when another number of requests waits for a task, or the process does not say.
    pub(super) async fn waiting_changed(&self) {
        match self.client.get("/waiting").await.and_then(|reply| reply.ok()) {
            Ok(()) => {}
            // What else is wrong shows elsewhere.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets it end when its clients have their answers.
    pub(super) async fn drain(&self) -> anyhow::Result<()> {
        timeout(REPLY, self.client.request("POST", "/drain", None)).await?.and_then(|reply| reply.ok())
    }

    /// Returns when the process ends or is replaced.
    pub(super) async fn ended(&self) {
        let _ = self.client.get("/end").await;
    }
}

/// Ends the process at once, if there is one: the node leaves the cluster.
///
/// # Errors
/// It does not end.
pub async fn stop(run_dir: &Path) -> anyhow::Result<()> {
    let socket = control_socket(run_dir);
    if !socket.exists() {
        return Ok(());
    }
    let client = UnixClient::new(&socket);
    if let Ok(hello) = hello(&client).await {
        let _ = HttpProcess { client, pid: hello.pid }.drain().await;
        let ended = async {
            while Path::new(&format!("/proc/{}", hello.pid)).exists() && !is_zombie(hello.pid) {
                tokio::time::sleep(POLL).await;
            }
        };
        // Its tasks are gone: a client that waits for an answer gets none.
        if timeout(Duration::from_secs(4), ended).await.is_err()
            && let Some(pid) = i32::try_from(hello.pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    } else {
        kill_locked(&pid_file(&socket), "HTTP", START).await?;
    }
    for file in [pid_file(&socket), socket] {
        crate::durable::ignore_missing(std::fs::remove_file(&file))
            .with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(())
}
