//! One round of the leader: every planner in order over one snapshot, each with the decisions of those before it applied,
//! and all actions as one transaction. So a new service of thirty tasks is created, addressed and scheduled in one commit.

use super::allocator::{self, QuarantinedAddresses};
use super::autoscaler::{Autoscaler, TaskLoads};
use super::key_changes::KeyChanges;
use super::limits::BATCH;
use super::lowest_applied::LowestApplied;
use super::orchestrator::Orchestrator;
use super::round_scope::{RoundScope, ScopeTracker};
use super::scheduler::Scheduler;
use super::settings::ManagerSettings;
use super::transaction_draft::TransactionDraft;
use super::transaction_limits::{LeftOutObject, ObjectKey, TransactionLimits};
use super::{feature_level, payload_keys, reaper, root_rotation};
use crate::model::{Demand, Timestamp, UnwrittenObject};
use crate::store::{Action, Store};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::time::Duration;

/// Longest time between two full rounds, which look at everything; others look at what has changed ([`super::round_scope`]).
const FULL: Duration = Duration::from_secs(10);
/// The same while something waits for what no object shows: for an address, or because it could not be written. And the longest time
/// between two rounds while a service waits for a time.
const WAITING: Duration = Duration::from_secs(1);

/// Runs rounds, and holds what the leader keeps from one round to the next.
pub struct RoundPlanner {
    settings: ManagerSettings,
    rng: StdRng,
    quarantine: QuarantinedAddresses,
    orchestrator: Orchestrator,
    scheduler: Scheduler,
    autoscaler: Autoscaler,
    key_changes: KeyChanges,
    limits: TransactionLimits,
    scopes: ScopeTracker,
    /// Services that the orchestrator did not come to. They are as the other planners have seen them.
    unplanned: RoundScope,
    next_full: Timestamp,
    last_round: Timestamp,
    /// When the next restart delay ends.
    next_start: Option<Timestamp>,
}

impl RoundPlanner {
    /// The ids of new tasks depend on the seed.
    pub fn new(settings: ManagerSettings, seed: u64) -> Self {
        let (rng, quarantine) = (StdRng::seed_from_u64(seed), QuarantinedAddresses::default());
        Self {
            settings,
            rng,
            quarantine,
            orchestrator: Orchestrator::default(),
            scheduler: Scheduler::default(),
            autoscaler: Autoscaler::default(),
            key_changes: KeyChanges::default(),
            limits: TransactionLimits::default(),
            scopes: ScopeTracker::default(),
            unplanned: RoundScope::default(),
            next_full: Timestamp::default(),
            last_round: Timestamp::default(),
            next_start: None,
        }
    }

    /// Takes what nodes have reported of the connections of tasks, and of clients.
    pub fn observe_loads(&mut self, loads: TaskLoads, demand: Demand) {
        self.autoscaler.observe(loads, demand);
    }

    /// Actions to write now; empty if there is nothing to do. `reports` are the dispatcher's actions on the same snapshot;
    /// `applied` are the lowest revisions that nodes have applied.
    pub fn round(&mut self, store: &Store, reports: Vec<Action>, applied: LowestApplied, now: Timestamp) -> Vec<Action> {
        self.quarantine.observe(store, applied);
        let mut scope = self.scopes.begin(store, self.is_full_due(now));
        for (_, task) in store.delayed_tasks().take_while(|(start, _)| *start <= now) {
            scope.add_service(&task.service_id);
        }
        let mut draft = TransactionDraft::new(store, now);
        draft.add("dispatcher", reports);
        draft.add("feature level", feature_level::plan(draft.state(), now, self.settings.rollback_window));
        // Before the orchestrator, so that a successor is made in the same round.
        draft.add("constraint enforcer", self.scheduler.enforce(draft.state(), now));
        draft.add("root rotation", root_rotation::plan(draft.state(), &mut rand::rng()));
        draft.add("key changes", self.key_changes.plan(store, applied.awaited));
        let vault = self.settings.vault.as_deref();
        draft.add("payload keys", payload_keys::plan(draft.state(), vault, &mut rand::rng()));
        draft.add("autoscaler", self.autoscaler.plan(draft.state(), now));
        scope.add_changes(store, draft.state());
        let mut to_plan = std::mem::take(&mut self.unplanned);
        to_plan.merge(scope.clone());
        let services = self.orchestrator.plan(draft.state(), now, &mut self.rng, &self.settings, &to_plan);
        self.unplanned = RoundScope::of_services(services.unplanned);
        draft.add("orchestrator", services.actions);
        scope.add_changes(store, draft.state());
        draft.add("allocator", allocator::plan(draft.state(), now, &mut self.quarantine, &scope));
        draft.add("scheduler", self.scheduler.plan(draft.state(), now));
        scope.add_changes(store, draft.state());
        let reaped = reaper::plan(draft.state(), now, &self.settings, &scope);
        let is_cut = reaped.len() >= BATCH;
        draft.add("reaper", reaped);
        let is_starved = draft.state().new_tasks().any(|task| !task.status.err.is_empty());
        let planned = draft.finish(store);
        let actions = self.limits.fit(store, planned, now);
        let is_cut = is_cut || self.limits.has_cut();
        if scope.is_full() && !is_cut {
            self.next_full = now.plus(FULL);
        }
        if is_starved || !self.limits.left_out().is_empty() {
            self.next_full = self.next_full.min(now.plus(WAITING));
        }
        self.last_round = now;
        self.next_start = store.delayed_tasks().map(|(start, _)| start).find(|start| *start > now);
        let rest = if is_cut { scope.clone() } else { RoundScope::default() };
        let unwritten = if actions.is_empty() { RoundScope::default() } else { scope };
        self.scopes.planned(unwritten, rest);
        actions
    }

    /// True if everything is to be looked at, not only what has changed. Also if the clock was set back.
    fn is_full_due(&self, now: Timestamp) -> bool {
        now >= self.next_full || self.next_full.since(now) > FULL
    }

    /// The actions of the last round were written.
    pub fn written(&mut self) {
        self.limits.written();
        self.scopes.written();
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

    /// True if a round may have something to do although the store did not change: a restart delay has passed, a service waits for a
    /// time, or is scaled by load, addresses are quarantined, the last round did not come to everything, or the last full one was long ago.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let waited = now < self.last_round || now.since(self.last_round) >= WAITING;
        self.is_full_due(now)
            || ((self.orchestrator.is_waiting() || self.autoscaler.is_waiting()) && waited)
            || self.next_start.is_some_and(|start| now >= start)
            || self.quarantine.is_waiting()
            || self.key_changes.is_waiting()
            || self.scopes.has_rest()
            || self.unplanned != RoundScope::default()
    }
}
