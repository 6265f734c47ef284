//! Tasks and views for the agent's tests.

use crate::model::{
    NetworkId, NodeView, Task, TaskState, TaskStatus, Timestamp, fixture,
    task::{Attachment, ContainerSpec, TaskSpec},
    view::{NetworkPart, Networks, Tasks},
};
use std::sync::Arc;

pub const ME: &str = "node1";

pub fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000_000)
}

pub fn task(id: &str) -> Task {
    Task {
        spec: TaskSpec {
            container_spec: ContainerSpec { image: "web:1".to_owned(), ..Default::default() },
            ..Default::default()
        }
        .into(),
        service_name: "web".to_owned(),
        status: TaskStatus { state: TaskState::Assigned, ..Default::default() },
        ..fixture::task_with_resolvers(id, "service1", ME, &[])
    }
}

pub fn on_network(mut task: Task, network: &str, address: &str) -> Task {
    task.attachments.push(Attachment { network_id: NetworkId::from(network), address: address.parse().expect("an address") });
    task
}

pub fn network(id: &str, index: u8) -> (NetworkId, NetworkPart) {
    let subnet = format!("10.0.{index}.0/24").parse().expect("a subnet");
    (NetworkId::from(id), fixture::network_part(&format!("net-{id}"), subnet, Vec::new()))
}

pub fn view(index: u64, tasks: &[Task], networks: &[(NetworkId, NetworkPart)]) -> Arc<NodeView> {
    Arc::new(NodeView {
        tasks: Arc::new(Tasks { by_id: tasks.iter().map(|t| (t.id.clone(), Arc::new(t.clone()))).collect(), ..Tasks::default() }),
        networks: Arc::new(Networks { by_id: networks.iter().cloned().collect() }),
        ..fixture::node_view(index, Vec::new(), fixture::cluster_part(Vec::new()))
    })
}
