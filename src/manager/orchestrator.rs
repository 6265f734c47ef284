//! Creates the tasks that services need and writes their desired states: one module per service mode, on top of the
//! slots and the restart policy. Does not decide where tasks run and which addresses they have.

mod replicated;
pub mod restart;
pub mod slot;

use super::limits::BATCH;
use super::settings::ManagerSettings;
use crate::model::Timestamp;
use crate::store::{Action, Store};
use rand::Rng;
use slot::ServiceSlots;

/// Tasks to create, and changes of desired states, now.
pub fn plan(store: &Store, now: Timestamp, rng: &mut impl Rng, settings: &ManagerSettings) -> Vec<Action> {
    let mut by_service = slot::tasks_by_service(store);
    let mut out = slot::remove_tasks_without_service(store, &by_service);
    for service in store.services() {
        if out.len() >= BATCH {
            break;
        }
        let mut tasks = by_service.remove(&service.id).unwrap_or_default();
        slot::sort_by_age(&mut tasks);
        replicated::reconcile(&ServiceSlots { store, service, now, settings }, &tasks, rng, &mut out);
    }
    out
}
