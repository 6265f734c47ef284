//! Tasks.

use super::network;
use crate::api::wire;
use crate::model::docker::ApiVersion;
use crate::model::{Task, TaskState};
use crate::store::Store;
use ipnet::IpNet;

/// A task in this version of the API.
pub fn task(task: &Task, store: &Store, version: ApiVersion) -> wire::Task {
    let mut spec = (*task.spec).clone();
    spec.runtime = None;
    let meta = store.cluster().map(|cluster| cluster.meta).unwrap_or_default();
    let is_allocated = task.status.state > TaskState::New;
    let predefined = task
        .spec
        .predefined_networks()
        .filter(|_| is_allocated)
        .map(|network| wire::Attachment { network: network::attached_predefined(network, meta), addresses: Vec::new() });
    let networks_attachments = task
        .attachments
        .iter()
        .filter_map(|a| {
            let network = store.network(&a.network_id)?;
            let v6 = network::v6_with_length(network, a.address.addr()).map(IpNet::V6);
            let addresses = [IpNet::V4(a.address)].into_iter().chain(v6).map(|address| address.to_string()).collect();
            Some(wire::Attachment { network: network::attached(network), addresses })
        })
        .chain(predefined)
        .collect();
    wire::Task {
        id: task.id.to_string(),
        meta: task.meta.into(),
        labels: std::collections::BTreeMap::new(),
        spec,
        service_id: task.service_id.to_string(),
        slot: task.slot,
        node_id: task.shown_node().map(ToString::to_string),
        status: wire::TaskStatus {
            timestamp: task.status.timestamp,
            // At once, as in Swarm; its container is still being stopped.
            state: if task.is_evicted() { TaskState::Rejected } else { task.status.state }.as_str(),
            message: task.status.message.clone(),
            err: task.status.err.clone(),
            container_status: task.status.container.clone(),
            port_status: wire::PortStatus { ports: task.status.ports.clone() },
        },
        desired_state: task.desired_state.as_str(),
        networks_attachments,
        generic_resources: task.generic_resources.clone(),
        job_iteration: task.job_iteration.map(|index| wire::JobIteration { index }),
        volumes: (version >= ApiVersion::v1(42)).then_some(None),
    }
}
