//! Tasks and views for the agent's tests.

use crate::model::{
    Meta, NetworkId, NodeId, NodeView, ServiceId, Task, TaskId, TaskState, TaskStatus, Timestamp, fixture,
    task::{Attachment, ContainerSpec, EarlierFailures, TaskSpec},
    view::{NetworkPart, Networks, Tasks},
};
use std::sync::Arc;

pub const ME: &str = "node1";

pub fn at(seconds: i64) -> Timestamp {
    Timestamp(seconds * 1_000_000_000)
}

pub fn task(id: &str) -> Task {
    Task {
        id: TaskId::from(id),
        meta: Meta::default(),
        spec: TaskSpec {
            container_spec: ContainerSpec { image: "web:1".to_owned(), ..Default::default() },
            ..Default::default()
        }
        .into(),
        spec_version: 1,
        service_id: ServiceId::from("service1"),
        service_name: "web".to_owned(),
        service_labels: std::sync::Arc::default(),
        slot: 1,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(NodeId::from(ME)),
        desired_state: TaskState::Running,
        status: TaskStatus { state: TaskState::Assigned, ..Default::default() },
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
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
