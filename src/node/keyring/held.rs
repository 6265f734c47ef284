//! Keys in memory and in their file, and what a lock that is wanted makes of them. Pure.

use crate::model::{ClusterId, NodeId, Revision};
use crate::trust::{StateKey, StateKeyError, StoredKeys, UnlockKey};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Whose keys they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) struct KeyOwner {
    pub cluster: ClusterId,
    pub node: NodeId,
}

/// What wraps the keys of a swarm that locks its managers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lock {
    pub unlock: UnlockKey,
    pub owner: KeyOwner,
}

/// The keys in memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeldKeys {
    pub lock: Option<Lock>,
    pub current: StateKey,
    /// What some of the files may still be sealed with.
    pub previous: Vec<StateKey>,
    /// Of the store whose lock this is; zero if no store has said so.
    pub revision: Revision,
}

pub(super) enum Keys {
    /// Nothing is sealed.
    None,
    /// They lie wrapped on the disk.
    Wrapped,
    Held(HeldKeys),
}

/// What is to be done with the files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    Nothing,
    /// All is sealed with the newest key, but perhaps not yet.
    Finish,
    /// A new key, wrapped with the wanted unlock key if there is one.
    Seal,
}

impl Keys {
    pub(super) fn change_to(&self, wanted: Option<&UnlockKey>) -> Change {
        match self {
            Self::Wrapped => Change::Nothing,
            Self::Held(held) if held.lock.as_ref().map(|lock| &lock.unlock) == wanted => Change::Finish,
            Self::None | Self::Held(_) => Change::Seal,
        }
    }
}

/// The content of `manager.key`.
#[derive(Serialize, Deserialize)]
pub(super) struct KeyDocument {
    format: u32,
    #[serde(default)]
    revision: Revision,
    #[serde(flatten)]
    keys: StoredKeys,
}

impl KeyDocument {
    /// `rng` must be cryptographically secure.
    pub(super) fn new(format: u32, held: &HeldKeys, rng: &mut impl Rng) -> Result<Self, StateKeyError> {
        let keys: Vec<&StateKey> = [&held.current].into_iter().chain(&held.previous).collect();
        let keys = match &held.lock {
            Some(Lock { unlock, owner }) => StoredKeys::wrap(unlock, (&owner.cluster, &owner.node), &keys, rng)?,
            None => StoredKeys::bare(&keys),
        };
        Ok(Self { format, revision: held.revision, keys })
    }

    /// The keys that need no unlock key; `None` if these do, or are damaged.
    pub(super) fn bare(&self) -> Option<HeldKeys> {
        self.held(self.keys.read().ok()?, None)
    }

    pub(super) fn unwrap(&self, lock: Lock) -> Result<HeldKeys, StateKeyError> {
        if !self.keys.is_wrapped() {
            return Err(StateKeyError::Damaged);
        }
        let keys = self.keys.unwrap(&lock.unlock, (&lock.owner.cluster, &lock.owner.node))?;
        self.held(keys, Some(lock)).ok_or(StateKeyError::Damaged)
    }

    fn held(&self, keys: Vec<StateKey>, lock: Option<Lock>) -> Option<HeldKeys> {
        let mut keys = keys.into_iter();
        let current = keys.next()?;
        Some(HeldKeys { lock, current, previous: keys.collect(), revision: self.revision })
    }
}
