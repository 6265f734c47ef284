//! Creates the tasks that services need and writes their desired states: one module per service mode, on top of the
//! slots, the updater and the restart policy. Does not decide where tasks run and which addresses they have.

mod create;
mod global;
mod job;
mod moves;
mod replicated;
pub mod restart;
pub mod slot;
mod slot_plan;
mod update;
mod writes;

use super::limits::BATCH;
use super::settings::ManagerSettings;
use crate::model::{ServiceMode, Timestamp};
use crate::store::{Action, Store};
use rand::Rng;
use slot::ServiceSlots;
use writes::Writes;

/// Tasks to create, and changes of desired states, now.
pub fn plan(store: &Store, now: Timestamp, rng: &mut impl Rng, settings: &ManagerSettings) -> Vec<Action> {
    let mut by_service = slot::tasks_by_service(store);
    let mut out = Writes::new(store, rng, now);
    slot::remove_tasks_without_service(store, &by_service, &mut out);
    for service in store.services() {
        if out.len() >= BATCH {
            break;
        }
        let mut tasks = by_service.remove(&service.id).unwrap_or_default();
        slot::sort_by_age(&mut tasks);
        let mut slots = ServiceSlots::new(store, service, now, settings);
        match &service.spec.mode {
            ServiceMode { global: Some(_), .. } => global::reconcile(&slots, tasks, &mut out),
            ServiceMode { replicated_job: Some(job), .. } => job::replicated(&slots, *job, &tasks, &mut out),
            ServiceMode { global_job: Some(_), .. } => job::global(&slots, tasks, &mut out),
            ServiceMode { .. } => replicated::reconcile(&mut slots, tasks, &mut out),
        }
    }
    out.into_actions()
}
