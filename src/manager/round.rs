//! One round of the leader: every planner in order over one snapshot, each with the decisions of those before it applied,
//! and all actions as one transaction. So a new service of thirty tasks is created, addressed and scheduled in one commit.

use super::allocator::{self, QuarantinedAddresses};
use super::lowest_applied::LowestApplied;
use super::settings::ManagerSettings;
use super::transaction_limits::{LeftOutObject, ObjectKey, TransactionLimits};
use super::{feature_level, orchestrator, reaper, scheduler};
use crate::model::{Timestamp, UnwrittenObject};
use crate::store::{Action, Kind, Store, Transaction};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest time between rounds while nothing changes.
const IDLE: Duration = Duration::from_secs(1);

/// Runs rounds, and holds what the leader keeps from one round to the next.
pub struct RoundPlanner {
    settings: ManagerSettings,
    rng: StdRng,
    quarantine: QuarantinedAddresses,
    limits: TransactionLimits,
    /// Before this time no round has anything to do unless the store changes.
    wake: Timestamp,
}

impl RoundPlanner {
    /// The ids of new tasks depend on the seed.
    pub fn new(settings: ManagerSettings, seed: u64) -> Self {
        let (rng, quarantine) = (StdRng::seed_from_u64(seed), QuarantinedAddresses::default());
        Self { settings, rng, quarantine, limits: TransactionLimits::default(), wake: Timestamp::default() }
    }

    /// Actions to write now; empty if there is nothing to do. `reports` are the dispatcher's actions on the same snapshot;
    /// `applied` are the lowest revisions that nodes have applied.
    pub fn round(&mut self, store: &Store, reports: Vec<Action>, applied: LowestApplied, now: Timestamp) -> Vec<Action> {
        self.quarantine.observe(store, applied);
        let mut draft = TransactionDraft { scratch: Cow::Borrowed(store), now, writes: BTreeMap::new(), order: Vec::new() };
        draft.add("dispatcher", reports);
        draft.add("feature level", feature_level::plan(&draft.scratch, now, self.settings.rollback_window));
        draft.add("orchestrator", orchestrator::plan(&draft.scratch, now, &mut self.rng, &self.settings));
        draft.add("allocator", allocator::plan(&draft.scratch, now, &mut self.quarantine));
        draft.add("scheduler", scheduler::plan(&draft.scratch, now));
        draft.add("reaper", reaper::plan(&draft.scratch, now, &self.settings));
        let actions = self.limits.fit(store, draft.finish(store), now);
        if actions.is_empty() {
            self.wake = next_start(store, now).map_or(now.plus(IDLE), |start| start.min(now.plus(IDLE)));
        }
        actions
    }

    /// The actions of the last round were written.
    pub fn written(&mut self) {
        self.limits.written();
    }

    /// The store refused the actions of the last round.
    pub fn refused(&mut self, store: &Store, reason: &str, now: Timestamp) {
        self.limits.refused(store, reason, now);
    }

    /// Objects that cannot be written and are left out.
    pub fn left_out(&self, store: &Store) -> Vec<UnwrittenObject> {
        let unwritten = |((kind, id), object): (&ObjectKey, &LeftOutObject)| {
            let service = object.service_id.as_ref().and_then(|id| store.service(id));
            UnwrittenObject {
                kind: kind.to_string(),
                id: id.clone(),
                service_id: object.service_id.clone(),
                service_name: service.map(|s| s.spec.name.clone()).unwrap_or_default(),
                reason: object.reason.clone(),
            }
        };
        self.limits.left_out().iter().map(unwritten).collect()
    }

    /// True if a round may have something to do although the store did not change: a restart delay has passed, addresses
    /// are quarantined, or the last round was [`IDLE`] ago.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.wake || self.wake.since(now) > IDLE || self.quarantine.is_waiting()
    }
}

/// Earliest time at which a task's restart delay ends.
fn next_start(store: &Store, now: Timestamp) -> Option<Timestamp> {
    store.tasks().filter(|t| t.is_wanted()).filter_map(|t| t.not_before).filter(|t| *t > now).min()
}

/// The actions so far, and the state that results from them.
struct TransactionDraft<'a> {
    scratch: Cow<'a, Store>,
    now: Timestamp,
    writes: BTreeMap<ObjectKey, Action>,
    /// Keys in the order of their first action.
    order: Vec<ObjectKey>,
}

impl TransactionDraft<'_> {
    fn add(&mut self, planner: &'static str, actions: Vec<Action>) {
        if actions.is_empty() {
            return;
        }
        tracing::debug!(planner, actions = actions.len(), "planned");
        let transaction = Transaction::new(self.now, actions);
        let index = self.scratch.index() + 1;
        if let Err(error) = self.scratch.to_mut().apply(index, &transaction) {
            // A planner contradicts its own snapshot: a bug, which must stop neither the other planners nor the rest of this plan.
            tracing::error!(planner, %error, "plan does not fit its snapshot: only the part of it that does is carried out");
            return self.add_one_by_one(transaction.actions);
        }
        for action in transaction.actions {
            self.merge(action);
        }
    }

    fn add_one_by_one(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (index, one) = (self.scratch.index() + 1, Transaction::new(self.now, vec![action]));
            let applied = self.scratch.to_mut().apply(index, &one).is_ok();
            one.actions.into_iter().filter(|_| applied).for_each(|action| self.merge(action));
        }
    }

    /// Writes each object once per transaction: its last state, with the verb of its first action.
    fn merge(&mut self, action: Action) {
        let key = action.target();
        let merged = match (self.writes.remove(&key), action) {
            // The scratch state has the field.
            (Some(Action::Create(_)), Action::Set(_)) => key.0.stored(&self.scratch, &key.1).map(Action::Create),
            (Some(Action::Update(_) | Action::Set(_)), Action::Set(_)) => key.0.stored(&self.scratch, &key.1).map(Action::Update),
            (Some(Action::Create(_)), Action::Update(object)) => Some(Action::Create(object)),
            (Some(Action::Create(_)), Action::Remove(..)) => None,
            (_, action) => Some(action),
        };
        if let Some(merged) = merged {
            if !self.order.contains(&key) {
                self.order.push(key.clone());
            }
            self.writes.insert(key, merged);
        }
    }

    fn finish(mut self, base: &Store) -> Vec<Action> {
        let mut out = Vec::new();
        let mut any_change = false;
        for key in &self.order {
            let Some(mut action) = self.writes.remove(key) else { continue };
            if let Action::Create(object) | Action::Update(object) = &mut action {
                *object.meta_mut() = key.0.stored_meta(base, &key.1).unwrap_or_default();
            }
            let unchanged = matches!(&action, Action::Update(object) if object.is_stored(base));
            // An unchanged network is the version guard of its addresses; any other unchanged object is left out.
            if unchanged && key.0 != Kind::Network {
                continue;
            }
            any_change |= !unchanged;
            out.push(action);
        }
        if any_change { out } else { Vec::new() }
    }
}
