//! The planners and the dispatcher while this manager leads: one step takes everything that has happened since the last one.
//! Synchronous, and free to take its time: no node waits for it.

use super::dispatcher::{Dispatcher, Event};
use super::liveness::LivenessSnapshot;
use super::round::RoundPlanner;
use super::session::Effect;
use super::settings::ManagerSettings;
use crate::model::{Revision, Timestamp, UnwrittenObject};
use crate::store::{ProposeError, Store, StoreError, Transaction};
use std::sync::Arc;

/// The state of the planning loop.
pub(super) struct Term {
    dispatcher: Dispatcher,
    planner: RoundPlanner,
    store: Arc<Store>,
    liveness: Arc<LivenessSnapshot>,
    /// A round may have something to do.
    round_due: bool,
}

/// What has happened since the last step.
pub(super) struct StepInput {
    pub now: Timestamp,
    pub store: Arc<Store>,
    pub events: Vec<Event>,
    pub liveness: Arc<LivenessSnapshot>,
    pub is_tick: bool,
    /// How the write that was in flight ended.
    pub outcome: Option<Result<u64, ProposeError>>,
    /// No write is in flight.
    pub may_write: bool,
}

/// What is to be done after a step.
pub(super) struct StepOutput {
    pub effects: Vec<Effect>,
    pub write: Option<Transaction>,
    /// Lowest revision that every live node has applied.
    pub applied: Revision,
    /// Objects that cannot be written.
    pub left_out: Vec<UnwrittenObject>,
}

impl Term {
    pub(super) fn new(settings: &ManagerSettings, store: Arc<Store>, now: Timestamp, seed: u64) -> Self {
        Self {
            dispatcher: Dispatcher::new(settings.clone(), store.clone(), now),
            planner: RoundPlanner::new(settings.clone(), seed),
            store,
            liveness: Arc::default(),
            round_due: true,
        }
    }

    pub(super) fn step(&mut self, input: StepInput) -> StepOutput {
        let StepInput { now, store, events, liveness, is_tick, outcome, may_write } = input;
        if let Some(outcome) = outcome {
            self.write_finished(outcome, now);
        }
        if !Arc::ptr_eq(&self.store, &store) {
            self.store = store.clone();
            self.round_due = true;
            self.dispatcher.handle(now, Event::StoreChanged(store));
        }
        for event in events {
            self.round_due = true;
            self.dispatcher.handle(now, event);
        }
        if !Arc::ptr_eq(&self.liveness, &liveness) {
            // What a node has applied alone gives the planners nothing to do.
            self.round_due |= verdicts_differ(&self.liveness, &liveness);
            self.liveness = liveness.clone();
            self.dispatcher.handle(now, Event::Liveness(liveness));
        }
        if is_tick {
            self.dispatcher.handle(now, Event::Tick);
            self.round_due |= self.planner.is_due(now) || !self.dispatcher.plan(&self.store, now).is_empty();
        }
        let effects = self.dispatcher.views(now);
        let mut write = None;
        if self.round_due && may_write {
            self.round_due = false;
            let reports = self.dispatcher.plan(&self.store, now);
            self.planner.observe_loads(self.dispatcher.loads(), self.dispatcher.demand());
            let actions = self.planner.round(&self.store, reports, self.dispatcher.lowest_applied(now), now);
            write = (!actions.is_empty()).then(|| Transaction::new(now, actions).planned_from(self.store.index()));
        }
        StepOutput { effects, write, applied: self.dispatcher.applied(now), left_out: self.planner.left_out(&self.store) }
    }

    /// After a failure that is not a refusal the next change or tick plans again.
    fn write_finished(&mut self, outcome: Result<u64, ProposeError>, now: Timestamp) {
        match outcome {
            Ok(_) => {
                self.planner.written();
                self.round_due = true;
            }
            // An earlier plan of this manager was applied after all. Nothing is wrong with the objects of this one.
            Err(ProposeError::Refused(error @ StoreError::StalePlan)) => {
                tracing::debug!(%error, "planning again");
                self.round_due = true;
            }
            // Another writer was first, or the plan is larger than an entry of the log.
            Err(error @ (ProposeError::Refused(_) | ProposeError::TooLarge(_))) => {
                tracing::debug!(%error, "planning again");
                self.planner.refused(&self.store, &error.to_string(), now);
                self.round_due = true;
            }
            Err(error) => tracing::warn!(%error, "the plan could not be written, trying again"),
        }
    }
}

fn verdicts_differ(a: &LivenessSnapshot, b: &LivenessSnapshot) -> bool {
    !a.nodes.values().map(|node| &node.verdict).eq(b.nodes.values().map(|node| &node.verdict))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::{Replicated, ServiceMode};
    use crate::model::{ServiceSpec, fixture};
    use crate::store::{Action, PlanBase};

    fn store() -> Arc<Store> {
        let mode = ServiceMode { replicated: Some(Replicated { replicas: Some(1) }), ..ServiceMode::default() };
        let spec = ServiceSpec { name: "web".to_owned(), mode, ..ServiceSpec::default() };
        let service = fixture::service("web", spec);
        let mut store = Store::default();
        store.apply(9, &Transaction::new(Timestamp(1), vec![Action::create(service)])).expect("created");
        Arc::new(store)
    }

    fn steps_refused_with(error: impl Fn() -> ProposeError) -> StepOutput {
        let store = store();
        let mut term = Term::new(&ManagerSettings::default(), store.clone(), Timestamp(2), 1);
        let mut step = |outcome| {
            let (now, liveness) = (Timestamp(2), Arc::default());
            term.step(StepInput {
                now,
                store: store.clone(),
                events: Vec::new(),
                liveness,
                is_tick: false,
                outcome,
                may_write: true,
            })
        };
        let mut output = step(None);
        for _ in 0..10 {
            let base = output.write.and_then(|transaction| transaction.plan);
            assert_eq!(base, Some(PlanBase { index: 9, term: 0 }), "planned from the state that it saw");
            output = step(Some(Err(error())));
            if !output.left_out.is_empty() {
                break;
            }
        }
        output
    }

    #[test]
    fn a_stale_plan_is_planned_again_and_no_object_is_left_out_for_it() {
        let output = steps_refused_with(|| StoreError::StalePlan.into());
        assert!(output.left_out.is_empty() && output.write.is_some(), "{:?}", output.left_out);
        let output = steps_refused_with(|| StoreError::OutOfSequence.into());
        assert!(!output.left_out.is_empty(), "another refusal again and again is that of an object");
        let output = steps_refused_with(|| ProposeError::TooLarge("9 MiB".to_owned()));
        assert!(!output.left_out.is_empty(), "also one of an entry that is too large");
    }
}
