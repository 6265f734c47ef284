//! A pinned network namespace that functions run in, each on a new thread.

use super::super::netns;
use anyhow::{Context as _, anyhow, ensure};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::Path;
use std::sync::Arc;

/// An open namespace, which stays alive with it.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    file: Arc<File>,
    /// Device and inode, which identify the namespace.
    pub(super) id: (u64, u64),
}

impl Namespace {
    /// Opens the namespace pinned at `pin`.
    pub(super) fn open(pin: &Path) -> anyhow::Result<Self> {
        let file = File::open(pin).with_context(|| format!("cannot open the network namespace {}", pin.display()))?;
        let file_system = rustix::fs::fstatfs(&file).with_context(|| format!("cannot read {}", pin.display()))?;
        // After a reboot the pin is a plain file.
        ensure!(netns::is_nsfs(&file_system), "no network namespace is pinned at {}", pin.display());
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { file: Arc::new(file), id: (stat.st_dev, stat.st_ino) })
    }

    /// The calling thread's own.
    pub(super) fn current() -> anyhow::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// For netlink messages that move a device.
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` on a new thread in the namespace and blocks until it returns. The thread is not used again, so that it need
    /// not return to its own namespace.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
        let file = Arc::clone(&self.file);
        let thread = std::thread::Builder::new().name("namespace".into()).spawn(move || {
            netns::enter(file.as_fd()).context("cannot enter a network namespace (CAP_SYS_ADMIN is needed)")?;
            work()
        })?;
        thread.join().map_err(|_| anyhow!("the thread in the namespace panicked"))?
    }

    /// [`Self::run`] for async callers.
    pub(super) async fn run_async<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.run(work)).await.context("the blocking pool is gone")?
    }
}

/// Runs `work` on a new thread in this process's namespace: for the netlink functions of `link`, which start a runtime.
pub(super) async fn here<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netlink".into()).spawn(move || sender.send(work()))?;
    receiver.await.context("the thread ended without an answer")?
}
