//! The keys of a manager's files. `manager.key` has a key of this node's own, with which the log is encrypted: as it is, for root alone, or,
//! while the swarm locks its managers, wrapped with the unlock key; the private key of the certificate is sealed then too. The unlock key
//! itself is nowhere on the disk: it is in the log, and given by the user after a start.
//!
//! Each change of the lock draws a new key for the files too, so that what an old copy of `manager.key` opens is as old as it
//! is. The order of the writes leaves files after a crash at any point that the newest unlock key opens: first `manager.key` with the
//! new key and those before it, then what is sealed, then `manager.key` without the old ones. A change that did not come to its end leaves
//! its key among those, whatever change follows.
//!
//! The file names the revision of the store that the lock is of: after a power cut a store may be older than it, and is not obeyed.

mod held;

pub(super) use self::held::KeyOwner;
use self::held::{Change, HeldKeys, KeyDocument, Keys, Lock};
use super::state_dir::StateDir;
use crate::durable::{DocumentFile, UnknownFields, ignore_missing};
use crate::model::{NodeId, Revision, Secret};
use crate::raft::LogCipher;
use crate::sync::{lock, read, write};
use crate::trust::{CertificateFiles, KeySealer, StateKey, StateKeyError, UnlockKey};
use anyhow::Context as _;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

const FILE: DocumentFile = DocumentFile {
    name: "the keys of this manager",
    format: 1,
    unknown_fields: UnknownFields::Refused,
    if_damaged: "restore {path} from a backup of this node; if other managers are up, run `docker swarm leave --force` here and join \
                 again instead",
};

/// Why nothing is read with keys that lie wrapped.
const LOCKED: &str = "it is encrypted, because the swarm locks its managers: start skep on it and run `docker swarm unlock`";

/// Why a manager is not unlocked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnlockError {
    #[error("invalid key provided")]
    WrongKey,
    #[error("{0:#}")]
    Damaged(anyhow::Error),
}

/// A log that can be encrypted again while it is in use.
#[async_trait]
pub(super) trait SealedLog: Send + Sync {
    /// Encrypts the log as the keyring says now, if it is not, and removes what an earlier attempt left.
    async fn seal_again(&self) -> anyhow::Result<()>;
}

/// This node's keys.
pub(super) struct Keyring {
    path: PathBuf,
    /// Never locked while a file is written: whatever reads or writes the log needs it.
    keys: RwLock<Keys>,
    /// Of who writes the file: from what it reads of the keys until they are those of the file.
    writing: Mutex<()>,
    changing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Locked if there is a file of keys that needs an unlock key, or cannot be read. Blocks.
    pub(super) fn new(dir: &StateDir) -> Self {
        let path = dir.manager_key();
        let keys = match FILE.load::<KeyDocument>(&path) {
            Ok(None) => Keys::None,
            Ok(Some(document)) => document.bare().map_or(Keys::Wrapped, Keys::Held),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the keys of this manager cannot be read");
                Keys::Wrapped
            }
        };
        Self { path, keys: RwLock::new(keys), writing: Mutex::default(), changing: tokio::sync::Mutex::default() }
    }

    pub(super) fn is_locked(&self) -> bool {
        matches!(*read(&self.keys), Keys::Wrapped)
    }

    /// Whether a store of this revision may change the lock: the one that the keys are of was not newer.
    pub(super) fn obeys(&self, revision: Revision) -> bool {
        match &*read(&self.keys) {
            Keys::Held(held) => revision >= held.revision,
            Keys::None | Keys::Wrapped => true,
        }
    }

    /// Whether the log is encrypted.
    pub(super) fn has_keys(&self) -> bool {
        !matches!(*read(&self.keys), Keys::None)
    }

    /// Opens the keys on the disk. Blocks.
    ///
    /// # Errors
    /// [`UnlockError`].
    pub(super) fn unlock(&self, unlock: &UnlockKey, owner: KeyOwner) -> Result<(), UnlockError> {
        let _writing = lock(&self.writing);
        let document = FILE.load::<KeyDocument>(&self.path).map_err(UnlockError::Damaged)?;
        let missing = || UnlockError::Damaged(anyhow::anyhow!("{} is missing", self.path.display()));
        let lock = Lock { unlock: unlock.clone(), owner };
        let held = document.ok_or_else(missing)?.unwrap(lock).map_err(|error| match error {
            StateKeyError::WrongKey => UnlockError::WrongKey,
            StateKeyError::Damaged => UnlockError::Damaged(anyhow::anyhow!(
                "{} {error}: {}",
                self.path.display(),
                FILE.if_damaged.replace("{path}", &self.path.display().to_string())
            )),
        })?;
        *write(&self.keys) = Keys::Held(held);
        Ok(())
    }

    /// Draws a key for files that are to be sealed from now on, unless there is one. Blocks.
    ///
    /// # Errors
    /// The file cannot be written; nothing is sealed then.
    pub(super) fn begin(&self, unlock: Option<UnlockKey>, owner: KeyOwner) -> anyhow::Result<()> {
        let writing = lock(&self.writing);
        let begins = match &*read(&self.keys) {
            Keys::None => true,
            // What it sealed is not secret from who reads the disk.
            Keys::Held(held) => held.lock.is_none() && unlock.is_some(),
            Keys::Wrapped => false,
        };
        if begins { self.draw(&writing, unlock, owner, Revision::default()) } else { Ok(()) }
    }

    /// Of a membership that has ended: nothing is sealed any more. The file is removed with the others.
    pub(super) fn forget(&self) {
        let _writing = lock(&self.writing);
        *write(&self.keys) = Keys::None;
    }

    /// Makes the files those of a swarm with this unlock key, or of one that does not lock its managers, as a store of this revision says,
    /// unless a later one has said otherwise. May be repeated after an error, and after a crash.
    ///
    /// # Errors
    /// A file cannot be written; what is there can be opened as before, or with the wanted key.
    pub(super) async fn change(
        self: &Arc<Self>,
        (wanted, revision): (Option<&UnlockKey>, Revision),
        owner: &KeyOwner,
        files: &CertificateFiles,
        log: &dyn SealedLog,
    ) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        if !self.obeys(revision) {
            return Ok(());
        }
        let change = read(&self.keys).change_to(wanted);
        match change {
            Change::Nothing => return Ok(()),
            Change::Seal => {
                let (keyring, wanted, owner) = (self.clone(), wanted.cloned(), owner.clone());
                blocking(move || keyring.draw(&lock(&keyring.writing), wanted, owner, revision)).await?;
            }
            Change::Finish => {}
        }
        let is_locked = wanted.is_some();
        let key = self.current();
        let (keyring, sealed) = (self.clone(), files.clone());
        blocking(move || {
            let is_done = change == Change::Finish && !keyring.has_previous() && sealed.is_sealed()? == is_locked;
            if !is_done {
                sealed.seal_again()?;
            }
            // What a crash left of a change may be the key in the clear.
            Ok(sealed.remove_leftover()?)
        })
        .await?;
        log.seal_again().await.context("the log was not encrypted again")?;
        let keyring = self.clone();
        blocking(move || keyring.drop_previous(key.as_deref())).await?;
        if change != Change::Finish {
            tracing::info!(locked = is_locked, "this manager's files are encrypted as the swarm's lock requires");
        }
        Ok(())
    }

    /// Ends the keys of a manager that is none any more, before its log is removed: workers are not locked.
    ///
    /// # Errors
    /// A file cannot be written; it may be repeated.
    pub(super) async fn end(self: &Arc<Self>, files: &CertificateFiles) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        if let Keys::Held(held) = &mut *write(&self.keys) {
            held.lock = None;
        }
        let (keyring, files) = (self.clone(), files.clone());
        blocking(move || {
            if files.is_sealed()? {
                files.seal_again()?;
            }
            files.remove_leftover()?;
            keyring.remove()
        })
        .await
    }

    fn has_previous(&self) -> bool {
        matches!(&*read(&self.keys), Keys::Held(held) if !held.previous.is_empty())
    }

    /// A new key beside those that there are; of none that lie wrapped.
    fn draw(
        &self,
        writing: &MutexGuard<'_, ()>,
        unlock: Option<UnlockKey>,
        owner: KeyOwner,
        revision: Revision,
    ) -> anyhow::Result<()> {
        let (previous, before) = match &*read(&self.keys) {
            Keys::Held(held) => ([&held.current].into_iter().chain(&held.previous).cloned().collect(), held.revision),
            Keys::None | Keys::Wrapped => (Vec::new(), Revision::default()),
        };
        let lock = unlock.map(|unlock| Lock { unlock, owner });
        let current = StateKey::draw(&mut rand::rng());
        self.hold(writing, HeldKeys { lock, current, previous, revision: revision.max(before) })
    }

    /// Writes the keys, then uses them.
    fn hold(&self, _writing: &MutexGuard<'_, ()>, held: HeldKeys) -> anyhow::Result<()> {
        FILE.store(&self.path, &KeyDocument::new(FILE.format, &held, &mut rand::rng())?)?;
        *write(&self.keys) = Keys::Held(held);
        Ok(())
    }

    /// Everything is sealed with this key now, if it still is the newest.
    fn drop_previous(&self, key: Option<&str>) -> anyhow::Result<()> {
        let writing = lock(&self.writing);
        let held = match &*read(&self.keys) {
            Keys::Held(held) if !held.previous.is_empty() && key == Some(held.current.id().as_str()) => {
                HeldKeys { previous: Vec::new(), ..held.clone() }
            }
            _ => return Ok(()),
        };
        self.hold(&writing, held)
    }

    /// Removes the keys: nothing is sealed with them. Blocks.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let _writing = lock(&self.writing);
        let path = &self.path;
        let removed = ignore_missing(std::fs::remove_file(path));
        let synced = removed.and_then(|()| path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all()));
        synced.with_context(|| format!("cannot remove {}", path.display()))?;
        *write(&self.keys) = Keys::None;
        Ok(())
    }

    /// Something that a key of this name does.
    fn with_key<T>(&self, id: &str, work: impl FnOnce(&StateKey) -> Result<T, StateKeyError>) -> Result<T, String> {
        let keys = read(&self.keys);
        let held = match &*keys {
            Keys::Held(held) => [&held.current].into_iter().chain(&held.previous).find(|key| key.id() == id),
            Keys::Wrapped => {
                return Err(LOCKED.to_owned());
            }
            Keys::None => None,
        };
        let key = held.ok_or_else(|| {
            format!(
                "it is sealed with a key that {} does not have: the two are not of one moment, or of one node",
                self.path.display()
            )
        })?;
        work(key).map_err(|error| error.to_string())
    }

    /// Name of the key that is used from now on.
    fn current(&self) -> Option<String> {
        match &*read(&self.keys) {
            Keys::Held(held) => Some(held.current.id()),
            Keys::None | Keys::Wrapped => None,
        }
    }

    /// Name of the key that the certificate's key is sealed with; `None` where the swarm does not lock its managers.
    fn lock(&self) -> Option<String> {
        match &*read(&self.keys) {
            Keys::Held(held) if held.lock.is_some() => Some(held.current.id()),
            _ => None,
        }
    }
}

impl LogCipher for Keyring {
    fn key(&self) -> Option<String> {
        self.current()
    }
    fn seal(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        self.with_key(key, |key| key.seal(place, row, &mut rand::rng()))
    }
    fn open(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        self.with_key(key, |key| key.open(place, row)).map(|row| row.expose().clone())
    }
}

async fn blocking(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(work).await?
}

/// What a node's sealed key is bound to.
fn key_place(node: &NodeId) -> String {
    format!("node key {node}")
}

impl KeySealer for Keyring {
    fn seal_key(&self, node: &NodeId, key: &str) -> Result<Option<String>, String> {
        if self.is_locked() {
            return Err("this manager is locked: nothing can be sealed".to_owned());
        }
        let Some(id) = self.lock() else { return Ok(None) };
        let sealed = self.with_key(&id, |with| with.seal(&key_place(node), key.as_bytes(), &mut rand::rng()))?;
        Ok(Some(format!("{id} {}", STANDARD_NO_PAD.encode(sealed))))
    }

    fn open_key(&self, node: &NodeId, sealed: &str) -> Result<Secret<String>, String> {
        let damaged = || StateKeyError::Damaged.to_string();
        let (id, sealed) = sealed.split_once(' ').ok_or_else(damaged)?;
        let sealed = STANDARD_NO_PAD.decode(sealed).map_err(|_| damaged())?;
        let key = self.with_key(id, |with| with.open(&key_place(node), &sealed))?;
        String::from_utf8(key.expose().clone()).map(Secret::new).map_err(|_| damaged())
    }
}

#[cfg(test)]
mod tests;
