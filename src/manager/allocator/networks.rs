//! Which networks a service and its tasks are attached to.

use crate::model::{Network, NetworkId, Service, Task, TaskSpec};
use crate::store::Store;

/// The network that carries traffic of published ports.
pub fn ingress(store: &Store) -> Option<&Network> {
    store.networks().find(|n| n.spec.ingress && !n.removing)
}

/// Networks that a task is attached to, `ingress` first. The task's template counts, which may be older than the service's.
pub fn networks_of_task(store: &Store, service: &Service, task: &Task) -> Vec<NetworkId> {
    networks(store, service, &task.spec)
}

/// Networks on which a service needs a virtual address, `ingress` first.
pub(super) fn networks_of_service(store: &Store, service: &Service) -> Vec<NetworkId> {
    networks(store, service, &service.spec.task_template)
}

fn networks(store: &Store, service: &Service, template: &TaskSpec) -> Vec<NetworkId> {
    let ingress = ingress(store).filter(|_| service.spec.wants_ingress()).map(|n| n.id.clone());
    let named = template.swarm_networks();
    let mut all = Vec::new();
    for id in ingress.into_iter().chain(named) {
        if !all.contains(&id) {
            all.push(id);
        }
    }
    all
}
