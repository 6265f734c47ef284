//! The file below the database.

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::Path;

/// A failed `fsync`.
#[derive(Debug, thiserror::Error)]
#[error("what was written is not on the disk: {0}")]
pub(super) struct SyncFailed(io::Error);

impl SyncFailed {
    pub fn is_cause_of(error: &io::Error) -> bool {
        matches!(error.get_ref(), Some(cause) if cause.is::<Self>())
    }
}

/// A file whose failed `fsync` is distinguished from a write for which there is no room, whatever the kernel's reason: on a disk that is filled up
/// below its file system (thin volumes, loop devices, NFS) the reason is the same, but pages are marked as written that are not.
pub(super) struct LogFile {
    file: FileBackend,
    sync: Sync,
}

/// Makes a file's content durable.
pub(super) type Sync = Box<dyn Fn(&FileBackend) -> io::Result<()> + Send + std::marker::Sync>;

impl std::fmt::Debug for LogFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(f)
    }
}

impl LogFile {
    /// Opens a file that exists.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Self::open_with(path, Box::new(FileBackend::sync_data))
    }

    pub fn open_with(path: &Path, sync: Sync) -> Result<Self, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // The database would take it for a new one.
        if file.metadata()?.len() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty").into());
        }
        Ok(Self { file: FileBackend::new(file)?, sync })
    }

    /// Takes an empty file.
    pub fn of(file: File) -> Result<Self, DatabaseError> {
        Ok(Self { file: FileBackend::new(file)?, sync: Box::new(FileBackend::sync_data) })
    }
}

impl StorageBackend for LogFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        (self.sync)(&self.file).map_err(|error| io::Error::other(SyncFailed(error)))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}
