//! Creates the tasks that services need and writes their desired states: one module per service mode, on top of the
//! slots, the updater and the restart policy. Does not decide where tasks run and which addresses they have.
//!
//! A round plans the services of which something has changed, and those whose plan may change with time alone.

mod create;
mod global;
mod job;
mod moves;
mod replicated;
pub mod restart;
mod service_ports;
mod serving;
pub mod slot;
mod slot_plan;
mod update;
mod writes;

use super::limits::BATCH;
use super::round_scope::RoundScope;
use super::settings::ManagerSettings;
use crate::model::{Service, ServiceId, ServiceMode, Timestamp};
use crate::store::{Action, Store};
use rand::Rng;
use slot::ServiceSlots;
use std::collections::BTreeSet;
use writes::Writes;

/// Plans, and remembers which services depend on time. That follows from the state of each service when it was planned last, and
/// a service is planned again when anything of it changes: a new leader's first round plans all of them.
#[derive(Default)]
pub struct Orchestrator {
    /// Services whose plan may be another one at a later time although nothing of them changes.
    waiting: BTreeSet<ServiceId>,
}

/// What a round of the orchestrator results in.
pub struct ServicePlans {
    pub actions: Vec<Action>,
    /// Services that the round did not come to, or not to the end of.
    pub unplanned: Vec<ServiceId>,
}

impl Orchestrator {
    /// Tasks to create, and changes of desired states, now: of the services of the scope, and of those that wait for a time. Stops at
    /// the end of a service once there are [`BATCH`] writes.
    pub fn plan(
        &mut self,
        store: &Store,
        now: Timestamp,
        rng: &mut impl Rng,
        settings: &ManagerSettings,
        scope: &RoundScope,
    ) -> ServicePlans {
        let mut out = Writes::new(store, rng, now);
        let ids: BTreeSet<ServiceId> = scope.service_ids(store).chain(self.waiting.iter().cloned()).collect();
        let (existing, removed): (Vec<ServiceId>, Vec<ServiceId>) = ids.into_iter().partition(|id| store.service(id).is_some());
        let mut unplanned = Vec::new();
        for id in removed.into_iter().chain(existing) {
            if out.len() >= BATCH {
                unplanned.push(id);
                continue;
            }
            let waits = if let Some(service) = store.service(&id) {
                plan_service(store, service, now, settings, &mut out)
            } else {
                slot::remove_tasks_of(store, &id, &mut out);
                false
            };
            let _ = if waits { self.waiting.insert(id.clone()) } else { self.waiting.remove(&id) };
            if out.len() >= BATCH {
                unplanned.push(id);
            }
        }
        ServicePlans { actions: out.into_actions(), unplanned }
    }

    /// True if time alone may give it something to do.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Plans for a service. True if time alone may change the plan.
fn plan_service(
    store: &Store,
    service: &Service,
    now: Timestamp,
    settings: &ManagerSettings,
    out: &mut Writes<impl Rng>,
) -> bool {
    let tasks = slot::tasks_by_slot(store, &service.id);
    let mut slots = ServiceSlots::new(store, service, now, settings);
    let waits = slots.depend_on_time(&tasks);
    match &service.spec.mode {
        ServiceMode { global: Some(_), .. } => global::reconcile(&slots, tasks, out),
        ServiceMode { replicated_job: Some(job), .. } => job::replicated(&slots, *job, &tasks, out),
        ServiceMode { global_job: Some(_), .. } => job::global(&slots, tasks, out),
        ServiceMode { .. } => replicated::reconcile(&mut slots, tasks, out),
    }
    waits
}
