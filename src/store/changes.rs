//! What an applied transaction has changed, for those who follow the store instead of reading all of it.

use super::object::{Action, Change, Store};
use std::collections::BTreeSet;

/// The changes of one transaction: each object once, in the order of its first write. None if it was refused.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    /// Raft index of the transaction.
    pub index: u64,
    pub changes: Vec<Change>,
}

impl Changes {
    /// A transaction that was refused.
    #[must_use]
    pub fn none(index: u64) -> Self {
        Self { index, changes: Vec::new() }
    }

    pub(super) fn between(before: &Store, after: &Store, actions: &[Action]) -> Self {
        let mut seen = BTreeSet::new();
        let targets = actions.iter().map(Action::target).filter(|target| seen.insert(target.clone()));
        let changes = targets.filter_map(|(kind, id)| kind.change(before, after, &id)).collect();
        Self { index: after.index(), changes }
    }
}
