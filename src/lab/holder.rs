//! A process that holds a set of namespaces open. It is process 1 of its PID namespace, so its end is the end of
//! everything started inside.

use anyhow::Context as _;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Owner of a set of namespaces.
pub(super) struct Holder {
    /// Process 1 of the namespaces, as seen from outside.
    pub pid: u32,
    child: Child,
}

/// Run by the holder before it waits. Inherited mounts do not leak out; cgroups, /tmp and the work tree stay shared, and /run
/// with an engine in a root of its own: skep sees the namespaces that it mounts there.
const SCRIPT: &str = r#"
mount --make-rslave / && mount -t proc proc /proc && mount -t tmpfs -o mode=755 none /run && mount --make-shared /run || exit 1
mkdir -p /run/docker/plugins /run/netns /run/lock && hostname "$1" && ip link set lo up || exit 1
echo ready && exec sleep infinity
"#;

impl Holder {
    pub(super) async fn start(name: &str) -> anyhow::Result<Self> {
        // The kernel ends the holder when this process ends, however it ends.
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
            .context("cannot make namespaces: is util-linux (setpriv, unshare) installed, and is this root?")?;
        let stdout = child.stdout.take().context("holder has no output")?;
        let line = BufReader::new(stdout).lines().next_line().await?;
        if line.as_deref() != Some("ready") {
            let mut said = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = stderr.read_to_string(&mut said).await;
            }
            anyhow::bail!("the namespaces of host {name} could not be set up: {}", said.trim());
        }
        let outer = child.id().context("holder ended")?;
        let pid = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?
            .split_whitespace()
            .next()
            .and_then(|p| p.parse().ok())
            .context("holder has no child")?;
        Ok(Self { pid, child })
    }

    /// A command inside: all namespaces of the holder.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.pid.to_string(), "--net", "--mount", "--uts", "--pid", "--"]).arg(program);
        command
    }

    /// Ends everything inside and waits until it is gone.
    pub(super) async fn stop(&mut self) {
        // Process 1 first: its parent (unshare) reaps it and ends by itself, and then nothing is left, not even a zombie.
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait().await;
    }
}
