//! Plain containers on attachable networks: those that no service has. Their node reports what it needs for them; the managers
//! keep a task for each, as SwarmKit does, so that its address is assigned, shown and freed like that of any other task.

use super::attached_container::AttachedContainer;
use super::id::{NetworkId, NodeId, TaskId};
use super::meta::Meta;
use super::task::{EarlierFailures, NetworkAttachmentConfig, Task, TaskSpec, TaskState, TaskStatus};
use super::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One address that a node needs for a plain container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ContainerAttachment {
    /// Drawn by the node: the id of the task.
    pub id: TaskId,
    /// Id or name of the network, as the user spelled it.
    pub network: String,
    pub container: AttachedContainer,
}

impl ContainerAttachment {
    /// Runtime of such a task, in the API.
    pub const RUNTIME: &str = "attachment";

    /// The task that stands for it. It has its node from the start, and runs as soon as it has an address.
    #[must_use]
    pub fn task(&self, node: &NodeId, network: Option<&NetworkId>, now: Timestamp) -> Task {
        let target = network.map_or_else(|| self.network.clone(), ToString::to_string);
        let networks = vec![NetworkAttachmentConfig { target, aliases: Vec::new() }];
        Task {
            id: self.id.clone(),
            meta: Meta::default(),
            spec: TaskSpec { networks, runtime: Some(Self::RUNTIME.to_owned()), ..TaskSpec::default() }.into(),
            spec_version: 0,
            service_id: "".into(),
            service_name: String::new(),
            service_labels: Arc::default(),
            slot: 0,
            slot_node: None,
            job_iteration: None,
            cause: None,
            end: None,
            started_at: None,
            move_to: None,
            node_id: Some(node.clone()),
            desired_state: TaskState::Running,
            status: TaskStatus { timestamp: now, message: "created".to_owned(), ..TaskStatus::default() },
            attachments: Vec::new(),
            not_before: None,
            ports: Vec::new(),
            listens: Vec::new(),
            failures: EarlierFailures::default(),
            pull_auth: None,
            generic_resources: Vec::new(),
            attached: Some(Box::new(self.container.clone())),
        }
    }
}
