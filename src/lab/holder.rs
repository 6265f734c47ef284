//! A process that holds a set of namespaces open. It is process 1 of its PID namespace: when it ends, the kernel ends every
//! process in the namespace.

use anyhow::Context as _;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Owner of a set of namespaces; they end when it is dropped.
pub(super) struct Holder {
    /// Process 1 of the namespaces, by its pid in this process's namespace.
    pub pid: u32,
    child: Child,
}

/// Run by the process before it sleeps. Mounts inside do not propagate to the machine; cgroups, /tmp and the work tree are the
/// machine's. /run is private, and shared with an engine that is started in another root directory: skep sees the namespaces
/// that the engine mounts there.
const SCRIPT: &str = r#"
mount --make-rslave / && mount -t proc proc /proc && mount -t tmpfs -o mode=755 none /run && mount --make-shared /run || exit 1
mkdir -p /run/docker/plugins /run/netns /run/lock && hostname "$1" && ip link set lo up || exit 1
echo ready && exec sleep infinity
"#;

impl Holder {
    pub(super) async fn start(name: &str) -> anyhow::Result<Self> {
        // The kernel kills the holder when this process ends, also when it is killed.
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--kill-child=KILL",
                "--propagation",
                "slave",
            ])
            .args(["sh", "-c", SCRIPT, "sh", name])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot create namespaces: is util-linux (setpriv, unshare) installed, and is this root?")?;
        let stdout = child.stdout.take().context("the holding process has no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        if line.as_deref() != Some("ready") {
            let mut error = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut error).await;
            }
            anyhow::bail!("the namespaces of host {name} could not be set up: {}", error.trim());
        }
        let outer = child.id().context("the holding process ended")?;
        let pid = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?
            .split_whitespace()
            .next()
            .and_then(|p| p.parse().ok())
            .context("the holding process has no child")?;
        Ok(Self { pid, child })
    }

    /// A command in all its namespaces.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "--net", "--mount", "--uts", "--pid", "--"]).arg(program);
        command
    }

    /// Ends all processes in the namespaces and waits until they have ended.
    pub(super) async fn stop(&mut self) {
        // Only process 1 is killed: its parent (unshare) reaps it and then exits, so that no zombie is left.
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait().await;
    }
}
