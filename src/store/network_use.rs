//! What uses a network: what is wanted to run on it forbids its removal, what only ends there delays its deletion.

use super::object::Store;
use crate::model::{Network, ServiceId, Task, TaskId, TaskState};
use std::fmt;

/// What is wanted to run on a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NetworkUser {
    Service(ServiceId),
    /// Its service is attached to the network no more, but the task runs on.
    Task(TaskId),
}

impl fmt::Display for NetworkUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(id) => write!(f, "service {id}"),
            Self::Task(id) => write!(f, "task {id}"),
        }
    }
}

impl Store {
    /// What is wanted to run on a network: a service that is attached to it (an `ingress` network: one that publishes a port
    /// there), or a task that is not to stop. The tasks of a removed service are to stop, whether they know it yet or not.
    pub fn network_user(&self, network: &Network) -> Option<NetworkUser> {
        let names = |target: &str| target == network.id.as_str();
        let service = self.services().find(|service| {
            let attached = service.spec.task_template.networks.iter().any(|n| names(&n.target));
            attached || (network.spec.ingress && service.spec.wants_ingress())
        });
        let runs_on = |task: &&Task| {
            let wanted = task.desired_state <= TaskState::Running && self.service(&task.service_id).is_some();
            wanted && has_live_address(task, network)
        };
        let task = || self.tasks().find(runs_on).map(|task| NetworkUser::Task(task.id.clone()));
        service.map(|service| NetworkUser::Service(service.id.clone())).or_else(task)
    }

    /// True while a container may have an address on the network, or a service has a virtual one there.
    pub fn has_addresses_on(&self, network: &Network) -> bool {
        let mut virtual_addresses = self.services().flat_map(|service| &service.endpoint.vips);
        self.tasks().any(|task| has_live_address(task, network)) || virtual_addresses.any(|vip| vip.network_id == network.id)
    }
}

fn has_live_address(task: &Task, network: &Network) -> bool {
    !task.status.state.is_final() && task.attachments.iter().any(|a| a.network_id == network.id)
}
