//! A pinned network namespace: code run in it, on a thread of its own.

use anyhow::{Context as _, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::Path;
use std::sync::Arc;

/// From `linux/magic.h`: the file system of namespace files.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open namespace. Keeps it alive.
#[derive(Clone, Debug)]
pub(super) struct Namespace {
    file: Arc<File>,
    /// Device and inode: what tells namespaces apart.
    pub(super) id: (u64, u64),
}

impl Namespace {
    /// Opens the namespace pinned at `pin`.
    pub(super) fn open(pin: &Path) -> anyhow::Result<Self> {
        let file = File::open(pin).with_context(|| format!("cannot open the network namespace {}", pin.display()))?;
        let kind = rustix::fs::fstatfs(&file).with_context(|| format!("cannot look at {}", pin.display()))?.f_type;
        // After a reboot a plain file lies where the pin was.
        ensure!(u64::try_from(kind) == Ok(NSFS_MAGIC), "no network namespace is pinned at {}", pin.display());
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self { file: Arc::new(file), id: (stat.st_dev, stat.st_ino) })
    }

    /// The calling thread's own.
    pub(super) fn current() -> anyhow::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// For netlink's "move to".
    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `work` in the namespace and waits for it. Threads are not shared with anybody, so nothing has to be undone.
    pub(super) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
        let file = Arc::clone(&self.file);
        let thread = std::thread::Builder::new().name("namespace".into()).spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .context("cannot enter a network namespace (CAP_SYS_ADMIN is needed)")?;
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

/// Runs `work` on a thread of its own in this process's namespace: for netlink, which brings its own runtime.
pub(super) async fn here<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("netlink".into()).spawn(move || sender.send(work()))?;
    receiver.await.context("the thread ended without an answer")?
}
