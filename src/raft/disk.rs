//! The log on disk: one redb file with a format number and the raft id that it belongs to. Every write is one
//! transaction and durable when it returns. Entries and snapshot are encrypted if the file names a key; term, vote and indexes never
//! are. Blocks; does not know what is in the entries.

mod file;

use super::check;
use super::config::{LogCipher, NoCipher};
use super::log::{Log, LogBatch};
use crate::durable::ignore_missing;
use file::{LogFile, SyncFailed};
use protobuf::Message as _;
use raft::eraftpb::{Entry, HardState, Snapshot};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the file in its folder.
pub const FILE: &str = "raft.redb";
/// Name of the file that is to take its place.
const NEW: &str = "raft.redb.new";
/// Goes up when an older build could not read the file. Those that are not encrypted have format 1.
const FORMAT: u64 = 2;
const PLAIN: u64 = 1;
/// Memory for pages, in bytes: the log is read once and then only written.
const CACHE: usize = 8 << 20;

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// A separate table: rows on the same page are written again whenever one of them changes.
const SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");

/// What a sealed row is bound to.
const SNAPSHOT_PLACE: &str = "snapshot";

fn entry_place(index: u64) -> String {
    format!("entry {index}")
}

/// Problem with the log on disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// There is no log, and none may be created.
    #[error(
        "{} is missing, but this node was a manager: restore the data directory from a backup, or, if other managers are \
         up, make this node leave and join again", .0.display()
    )]
    Absent(PathBuf),
    /// The log belongs to another manager.
    #[error(
        "{} is the log of raft id {found}, this manager has raft id {wanted}: point --data-dir at this node's own data, \
         or move that file away and join again", .path.display()
    )]
    Foreign {
        path: PathBuf,
        /// Raft id in the file.
        found: u64,
        /// This manager's raft id.
        wanted: u64,
    },
    /// A newer skep wrote it.
    #[error("{} has format {found}, this skep reads format {FORMAT}: install the newer skep again", .path.display())]
    Newer {
        path: PathBuf,
        /// Format of the file.
        found: u64,
    },
    /// Its content is inconsistent.
    #[error(
        "{} is damaged ({why}): restore the data directory from a backup, or, if other managers are up, move the file \
         away and make this node leave and join again", .path.display()
    )]
    Damaged { path: PathBuf, why: String },
    /// Another process has the file open.
    #[error("{} is in use by another skep: stop that one first, or start this one with another --data-dir", .0.display())]
    InUse(PathBuf),
    /// Error of the operating system: disk full, no permission, broken disk.
    #[error("{} cannot be {doing} ({why}): free space on that disk or repair it; writes continue then without a restart", .path.display())]
    Io {
        path: PathBuf,
        /// `opened`, `read`, `written` or `removed`.
        doing: &'static str,
        why: String,
    },
    /// An `fsync` failed, or a write not for lack of space: the kernel may have dropped what was written before, so nothing that
    /// follows can be trusted.
    #[error(
        "{} cannot be written ({why}), and what was written before may be lost: this manager takes part no longer; replace the \
         disk and restore the data directory from a backup, or, if other managers are up, make this node leave and join again",
        .path.display()
    )]
    Broken { path: PathBuf, why: String },
}

/// Why a log was not sealed again.
#[derive(Debug, thiserror::Error)]
pub enum SealAgainError {
    /// The file is the one of before, and remains in use.
    #[error(transparent)]
    Unchanged(DiskError),
    /// Another file took its place: the log must be opened again before it is written.
    #[error(transparent)]
    Replaced(DiskError),
}

/// An open log file.
pub struct Disk {
    path: PathBuf,
    database: Database,
    /// Index of the last entry in the file, or more.
    last: Cell<u64>,
    cipher: Arc<dyn LogCipher>,
    /// Name of the key that its rows are sealed with.
    key: Option<String>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens the log in `dir`, reads all of it and verifies every checksum.
    ///
    /// # Errors
    /// See [`DiskError`]; no content of the file causes a panic.
    pub fn open(dir: &Path, id: u64) -> Result<(Self, Log), DiskError> {
        Self::open_sealed(dir, id, &(Arc::new(NoCipher) as _))
    }

    /// As [`Disk::open`], also of a log that is encrypted.
    ///
    /// # Errors
    /// See [`DiskError`]; no content of the file causes a panic.
    pub fn open_sealed(dir: &Path, id: u64, cipher: &Arc<dyn LogCipher>) -> Result<(Self, Log), DiskError> {
        let (disk, log, found) = Self::open_any(dir, cipher)?;
        if found != id {
            return Err(DiskError::Foreign { path: disk.path, found, wanted: id });
        }
        Ok((disk, log))
    }

    /// As [`Disk::open`], whichever manager's log it is; returns its raft id.
    ///
    /// # Errors
    /// See [`DiskError`]; no content of the file causes a panic.
    pub(super) fn open_any(dir: &Path, cipher: &Arc<dyn LogCipher>) -> Result<(Self, Log, u64), DiskError> {
        Self::open_with(dir, cipher, LogFile::open)
    }

    /// `open` opens the file below the database.
    fn open_with(
        dir: &Path,
        cipher: &Arc<dyn LogCipher>,
        open: impl FnOnce(&Path) -> Result<LogFile, redb::DatabaseError>,
    ) -> Result<(Self, Log, u64), DiskError> {
        let path = dir.join(FILE);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Err(DiskError::Absent(path)),
            Err(error) => return Err(DiskError::Io { path, doing: "opened", why: error.to_string() }),
        }
        // redb returns an error for damage where it checks for it; elsewhere it may panic.
        let opened = catch_unwind(AssertUnwindSafe(|| {
            let database = open(&path).and_then(|file| builder().create_with_backend(file)).map_err(|e| open_error(&path, e))?;
            let mut disk = Self { path: path.clone(), database, last: Cell::new(0), cipher: cipher.clone(), key: None };
            let (log, id) = disk.load()?;
            disk.last.set(log.last());
            Ok((disk, log, id))
        }));
        opened.unwrap_or_else(|_| Err(DiskError::Damaged { path, why: "its pages are inconsistent".to_owned() }))
    }

    /// Creates the log in `dir`, or replaces the one that is there. Written under another name first, so that a crash leaves a whole log
    /// or none.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn create(dir: &Path, id: u64, log: &Log, cipher: &Arc<dyn LogCipher>) -> Result<(), DiskError> {
        Self::replace(dir, id, log, cipher)?;
        sync(dir)
    }

    /// As [`Disk::create`], not yet durable. After an error the file of before is in place, and nothing beside it.
    fn replace(dir: &Path, id: u64, log: &Log, cipher: &Arc<dyn LogCipher>) -> Result<(), DiskError> {
        let new = dir.join(NEW);
        let io = |e: std::io::Error| DiskError::Io { path: new.clone(), doing: "written", why: e.to_string() };
        create_dir(dir).map_err(io)?;
        Self::remove_leftover(dir)?;
        let replaced = Self::write_new(&new, id, log, cipher).and_then(|()| std::fs::rename(&new, dir.join(FILE)).map_err(io));
        if replaced.is_err() {
            // Best effort: a start and the next attempt remove it too. It takes the space that the log may need.
            let _ = std::fs::remove_file(&new);
        }
        replaced.map_err(|error| match error {
            // What the kernel dropped is of the new file, of which nothing is used.
            DiskError::Broken { path, why } => DiskError::Io { path, doing: "written", why },
            other => other,
        })
    }

    fn write_new(new: &Path, id: u64, log: &Log, cipher: &Arc<dyn LogCipher>) -> Result<(), DiskError> {
        let io = |e: &dyn std::fmt::Display| DiskError::Io { path: new.to_owned(), doing: "written", why: e.to_string() };
        // The log contains the cluster's secrets: only root may read it.
        let mut options = std::fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.read(true).write(true).create_new(true).open(new).map_err(|e| io(&e))?;
        let database = LogFile::of(file).and_then(|file| builder().create_with_backend(file)).map_err(|e| io(&e))?;
        let disk = Self { path: new.to_owned(), database, last: Cell::new(0), cipher: cipher.clone(), key: cipher.key() };
        disk.transact(|transaction| {
            let mut meta = transaction.open_table(META)?;
            let format = if disk.key.is_some() { FORMAT } else { PLAIN };
            meta.insert("format", format.to_le_bytes().as_slice())?;
            meta.insert("id", id.to_le_bytes().as_slice())?;
            if let Some(key) = &disk.key {
                meta.insert("key", key.as_bytes())?;
            }
            drop(meta);
            disk.put(transaction, &log.as_batch())
        })
    }

    /// Removes what a crash left of a file that was to take the log's place: it may not be sealed as the log is. Not while
    /// that file is written.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn remove_leftover(dir: &Path) -> Result<(), DiskError> {
        let path = dir.join(NEW);
        let removed = ignore_missing(std::fs::remove_file(&path));
        removed.map_err(|e| DiskError::Io { path, doing: "removed", why: e.to_string() })
    }

    /// Makes a batch durable. After an error the file must be opened again: until then redb refuses all access.
    ///
    /// # Errors
    /// [`DiskError::Io`], or [`DiskError::Damaged`] if another process changed the file.
    pub fn write(&self, batch: &LogBatch) -> Result<(), DiskError> {
        self.transact(|transaction| self.put(transaction, batch))?;
        if let Some(entry) = batch.entries.last() {
            self.last.set(entry.index);
        }
        Ok(())
    }

    /// Whether the log is not encrypted as one that is written now.
    fn has_old_key(&self) -> bool {
        self.key != self.cipher.key()
    }

    /// Puts the same log into a new file, encrypted as one that is written now, unless it is; removes what an earlier attempt left. A crash
    /// leaves the old file or the new one.
    ///
    /// # Errors
    /// [`SealAgainError`] tells whether this log may be written on.
    pub fn seal_again(&mut self, dir: &Path) -> Result<(), SealAgainError> {
        self.seal_again_with(dir, File::sync_all)
    }

    /// `sync` makes the names in the folder durable.
    fn seal_again_with(&mut self, dir: &Path, sync: impl FnOnce(&File) -> std::io::Result<()>) -> Result<(), SealAgainError> {
        if !self.has_old_key() {
            return Self::remove_leftover(dir).map_err(SealAgainError::Unchanged);
        }
        let cipher = self.cipher.clone();
        // Opened before anything changes: a lack of descriptors leaves the log as it is.
        let folder = open_dir(dir).map_err(SealAgainError::Unchanged)?;
        let written = self.load().and_then(|(log, id)| Self::replace(dir, id, &log, &cipher).map(|()| id));
        let id = written.map_err(SealAgainError::Unchanged)?;
        // Not tried again, for lack of space neither: the kernel need not report it twice, and after a power cut the file of before may be
        // back, without what is acknowledged from here on.
        let synced = sync(&folder).map_err(|e| DiskError::Broken { path: dir.join(FILE), why: e.to_string() });
        let opened = synced.and_then(|()| Self::open_sealed(dir, id, &cipher));
        *self = opened.map_err(SealAgainError::Replaced)?.0;
        Ok(())
    }

    fn transact(&self, body: impl FnOnce(&redb::WriteTransaction) -> Result<(), StorageFault>) -> Result<(), DiskError> {
        let attempt = || -> Result<(), StorageFault> {
            let transaction = self.database.begin_write().map_err(redb::Error::from)?;
            body(&transaction)?;
            // redb's default durability: on disk when this returns.
            transaction.commit().map_err(redb::Error::from)?;
            Ok(())
        };
        attempt().map_err(|fault| self.error("written", fault))
    }

    fn load(&mut self) -> Result<(Log, u64), DiskError> {
        let path = self.path.clone();
        let damaged = |why: &str| DiskError::Damaged { path: path.clone(), why: why.to_owned() };
        let read = || -> Result<_, StorageFault> {
            let transaction = self.database.begin_read().map_err(redb::Error::from)?;
            let meta = transaction.open_table(META)?;
            let number = |key: &str| -> Result<Option<u64>, StorageFault> {
                let bytes = meta.get(key)?;
                Ok(bytes.and_then(|b| b.value().try_into().ok()).map(u64::from_le_bytes))
            };
            let key = meta.get("key")?.map(|key| String::from_utf8_lossy(key.value()).into_owned());
            Ok((number("format")?, number("id")?, key))
        };
        let (format, owner, key) = read().map_err(|fault| self.error("read", fault))?;
        let format = format.ok_or_else(|| damaged("it has no format number"))?;
        if format > FORMAT {
            return Err(DiskError::Newer { path: self.path.clone(), found: format });
        }
        let id = owner.ok_or_else(|| damaged("it has no raft id"))?;
        self.key = key;
        let log = self.load_log().map_err(|fault| self.error("read", fault))?;
        check::log(&log).map_err(|why| damaged(&why))?;
        Ok((log, id))
    }

    fn load_log(&self) -> Result<Log, StorageFault> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let meta = transaction.open_table(META)?;
        let mut log = Log::default();
        if let Some(bytes) = meta.get("hard_state")? {
            log.hard_state = HardState::parse_from_bytes(bytes.value())?;
        }
        if let Some(bytes) = meta.get("compacted")? {
            let bytes: [u8; 16] =
                bytes.value().try_into().map_err(|_| StorageFault::Content("an invalid compaction index".to_owned()))?;
            let both = u128::from_le_bytes(bytes);
            log.compacted = (u64::try_from(both & u128::from(u64::MAX)).unwrap_or(0), u64::try_from(both >> 64).unwrap_or(0));
        }
        if let Some(bytes) = transaction.open_table(SNAPSHOT)?.get("newest")? {
            log.snapshot = Snapshot::parse_from_bytes(&self.opened(SNAPSHOT_PLACE, bytes.value())?)?;
        }
        for row in transaction.open_table(LOG)?.iter()? {
            let (index, bytes) = row?;
            let entry = Entry::parse_from_bytes(&self.opened(&entry_place(index.value()), bytes.value())?)?;
            if entry.index != index.value() {
                return Err(StorageFault::Content(format!("entry {} is stored at {}", entry.index, index.value())));
            }
            log.entries.push_back(entry);
        }
        Ok(log)
    }

    fn put(&self, transaction: &redb::WriteTransaction, batch: &LogBatch) -> Result<(), StorageFault> {
        let mut log = transaction.open_table(LOG)?;
        let mut meta = transaction.open_table(META)?;
        if let Some(snapshot) = &batch.snapshot {
            transaction.open_table(SNAPSHOT)?.insert("newest", self.sealed(SNAPSHOT_PLACE, snapshot)?.as_slice())?;
            if batch.reset {
                let metadata = snapshot.get_metadata();
                meta.insert("compacted", pair(metadata.index, metadata.term).as_slice())?;
            }
        }
        if batch.reset {
            log.retain(|_, _| false)?;
        }
        if let Some((index, term)) = batch.compacted {
            log.retain_in(..=index, |_, _| false)?;
            meta.insert("compacted", pair(index, term).as_slice())?;
        }
        // Mostly there is nothing to replace, and looking for it costs as much as a write.
        if let Some(first) = batch.entries.first().filter(|first| first.index <= self.last.get()) {
            log.retain_in(first.index.., |_, _| false)?;
        }
        for entry in &batch.entries {
            log.insert(entry.index, self.sealed(&entry_place(entry.index), entry)?.as_slice())?;
        }
        if let Some(hard_state) = &batch.hard_state {
            meta.insert("hard_state", encode(hard_state)?.as_slice())?;
        }
        Ok(())
    }

    /// A row as it lies in the file.
    fn sealed(&self, place: &str, message: &impl protobuf::Message) -> Result<Vec<u8>, StorageFault> {
        let row = encode(message)?;
        match &self.key {
            Some(key) => self.cipher.seal(key, place, &row).map_err(StorageFault::Content),
            None => Ok(row),
        }
    }

    /// A row of the file.
    fn opened(&self, place: &str, row: &[u8]) -> Result<Vec<u8>, StorageFault> {
        match &self.key {
            Some(key) => self.cipher.open(key, place, row).map_err(|why| StorageFault::Content(format!("{place}: {why}"))),
            None => Ok(row.to_vec()),
        }
    }

    fn error(&self, doing: &'static str, fault: StorageFault) -> DiskError {
        let path = self.path.clone();
        match fault {
            StorageFault::Content(why) => DiskError::Damaged { path, why },
            StorageFault::Database(redb::Error::Io(e)) => io_error(path, doing, &e),
            StorageFault::Database(redb::Error::PreviousIo) => {
                DiskError::Io { path, doing, why: "an earlier write failed".to_owned() }
            }
            StorageFault::Database(e) => DiskError::Damaged { path, why: e.to_string() },
        }
    }
}

/// An error of redb, or content that it does not check.
enum StorageFault {
    Database(redb::Error),
    Content(String),
}

impl From<redb::Error> for StorageFault {
    fn from(error: redb::Error) -> Self {
        Self::Database(error)
    }
}
impl From<redb::StorageError> for StorageFault {
    fn from(error: redb::StorageError) -> Self {
        Self::Database(error.into())
    }
}
impl From<redb::TableError> for StorageFault {
    fn from(error: redb::TableError) -> Self {
        Self::Database(error.into())
    }
}
impl From<protobuf::ProtobufError> for StorageFault {
    fn from(error: protobuf::ProtobufError) -> Self {
        Self::Content(error.to_string())
    }
}

fn encode(message: &impl protobuf::Message) -> Result<Vec<u8>, StorageFault> {
    Ok(message.write_to_bytes()?)
}

fn pair(low: u64, high: u64) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_le_bytes()
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn open_error(path: &Path, error: redb::DatabaseError) -> DiskError {
    let path = path.to_path_buf();
    match error {
        redb::DatabaseError::DatabaseAlreadyOpen => DiskError::InUse(path),
        redb::DatabaseError::Storage(redb::StorageError::Io(e)) => match e.kind() {
            // How redb reports a file that is not a redb file, or too short.
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidInput => {
                DiskError::Damaged { path, why: e.to_string() }
            }
            // The database writes at its opening too.
            _ if SyncFailed::is_cause_of(&e) => DiskError::Broken { path, why: e.to_string() },
            _ => DiskError::Io { path, doing: "opened", why: e.to_string() },
        },
        other => DiskError::Damaged { path, why: other.to_string() },
    }
}

/// An error of an open log. A full disk may be tried again; a write that failed otherwise may not: after a failed `fsync` the
/// kernel marks pages as written that are not, and a log that is opened again reads well until the power is cut.
fn io_error(path: PathBuf, doing: &'static str, error: &std::io::Error) -> DiskError {
    let is_full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let why = error.to_string();
    if doing == "written" && !is_full { DiskError::Broken { path, why } } else { DiskError::Io { path, doing, why } }
}

/// Makes the names in the folder durable.
fn sync(dir: &Path) -> Result<(), DiskError> {
    let failed = |e: std::io::Error| DiskError::Io { path: dir.join(FILE), doing: "written", why: e.to_string() };
    open_dir(dir)?.sync_all().map_err(failed)
}

fn open_dir(dir: &Path) -> Result<File, DiskError> {
    File::open(dir).map_err(|e| DiskError::Io { path: dir.to_owned(), doing: "opened", why: e.to_string() })
}

fn create_dir(dir: &Path) -> std::io::Result<()> {
    let mut options = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(&mut options, 0o700);
    options.recursive(true).create(dir)
}

#[cfg(test)]
mod tests;
