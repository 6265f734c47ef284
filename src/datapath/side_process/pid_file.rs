//! The file with a process's id, which the process has locked as long as it lives.

use anyhow::{Context as _, anyhow, bail};
use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Duration;

/// Time between checks of whether a process has ended.
const POLL: Duration = Duration::from_millis(10);

/// Writes this process's id and locks the file, so that there is one process at a time.
///
/// # Errors
/// The file cannot be written, or another process, which the error names, has locked it.
pub fn lock_pid_file(path: &Path, what: &str) -> anyhow::Result<File> {
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = open().with_context(|| format!("cannot open {}", path.display()))?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let _ = file.read_to_string(&mut pid);
        bail!("another {what} process (pid {}) has locked {}", pid.trim(), path.display());
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Kills the process that has the file locked, if there is one, and waits until it has ended.
///
/// # Errors
/// The file has no process id, or the process does not end in time.
pub async fn kill_locked(path: &Path, what: &str, within: Duration) -> anyhow::Result<()> {
    let Ok(file) = File::open(path) else { return Ok(()) };
    let is_locked = || rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
    if !is_locked() {
        return Ok(());
    }
    let pid = std::fs::read_to_string(path)?.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{} contains no process id", path.display()))?;
    tracing::warn!(pid = pid.as_raw_nonzero(), "the {what} process does not answer and is killed");
    kill_process(pid, Signal::KILL).with_context(|| format!("cannot kill the {what} process {pid:?}"))?;
    let ended = async {
        while is_locked() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(within, ended).await.map_err(|_| anyhow!("the {what} process {pid:?} did not end within {within:?}"))
}

/// Whether only its parent's wait is left of a process. While other threads than the first are ending, they have its sockets open.
pub fn is_zombie(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    threads <= 1 && status.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}
