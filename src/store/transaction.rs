//! What a proposer asks of the store: writes, and what must hold for them.

use super::condition::Condition;
use super::object::{Action, Store, StoreError};
use crate::model::Timestamp;
use serde::{Deserialize, Serialize};

/// Newest rules of [`super::Store::apply`].
const RULES: u32 = 1;

/// Writes that are applied together or not at all.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// The proposer's clock. Part of the transaction because [`super::Store::apply`] reads no clock.
    pub at: Timestamp,
    /// Applied in this order.
    pub actions: Vec<Action>,
    /// Checked in the state before the first action.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require: Vec<Condition>,
    /// Set if a planner of the leader made this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanBase>,
    /// Which rules apply: an entry of an earlier build is applied as that build did. 1: the time does not go back.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rules: u32,
}

/// What a plan was made from. It is refused if another plan was applied since: the planners did not see what that one did,
/// and would do it again. That happens when a proposal timed out and is applied after all.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct PlanBase {
    /// Raft index of the state that the planners saw.
    pub index: u64,
    /// Raft term in which it was proposed.
    pub term: u64,
}

impl Transaction {
    /// Writes without conditions.
    #[must_use]
    pub fn new(at: Timestamp, actions: Vec<Action>) -> Self {
        Self { at, actions, require: Vec::new(), plan: None, rules: RULES }
    }
    /// The same writes, if these conditions hold when they are applied.
    #[must_use]
    pub fn require(mut self, conditions: impl IntoIterator<Item = Condition>) -> Self {
        self.require.extend(conditions);
        self
    }
    /// The same writes, as a plan made from the state at this index.
    #[must_use]
    pub fn planned_from(mut self, index: u64) -> Self {
        self.plan = Some(PlanBase { index, term: 0 });
        self
    }
}

impl Transaction {
    /// The same writes as earlier builds read them: conditions and fields are resolved here and now, on the state of the
    /// proposer.
    ///
    /// # Errors
    /// A condition that does not hold, a write that cannot be resolved.
    pub fn resolved(&self, store: &Store) -> Result<Self, StoreError> {
        for condition in &self.require {
            condition.check(store)?;
        }
        let mut scratch = store.clone();
        let mut actions: Vec<Action> = Vec::new();
        for action in &self.actions {
            let next = match action {
                Action::Set(update) => match update.resolve(store, &scratch)? {
                    Some(object) => Action::Update(object),
                    None => continue,
                },
                other => other.clone(),
            };
            scratch.apply(store.index(), &Self { at: self.at, actions: vec![next.clone()], ..Self::default() })?;
            let written = actions.iter_mut().rev().find(|a| a.target() == next.target());
            match (written, next) {
                // Written twice: once, with the last state.
                (Some(Action::Create(before) | Action::Update(before)), Action::Update(mut next)) => {
                    *next.meta_mut() = *before.meta_mut();
                    *before = next;
                }
                (_, next) => actions.push(next),
            }
        }
        Ok(Self { at: self.at, actions, ..Self::default() })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(rules: &u32) -> bool {
    *rules == 0
}
