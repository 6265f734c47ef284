//! Network namespaces: pin one by a bind mount, enter one, run a function inside one. Knows nothing of their contents.
//!
//! A namespace is an attribute of a thread, so nothing here may await between entering and leaving.

use anyhow::{Context, bail};
use rustix::fs::{StatFs, fstatfs};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::durable::ignore_missing;

/// Path of the calling thread's network namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// `f_type` of nsfs: distinguishes a pin from the plain file that remains after a reboot.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The calling thread's namespace.
///
/// # Errors
/// The kernel's.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open(OWN)?.into())
}

/// The namespace pinned at `pin`; `None` if there is no file or only a plain one.
///
/// # Errors
/// The kernel's.
pub fn pinned(pin: &Path) -> io::Result<Option<OwnedFd>> {
    let file = match File::open(pin) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(is_nsfs(&fstatfs(&file)?).then(|| file.into()))
}

/// A container's namespace, at the path that its engine names.
///
/// # Errors
/// No such file, or it is no namespace.
pub fn of_container(path: &Path) -> io::Result<OwnedFd> {
    let file = File::open(path)?;
    if is_nsfs(&fstatfs(&file)?) {
        return Ok(file.into());
    }
    let reason = "a plain file, no namespace: the engine runs in a mount namespace that is not visible to skep \
               (run both in the same, or share the engine's run directory)";
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Whether a file is a namespace.
pub(super) fn is_nsfs(stat: &StatFs) -> bool {
    i128::from(stat.f_type) == i128::from(NSFS_MAGIC)
}

/// Creates a namespace and pins it at `pin`, or adopts the one that is pinned there. Returns whether it was adopted.
///
/// # Errors
/// Not root, or the folder of `pin` cannot be written.
pub fn make_or_adopt(pin: &Path) -> anyhow::Result<(OwnedFd, bool)> {
    if let Some(fd) = pinned(pin).with_context(|| format!("cannot read the mesh namespace's pin {}", pin.display()))? {
        return Ok((fd, true));
    }
    if let Some(folder) = pin.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create the folder {}", folder.display()))?;
    }
    File::create(pin).with_context(|| format!("cannot create the file {} to pin the mesh namespace on", pin.display()))?;
    // A new thread: a thread that is used again must not stay in the new namespace.
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare_net().context("cannot create a network namespace (root, or CAP_SYS_ADMIN, is needed)")?;
                mount_bind(OWN, pin).with_context(|| format!("cannot pin the mesh namespace at {}", pin.display()))?;
                anyhow::Ok(())
            })
            .join()
            .unwrap_or_else(|_| bail!("the thread that creates the mesh namespace panicked"))
    })?;
    let fd = pinned(pin)?.with_context(|| format!("{} is no namespace right after it was pinned there", pin.display()))?;
    Ok((fd, false))
}

#[expect(unsafe_code, reason = "rustix marks unshare unsafe because of its FILES flag")]
fn unshare_net() -> rustix::io::Result<()> {
    // SAFETY: only the network namespace is unshared; file descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Runs `f` on a new thread in a new namespace, which ends with it, and blocks until it returns.
///
/// # Errors
/// No namespace can be created, or `f` panicked.
pub(super) fn in_new<T: Send>(f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare_net().context("cannot create a network namespace (root, or CAP_SYS_ADMIN, is needed)")?;
            f()
        });
        inside.join().unwrap_or_else(|_| bail!("the thread in the new namespace panicked"))
    })
}

/// Removes the pin: every mount on it, then the file. The kernel frees the namespace with its last socket and process. A pin
/// that is gone already is no error.
///
/// # Errors
/// The kernel's.
pub fn unpin(pin: &Path) -> io::Result<()> {
    loop {
        match unmount(pin, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    ignore_missing(fs::remove_file(pin))
}

/// Moves the calling thread into the namespace.
///
/// # Errors
/// The kernel's.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// Runs `f` on a new thread inside the namespace and blocks until it returns.
///
/// # Errors
/// The namespace cannot be entered, or `f` panicked.
pub fn run<T: Send>(namespace: BorrowedFd<'_>, f: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let inside = std::thread::Builder::new().name("skep-netns".to_owned()).spawn_scoped(scope, || {
            enter(namespace)?;
            Ok(f())
        })?;
        inside.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}

/// Runs `f` on the calling thread inside the namespace and returns to the thread's own: some microseconds, to create a socket.
///
/// # Errors
/// Those of `f` and the kernel's.
pub fn briefly<T>(namespace: BorrowedFd<'_>, f: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let home = current()?;
    enter(namespace)?;
    let guard = ReturnGuard(home);
    let result = f();
    drop(guard);
    result
}

/// Returns to the namespace when dropped, also if `f` panics.
struct ReturnGuard(OwnedFd);

impl Drop for ReturnGuard {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0.as_fd()) {
            // A worker thread that stays in the wrong namespace would open the host's sockets inside the mesh.
            tracing::error!(%error, "cannot return to the own network namespace");
            std::process::abort();
        }
    }
}
