//! What uses a network: what is wanted to run on it forbids its removal, what only ends there delays its deletion.

use super::object::{Kind, Store};
use crate::model::{Network, Task};

impl Store {
    /// What is wanted to run on a network, as kind and id: a service that is attached to it (an `ingress` network: one that
    /// publishes a port there), or a task that is not to stop: of a service that may be attached to the network no more, or of a
    /// plain container. The tasks of a removed service are to stop, whether they know it yet or not.
    pub fn network_user(&self, network: &Network) -> Option<(Kind, String)> {
        let mut publishing = self.services().filter(|service| network.spec.ingress && service.spec.wants_ingress());
        let service = self.services_on_network(&network.id).next().or_else(|| publishing.next());
        let is_wanted = |task: &&Task| task.is_wanted() && (task.attached.is_some() || self.service(&task.service_id).is_some());
        let task = || self.live_tasks_on(network).find(is_wanted).map(|task| (Kind::Task, task.id.to_string()));
        service.map(|service| (Kind::Service, service.id.to_string())).or_else(task)
    }

    /// True while a container may have an address on the network, or a service has a virtual one there.
    pub fn has_addresses_on(&self, network: &Network) -> bool {
        let mut virtual_addresses = self.services().flat_map(|service| &service.endpoint.vips);
        self.live_tasks_on(network).next().is_some() || virtual_addresses.any(|vip| vip.network_id == network.id)
    }

    fn live_tasks_on(&self, network: &Network) -> impl Iterator<Item = &Task> {
        self.tasks_on_network(&network.id).filter(|task| !task.status.state.is_final())
    }
}
