//! The keys of a manager's files while the swarm locks its managers. `manager.key` has a key of this node's own, wrapped with the
//! swarm's unlock key; with it the log and the private key of the certificate are encrypted. The unlock key itself is nowhere on the
//! disk: it is in the log, and given by the user after a start.
//!
//! Each change of the unlock key draws a new key for the files too, so that what an old copy of `manager.key` opens is as old as it
//! is. The order of the writes leaves files after a crash at any point that the newest unlock key opens: first `manager.key` with the
//! new key and those before it, then what is sealed, then `manager.key` without the old ones. A change that did not come to its end leaves
//! its key among those, whatever change follows.

use super::state_dir::StateDir;
use crate::durable::{DocumentFile, UnknownFields, ignore_missing};
use crate::model::{ClusterId, NodeId, Secret};
use crate::raft::LogCipher;
use crate::sync::{read, write};
use crate::trust::{CertificateFiles, KeySealer, StateKey, StateKeyError, UnlockKey, WrappedKeys};
use anyhow::Context as _;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

const FILE: DocumentFile = DocumentFile {
    name: "the wrapped keys of this manager",
    format: 1,
    unknown_fields: UnknownFields::Refused,
    if_damaged: "restore {path} from a backup of this node; if other managers are up, run `docker swarm leave --force` here and join \
                 again instead",
};

#[derive(Serialize, Deserialize)]
struct KeyDocument {
    format: u32,
    #[serde(flatten)]
    keys: WrappedKeys,
}

/// Why a manager is not unlocked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnlockError {
    #[error("invalid key provided")]
    WrongKey,
    #[error("{0:#}")]
    Damaged(anyhow::Error),
}

/// Whose keys they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct KeyOwner {
    pub cluster: ClusterId,
    pub node: NodeId,
}

/// The keys in memory.
struct HeldKeys {
    owner: KeyOwner,
    unlock: UnlockKey,
    current: StateKey,
    /// What some of the files may still be sealed with.
    previous: Vec<StateKey>,
    /// Whether what is written is sealed. Not while the lock is taken off.
    seals: bool,
}

enum Keys {
    /// Nothing is sealed.
    None,
    /// They lie wrapped on the disk.
    Wrapped,
    Held(HeldKeys),
}

/// What is to be done with the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Change {
    Nothing,
    /// All is sealed with the newest key, but perhaps not yet.
    Finish,
    /// A new key, wrapped with the wanted unlock key.
    Seal,
    /// Nothing is sealed any more.
    Open,
}

impl Keys {
    fn change_to(&self, wanted: Option<&UnlockKey>) -> Change {
        match (self, wanted) {
            (Self::Wrapped, _) | (Self::None, None) => Change::Nothing,
            (Self::Held(held), Some(wanted)) if held.unlock == *wanted && held.seals => Change::Finish,
            (Self::None | Self::Held(_), Some(_)) => Change::Seal,
            (Self::Held(_), None) => Change::Open,
        }
    }
}

/// A log that can be encrypted again while it is in use.
#[async_trait]
pub(super) trait SealedLog: Send + Sync {
    /// Encrypts the log as the keyring says now, if it is not, and removes what an earlier attempt left.
    async fn seal_again(&self) -> anyhow::Result<()>;
}

/// The log of a manager that is none any more.
pub(super) struct NoLog;

#[async_trait]
impl SealedLog for NoLog {
    async fn seal_again(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// This node's keys.
pub(super) struct Keyring {
    path: PathBuf,
    keys: RwLock<Keys>,
    changing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Keyring {
    /// Locked if there is a file of keys.
    pub(super) fn new(dir: &StateDir) -> Self {
        let path = dir.manager_key();
        let keys = if path.exists() { Keys::Wrapped } else { Keys::None };
        Self { path, keys: RwLock::new(keys), changing: tokio::sync::Mutex::default() }
    }

    pub(super) fn is_locked(&self) -> bool {
        matches!(*read(&self.keys), Keys::Wrapped)
    }

    /// Opens the keys on the disk. Blocks.
    ///
    /// # Errors
    /// [`UnlockError`].
    pub(super) fn unlock(&self, unlock: &UnlockKey, owner: KeyOwner) -> Result<(), UnlockError> {
        let document = FILE.load::<KeyDocument>(&self.path).map_err(UnlockError::Damaged)?;
        let missing = || UnlockError::Damaged(anyhow::anyhow!("{} is missing", self.path.display()));
        let wrapped = document.ok_or_else(missing)?.keys;
        let keys = wrapped.unwrap(unlock, (&owner.cluster, &owner.node)).map_err(|error| match error {
            StateKeyError::WrongKey => UnlockError::WrongKey,
            StateKeyError::Damaged => UnlockError::Damaged(anyhow::anyhow!(
                "{} {error}: {}",
                self.path.display(),
                FILE.if_damaged.replace("{path}", &self.path.display().to_string())
            )),
        })?;
        let mut keys = keys.into_iter();
        let current = keys.next().ok_or_else(missing)?;
        let held = HeldKeys { owner, unlock: unlock.clone(), current, previous: keys.collect(), seals: true };
        *write(&self.keys) = Keys::Held(held);
        Ok(())
    }

    /// Draws a key for files that are to be sealed from now on, unless there is one. Blocks.
    ///
    /// # Errors
    /// The file cannot be written; nothing is sealed then.
    pub(super) fn begin(&self, unlock: &UnlockKey, owner: KeyOwner) -> anyhow::Result<()> {
        if !matches!(*read(&self.keys), Keys::None) {
            return Ok(());
        }
        let current = StateKey::draw(&mut rand::rng());
        self.hold(HeldKeys { owner, unlock: unlock.clone(), current, previous: Vec::new(), seals: true })
    }

    /// Of a membership that has ended: nothing is sealed any more. The file is removed with the others.
    pub(super) fn forget(&self) {
        *write(&self.keys) = Keys::None;
    }

    /// Makes the files those of a swarm with this unlock key, or of one that does not lock its managers. May be repeated after an error,
    /// and after a crash.
    ///
    /// # Errors
    /// A file cannot be written; what is there can be opened as before, or with the wanted key.
    pub(super) async fn change(
        self: &Arc<Self>,
        wanted: Option<&UnlockKey>,
        owner: &KeyOwner,
        files: &CertificateFiles,
        log: &dyn SealedLog,
    ) -> anyhow::Result<()> {
        let _changing = self.changing.lock().await;
        let change = read(&self.keys).change_to(wanted);
        match (change, wanted) {
            (Change::Nothing, _) => return Ok(()),
            (Change::Seal, Some(wanted)) => {
                let previous = match &*read(&self.keys) {
                    Keys::Held(held) => [&held.current].into_iter().chain(&held.previous).cloned().collect(),
                    Keys::None | Keys::Wrapped => Vec::new(),
                };
                let current = StateKey::draw(&mut rand::rng());
                let held = HeldKeys { owner: owner.clone(), unlock: wanted.clone(), current, previous, seals: true };
                let keyring = self.clone();
                blocking(move || keyring.hold(held)).await?;
            }
            (Change::Open, _) => {
                if let Keys::Held(held) = &mut *write(&self.keys) {
                    held.seals = false;
                }
            }
            (Change::Finish | Change::Seal, _) => {}
        }
        let sealed = change != Change::Open;
        let (keyring, files) = (self.clone(), files.clone());
        blocking(move || {
            let is_done = change == Change::Finish && !keyring.has_previous() && files.is_sealed()?;
            if !is_done {
                files.seal_again()?;
            }
            // What a crash left of a change may be the key in the clear.
            Ok(files.remove_leftover()?)
        })
        .await?;
        log.seal_again().await.context("the log was not encrypted again")?;
        let keyring = self.clone();
        blocking(move || if sealed { keyring.drop_previous() } else { keyring.remove() }).await?;
        if change != Change::Finish {
            tracing::info!(locked = sealed, "this manager's files are encrypted as the swarm's lock requires");
        }
        Ok(())
    }

    fn has_previous(&self) -> bool {
        matches!(&*read(&self.keys), Keys::Held(held) if !held.previous.is_empty())
    }

    /// Writes the keys, then uses them.
    fn hold(&self, held: HeldKeys) -> anyhow::Result<()> {
        let keys: Vec<&StateKey> = [&held.current].into_iter().chain(&held.previous).collect();
        let owner = (&held.owner.cluster, &held.owner.node);
        let wrapped = WrappedKeys::wrap(&held.unlock, owner, &keys, &mut rand::rng())?;
        FILE.store(&self.path, &KeyDocument { format: FILE.format, keys: wrapped })?;
        *write(&self.keys) = Keys::Held(held);
        Ok(())
    }

    /// What was sealed with the key before is sealed again.
    fn drop_previous(&self) -> anyhow::Result<()> {
        let held = match &*read(&self.keys) {
            Keys::Held(held) if !held.previous.is_empty() => HeldKeys {
                owner: held.owner.clone(),
                unlock: held.unlock.clone(),
                current: held.current.clone(),
                previous: Vec::new(),
                seals: held.seals,
            },
            _ => return Ok(()),
        };
        self.hold(held)
    }

    /// Removes the keys: nothing is sealed with them. Blocks.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let path = &self.path;
        let removed = ignore_missing(std::fs::remove_file(path));
        let synced = removed.and_then(|()| path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all()));
        synced.with_context(|| format!("cannot remove {}", path.display()))?;
        self.forget();
        Ok(())
    }

    /// Something that a key of this name does.
    fn with_key<T>(&self, id: &str, work: impl FnOnce(&StateKey) -> Result<T, StateKeyError>) -> Result<T, String> {
        let keys = read(&self.keys);
        let held = match &*keys {
            Keys::Held(held) => [&held.current].into_iter().chain(&held.previous).find(|key| key.id() == id),
            Keys::None | Keys::Wrapped => None,
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
            Keys::Held(held) if held.seals => Some(held.current.id()),
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
        let Some(id) = self.current() else { return Ok(None) };
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
