//! Tasks: one container each, in a slot of a service, on a node. The state of a task never goes back; a restart is a new
//! task in the same slot.

pub use super::container_spec::{ContainerSpec, DEFAULT_STOP_GRACE, DnsConfig, Healthcheck, LogDriver};
pub use super::mount::Mount;
pub use super::placement::{Placement, PlacementPreference, Platform, SpreadOver};
pub use super::resources::{GenericResource, Reservations, ResourceAmounts, Resources};
use super::{
    attached_container::AttachedContainer,
    id::{NetworkId, NodeId, ServiceId, TaskId},
    meta::Meta,
    port::{ListeningPort, Listens, PortConfig, Protocol},
    predefined_network::PredefinedNetwork,
    pull_auth::PullAuth,
    secret,
    serde_helpers::null_as_default,
    slot_key::SlotKey,
    task_cause::{TaskCause, TaskEnd},
    time::{Nanos, Timestamp},
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// State of a task, as in SwarmKit. The order of the variants is the order of the states.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Created by the orchestrator.
    #[default]
    New,
    /// Has its addresses and waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// Received by the node's agent.
    Accepted,
    /// The agent pulls the image and creates the networks.
    Preparing,
    /// The container is created; it starts when Running is desired.
    Ready,
    /// The container is being started.
    Starting,
    /// The container runs (and is healthy, if it has a health check).
    Running,
    /// The container exited with code 0 without being asked to.
    Complete,
    /// Stopped on request of the managers.
    Shutdown,
    /// The container exited with another code without being asked to.
    Failed,
    /// The node could not run it.
    Rejected,
    /// Its node was removed, has left, or was down for too long.
    Orphaned,
    /// Only as a desired state: stop the container, then delete the task.
    Remove,
}

impl TaskState {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Orphaned => "orphaned",
            Self::Remove => "remove",
        }
    }
    /// True once the container can never run again.
    #[must_use]
    pub fn is_final(self) -> bool {
        self > Self::Running
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    /// The service's task template when the task was created. The store keeps it once for all tasks that have the same.
    pub spec: Arc<TaskSpec>,
    /// The service's `spec_version` at that time.
    pub spec_version: u64,
    pub service_id: ServiceId,
    /// Name of its service; kept because a task may outlive its service.
    pub service_name: String,
    /// Labels of its service when the task was created; kept once, as the spec.
    #[serde(serialize_with = "secret::expose_labels")]
    pub service_labels: Arc<BTreeMap<String, String>>,
    /// Number of its slot; 0 if that is a node's. See [`Task::slot_key`].
    pub slot: u64,
    /// The node whose slot it is in: it runs there or nowhere. A field of its own, so that agents of earlier builds read the
    /// rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_node: Option<NodeId>,
    /// The run of the job that it belongs to; `None` unless its service is a job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<u64>,
    /// Why it was made. Written once, by the orchestrator; `None` for tasks of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<TaskCause>,
    /// Why it ended or is to. Written once, by the orchestrator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TaskEnd>,
    /// When it began to run. Kept once that is asked: of tasks that an update made, and of those that are ordered to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// `None` until scheduled; never changes afterwards.
    pub node_id: Option<NodeId>,
    /// The node that `skep rebalance` moves it to; of the task that is made for that, until it is scheduled, the node that it was
    /// made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_to: Option<NodeId>,
    /// Written by the orchestrator and the reaper; only goes up.
    pub desired_state: TaskState,
    /// Observed state. Written by the allocator, then the scheduler, then (through the dispatcher) the node's agent.
    pub status: TaskStatus,
    /// One per network, `ingress` first. Written once, by the allocator.
    pub attachments: Vec<Attachment>,
    /// The container is not started before this time (restart delay).
    pub not_before: Option<Timestamp>,
    /// Ports in publish mode `host`, as in the service's spec when the task was created; 0 lets the engine choose one.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Published ports of its service on which its container was observed to listen, sorted; of a service that publishes none
    /// the first port at all, once there was one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listens: Vec<ListeningPort>,
    /// What its predecessors in the slot failed at. Written once, by the orchestrator.
    #[serde(default, skip_serializing_if = "EarlierFailures::is_none")]
    pub failures: EarlierFailures,
    /// Its service's, when the task was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_auth: Option<PullAuth>,
    /// What it has of its node's generic resources, sorted. Written once, by the scheduler.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
    /// The plain container that it stands for; `None` for tasks of services. Written by the dispatcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Box<AttachedContainer>>,
}

/// Failures in a row of a task's predecessors: same slot, same version of the spec, none of which ran well in between.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct EarlierFailures {
    pub count: u32,
    /// How much speaks against each node, see [`EarlierFailures::add`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<NodeId, u32>,
}

impl EarlierFailures {
    /// From this weight on a node is chosen only if no better one is suitable: five failures, or one task that the node could
    /// not even prepare.
    pub const AVOID: u32 = 5;
    /// So many failures in a row are followed by the delay of the restart policy, each; further ones by growing delays.
    pub const PATIENCE: u32 = 3;
    /// Nodes that are remembered; beyond them all are forgotten, and tried again.
    const NODES: usize = 32;

    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Weight of one failure against the node on which it happened.
    #[must_use]
    pub fn weight(state: TaskState) -> u32 {
        match state {
            TaskState::Failed => 1,
            TaskState::Rejected => Self::AVOID,
            _ => 0,
        }
    }

    /// Adds a task that failed on a node.
    pub fn add(&mut self, node: Option<&NodeId>, state: TaskState) {
        self.count = self.count.saturating_add(1);
        let Some(node) = node else { return };
        if self.nodes.len() >= Self::NODES && !self.nodes.contains_key(node) {
            self.nodes.clear();
        }
        let weight = self.nodes.entry(node.clone()).or_default();
        *weight = weight.saturating_add(Self::weight(state));
    }

    /// The task is in a crash loop, in which delays grow.
    #[must_use]
    pub fn delays_grow(&self) -> bool {
        self.count > Self::PATIENCE
    }

    /// What speaks against a node.
    #[must_use]
    pub fn on(&self, node: &NodeId) -> u32 {
        self.nodes.get(node).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

impl Task {
    /// Message of a task whose node no longer meets the task's constraints or reservations: SwarmKit's words.
    pub const EVICTED: &str = "task rejected by constraint enforcer";

    /// The managers have taken it from its node because of the node's labels, role or resources. The task did not fail: this is a
    /// move. Its observed state is what its node observes until it has stopped; then, and for users from the beginning, it is
    /// Rejected, as in Swarm.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.status.message == Self::EVICTED
    }
    /// What a report of its node makes of its status: one that is evicted keeps its message and error.
    #[must_use]
    pub fn status_by_report(&self, reported: &TaskStatus) -> TaskStatus {
        let mut status = reported.clone();
        if self.is_evicted() {
            status.message.clone_from(&self.status.message);
            status.err.clone_from(&self.status.err);
            if status.state.is_final() {
                status.state = TaskState::Rejected;
            }
        }
        status
    }
    /// Whether the task receives traffic. Load balancing, DNS and the API all use this predicate.
    #[must_use]
    pub fn is_backend(&self) -> bool {
        self.status.state == TaskState::Running && self.is_wanted() && !self.status.unhealthy
    }
    /// Keeps since when it runs, if it does. Its node's clock may be ahead of the manager's, which says `now`.
    pub fn keep_start(&mut self, now: Timestamp) {
        if self.status.state == TaskState::Running {
            self.started_at.get_or_insert(self.status.timestamp.min(now).max(self.meta.created_at));
        }
    }
    /// Whether it is to run, now or later; of a task of a job also that it has run to its end.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.desired_state <= TaskState::Complete
    }
    /// The node that users see it on: that of its slot is known from the start.
    #[must_use]
    pub fn shown_node(&self) -> Option<&NodeId> {
        self.node_id.as_ref().or(self.slot_node.as_ref())
    }
    /// Its slot.
    #[must_use]
    pub fn slot_key(&self) -> SlotKey {
        self.slot_node.clone().map_or(SlotKey::Number(self.slot), SlotKey::Node)
    }
    /// What of the task managers of feature level 1 do not know, by its name in the store.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let fields = [
            ("slot_node", self.slot_node.is_some()),
            ("job_iteration", self.job_iteration.is_some()),
            ("cause", self.cause.is_some()),
            ("end", self.end.is_some()),
            ("started_at", self.started_at.is_some()),
            ("generic_resources", !self.generic_resources.is_empty()),
            ("move_to", self.move_to.is_some()),
            ("attached", self.attached.is_some()),
        ];
        fields.into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    }
    /// Families in which its container was observed to listen on a port.
    #[must_use]
    pub fn listens_on(&self, protocol: Protocol, port: u16) -> Listens {
        self.listens.iter().find(|p| (p.protocol, p.port) == (protocol, port)).map(|p| p.listens).unwrap_or_default()
    }
    /// Its address on a network.
    #[must_use]
    pub fn address_on(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        self.attachments.iter().find(|a| a.network_id == *network).map(|a| a.address.addr())
    }
    /// `service.slot`, or `service.node` in the slot of a node, for users.
    #[must_use]
    pub fn display_name(&self) -> String {
        if let Some(container) = &self.attached {
            return container.name.clone();
        }
        format!("{}.{}", self.service_name, self.slot_key())
    }
    /// Name of its container: `service.slot.id`, or `service.node.id` in the slot of a node. A plain container has the name that
    /// its user gave it, which is empty until it has joined.
    #[must_use]
    pub fn container_name(&self) -> String {
        if let Some(container) = &self.attached {
            return container.name.clone();
        }
        format!("{}.{}.{}", self.service_name, self.slot_key(), self.id)
    }
}

/// A task's address on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    pub network_id: NetworkId,
    /// The address, with the network's prefix length.
    pub address: Ipv4Net,
}

/// Observed state of a task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TaskStatus {
    /// When the state was observed.
    pub timestamp: Timestamp,
    pub state: TaskState,
    /// What the task is doing, for users.
    pub message: String,
    /// Error, for users; empty if there is none.
    pub err: String,
    /// `None` until the container is created.
    pub container: Option<ContainerStatus>,
    /// Ports of the node that the engine bound for the container: one entry per address family, as the engine reports them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
    /// Its container's health check fails: it gets no new traffic, and is stopped when no node sends it any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unhealthy: bool,
}

/// A task's container.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerStatus {
    /// Id in the engine.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Process id of its first process, in the node's pid namespace; 0 if the container does not run.
    #[serde(rename = "PID")]
    pub pid: i64,
    /// 0 while it runs.
    pub exit_code: i64,
}

/// The task template of a service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskSpec {
    pub container_spec: ContainerSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// The defaults of [`RestartPolicy`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// The API replaces names by ids.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub networks: Vec<NetworkAttachmentConfig>,
    /// The engine's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_driver: Option<LogDriver>,
    /// Incremented by `--force`.
    pub force_update: u64,
    /// `container`; set on services, not on tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

impl TaskSpec {
    /// The engine's own networks that it names.
    pub fn predefined_networks(&self) -> impl Iterator<Item = PredefinedNetwork> {
        self.networks.iter().filter_map(|network| PredefinedNetwork::with_id(&network.target))
    }
    /// The ids of the networks of the swarm that it names.
    pub fn swarm_networks(&self) -> impl Iterator<Item = NetworkId> {
        let targets = self.networks.iter().map(|network| network.target.as_str());
        targets.filter(|target| PredefinedNetwork::with_id(target).is_none()).map(NetworkId::from)
    }
    /// The API's name of the first field that is set and that builds of feature level 1 would drop, misread or not carry out.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let of_nodes = self.newer_field_of_nodes();
        let resources = of_nodes.or_else(|| self.resources.as_ref().and_then(Resources::newer_field));
        resources.or_else(|| self.placement.as_ref().and_then(Placement::newer_field))
    }
    /// The same of the fields that nodes carry out, not managers.
    #[must_use]
    pub fn newer_field_of_nodes(&self) -> Option<&'static str> {
        let log_driver = self.log_driver.is_some().then_some("LogDriver");
        let resources = || self.resources.as_ref().and_then(Resources::newer_field_of_nodes);
        let predefined = || self.predefined_networks().next().map(|_| "Networks");
        log_driver.or_else(resources).or_else(predefined).or_else(|| self.container_spec.newer_field())
    }
}

/// A network that the tasks of a service are attached to.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentConfig {
    /// Id of the network.
    pub target: String,
    /// Further names of the service on this network.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub aliases: Vec<String>,
}

/// When a task is restarted.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `any` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<RestartCondition>,
    /// Time between the end of a task and the start of the next; [`DEFAULT_RESTART_DELAY`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// Most restarts within the window; no limit if absent or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// Period in which restarts are counted; unlimited if absent or 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Nanos>,
}

/// Which ends of a task cause a restart.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// None.
    None,
    /// Exit codes other than 0.
    OnFailure,
    /// All.
    #[default]
    Any,
}

/// Restart delay of a policy that sets none.
pub const DEFAULT_RESTART_DELAY: std::time::Duration = std::time::Duration::from_secs(5);
