//! Tasks: one container each, in a slot of a service, on a node. A task never goes back in state; a restarted one is a
//! new task in the same slot.

use super::{
    id::{NetworkId, NodeId, ServiceId, TaskId},
    meta::Meta,
    port::{ListeningPort, Listens, PortConfig, Protocol},
    serde_helpers::null_as_default,
    time::{Nanos, Timestamp},
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Life of a task. The order of the variants is the order of the states, and the only one there is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Made by the orchestrator.
    #[default]
    New,
    /// Has its addresses; waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node's agent has it.
    Accepted,
    /// The agent fetches what it needs.
    Preparing,
    /// The container is made and waits for the word to start.
    Ready,
    /// The container starts.
    Starting,
    /// The container runs (and is healthy, if it can say).
    Running,
    /// Ended by itself with 0.
    Complete,
    /// Stopped because it was asked to.
    Shutdown,
    /// Ended by itself with another code.
    Failed,
    /// The node could not run it.
    Rejected,
    /// Its node was removed or never came back.
    Orphaned,
    /// Desired only: stop, then forget the task.
    Remove,
}

impl TaskState {
    /// Lower-case name, as in the API.
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

/// A task.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Version and times.
    pub meta: Meta,
    /// The template that it was made from.
    pub spec: TaskSpec,
    /// The service's `spec_version` at that time.
    pub spec_version: u64,
    /// Its service.
    pub service_id: ServiceId,
    /// Name of its service (kept, so that a task outlives it by name).
    pub service_name: String,
    /// Labels of its service at that time.
    pub service_labels: BTreeMap<String, String>,
    /// Slot, from 1.
    pub slot: u64,
    /// Where it runs; `None` until scheduled.
    pub node_id: Option<NodeId>,
    /// What the managers want.
    pub desired_state: TaskState,
    /// What was observed. Written by the allocator, the scheduler and then the node's agent, in that order.
    pub status: TaskStatus,
    /// Addresses, one per network, `ingress` first.
    pub attachments: Vec<Attachment>,
    /// Not started before this time (restart delay).
    pub not_before: Option<Timestamp>,
    /// Ports of its own node that its container is bound to (publish mode `host`), as its service's spec had them; 0 lets
    /// the engine draw one.
    #[serde(default)]
    pub ports: Vec<PortConfig>,
    /// Those ports published by its service that its container was seen to listen on, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listens: Vec<ListeningPort>,
}

impl Task {
    /// Whether the task takes traffic: the one predicate that balance, DNS and the API share.
    #[must_use]
    pub fn is_backend(&self) -> bool {
        self.status.state == TaskState::Running && self.desired_state <= TaskState::Running
    }
    /// In which families its container was seen to listen on a port.
    #[must_use]
    pub fn listens_on(&self, protocol: Protocol, port: u16) -> Listens {
        self.listens.iter().find(|p| (p.protocol, p.port) == (protocol, port)).map(|p| p.listens).unwrap_or_default()
    }
    /// Its address on a network.
    #[must_use]
    pub fn address_on(&self, network: &NetworkId) -> Option<Ipv4Addr> {
        self.attachments.iter().find(|a| a.network_id == *network).map(|a| a.address.addr())
    }
    /// `service.slot`, as people write it.
    #[must_use]
    pub fn display_name(&self) -> String {
        format!("{}.{}", self.service_name, self.slot)
    }
    /// Name of its container: `service.slot.id`.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("{}.{}.{}", self.service_name, self.slot, self.id)
    }
}

/// A task's address on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network_id: NetworkId,
    /// Address with the network's prefix length.
    pub address: Ipv4Net,
}

/// What was observed of a task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TaskStatus {
    /// When.
    pub timestamp: Timestamp,
    /// State.
    pub state: TaskState,
    /// What happens, for people.
    pub message: String,
    /// What went wrong; empty if nothing did.
    pub err: String,
    /// The container, once there is one.
    pub container: Option<ContainerStatus>,
    /// Ports of the node that the engine bound its container to, one entry per address family as the engine tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
}

/// A task's container.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerStatus {
    /// The engine's id of it.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Process id of its first process on the node; 0 if it is not running.
    #[serde(rename = "PID")]
    pub pid: i64,
    /// Exit code; 0 while it runs.
    pub exit_code: i64,
}

/// The task template of a service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaskSpec {
    /// The container.
    pub container_spec: ContainerSpec,
    /// Limits and reservations (limits are carried out; reservations refused while not zero).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// What happens when a task ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Where it may run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// Networks, by id once the API has looked them up.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub networks: Vec<NetworkAttachmentConfig>,
    /// Counted up by `--force`.
    pub force_update: u64,
    /// `container`; shown on services, not on tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
}

/// The container of a task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    /// Image reference.
    pub image: String,
    /// Container labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Entrypoint; empty uses the image's.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// Arguments; empty uses the image's.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// Host name; empty uses the container's id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dir: String,
    /// User.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Additional groups.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub groups: Vec<String>,
    /// Allocate a terminal.
    #[serde(rename = "TTY", skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open_stdin: bool,
    /// Read-only root file system.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// An init process as process 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// Signal that stops it; empty uses the image's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Time between that signal and SIGKILL; 10 s if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Nanos>,
    /// Mounts.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub mounts: Vec<Mount>,
    /// Lines for /etc/hosts, `address name …`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub hosts: Vec<String>,
    /// Name servers for foreign names.
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// Health check; the image's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// `default`; set by the API.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub isolation: String,
    /// Kernel parameters of the container.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities added.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub capability_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub capability_drop: Vec<String>,
}

/// Default time between the stop signal and SIGKILL.
pub const DEFAULT_STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

impl ContainerSpec {
    /// Time between the stop signal and SIGKILL.
    #[must_use]
    pub fn stop_grace(&self) -> std::time::Duration {
        self.stop_grace_period.map_or(DEFAULT_STOP_GRACE, Nanos::duration)
    }
}

/// A mount of a container.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind` or `volume` (`tmpfs` and others are refused by name).
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path on the host or name of a volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Mount read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Resolver settings of a container.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Name servers for names that are not the cluster's.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub nameservers: Vec<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub search: Vec<String>,
    /// resolv.conf options.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub options: Vec<String>,
}

/// Health check of a container, as Docker's.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Between checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Nanos>,
    /// Of one check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Nanos>,
    /// Failures that do not count after the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Nanos>,
    /// Failures until unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

/// Limits and reservations.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Upper bounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// Set aside by the scheduler (refused while not zero).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<ResourceAmounts>,
}

/// Amounts of resources; zero means none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceAmounts {
    /// CPUs in 1e-9.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    pub nano_cpus: i64,
    /// Memory in bytes.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: i64,
    /// Processes.
    #[serde(skip_serializing_if = "is_zero")]
    pub pids: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// Where tasks may run (constraints and preferences are refused by name until they are carried out).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    /// Platforms, as the CLI fills them in; shown only.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub platforms: Vec<Platform>,
}

/// A platform.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Platform {
    /// As `amd64`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    /// `linux`.
    #[serde(rename = "OS", skip_serializing_if = "String::is_empty")]
    pub os: String,
}

/// A network that a service is on.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkAttachmentConfig {
    /// Id of the network.
    pub target: String,
    /// Further names of the service there.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub aliases: Vec<String>,
}

/// When a task is restarted.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RestartPolicy {
    /// `any` (default), `on-failure` or `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<RestartCondition>,
    /// Between the end and the new start; 5 s if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// Restarts per window; 0 is no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u64>,
    /// Window that attempts are counted in; 0 is for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Nanos>,
}

/// What end of a task causes a restart.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartCondition {
    /// No end.
    None,
    /// An end with a code other than 0.
    OnFailure,
    /// Any end.
    #[default]
    Any,
}

/// Default delay of a restart.
pub const DEFAULT_RESTART_DELAY: std::time::Duration = std::time::Duration::from_secs(5);
