//! Containers: what the agent needs of a Docker Engine, as a trait. Knows of a task only what its container is created
//! from; decides nothing. [`docker`] talks to an engine (the only user of `bollard`), [`fake`] is one for tests.

use crate::model::dual_stack::pairs;
use crate::model::network::FurtherSubnet;
use crate::model::{
    AttachedContainer, LogOptions, NetworkId, NetworkV6, NodeId, PortConfig, PullAuth, Task, TaskId, node::NodeDescription,
    view::NetworkPart,
};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

mod api_needs;
pub mod container;
pub mod deadlines;
pub mod docker;
pub mod fake;
mod generic_env;
pub mod logs;
pub mod mounts;
mod plain_containers;
mod private_pull;
mod security;
pub mod task_files;

#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod pull_tests;

pub use crate::model::docker::LABEL_TASK_ID;
pub use docker::DockerEngine;
pub use logs::LogPieces;
pub use task_files::{FileMount, FilePlan, TaskFiles};

/// Label with the id of the node that a container belongs to.
pub const LABEL_NODE: &str = "com.docker.swarm.node.id";
/// Label with the id of a container's service.
pub const LABEL_SERVICE: &str = "com.docker.swarm.service.id";
/// Label with the name of a container's service.
pub const LABEL_SERVICE_NAME: &str = "com.docker.swarm.service.name";
/// Label that marks a container as a task's; its value is empty.
pub const LABEL_TASK: &str = "com.docker.swarm.task";
/// Label with the name of a container's task, which is also the container's name.
pub const LABEL_TASK_NAME: &str = "com.docker.swarm.task.name";

/// Why a call to the engine failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine does not answer, or the connection was lost during the call. The same call may succeed later.
    #[error("the Docker Engine at {engine} does not answer: {reason} (is it running? `systemctl status docker`)")]
    Unavailable {
        /// Its URL.
        engine: String,
        reason: String,
    },
    /// One call was not answered in time; others may be. The same call may succeed later.
    #[error("{0}")]
    TimedOut(String),
    /// The object is in use, or another operation on it is running. The same call may succeed later.
    #[error("{0}")]
    Busy(String),
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// The engine's error message.
    #[error("{0}")]
    Refused(String),
    /// The call has ended skep's own code: the same call would do so again.
    #[error("skep itself has failed, please report it: {0}")]
    Panicked(String),
}

impl EngineError {
    /// Whether the same call may succeed later without a change of the spec.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::TimedOut(_) | Self::Busy(_))
    }
}

/// State of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContainerState {
    /// Never started.
    Created,
    /// Its process runs, or is paused: it holds its addresses then too.
    Running,
    /// Its process has ended.
    Exited,
    /// The engine is removing it, or failed to.
    Removing,
    /// The engine has it, and does not answer when it is inspected.
    Unknown,
}

impl ContainerState {
    /// Its process may run, so it is stopped before it is removed.
    #[must_use]
    pub fn may_run(self) -> bool {
        matches!(self, Self::Running | Self::Unknown)
    }
}

/// Result of a container's health check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// No check has succeeded yet.
    Starting,
    Healthy,
    /// As many checks in a row failed as the spec's `Retries`.
    Unhealthy,
}

/// A container as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// The engine's id of the container.
    pub id: String,
    /// From its label; `None` without that label: the container belongs to no task.
    pub task_id: Option<TaskId>,
    pub state: ContainerState,
    /// `None` without a health check.
    pub health: Option<Health>,
    /// Process id on the node; 0 unless it runs.
    pub pid: i64,
    /// Of the last run.
    pub exit_code: i64,
    /// The kernel killed it because it ran out of memory.
    pub oom_killed: bool,
    /// The engine's message about its exit; often empty.
    pub error: String,
    /// Ports of the host that it is published on, sorted; one entry per address of the host.
    pub ports: Vec<PortConfig>,
}

/// A container as listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedContainer {
    /// The engine's id of the container.
    pub id: String,
    /// From its label.
    pub task_id: Option<TaskId>,
}

impl ListedContainer {
    /// The container, of which no more is known.
    #[must_use]
    pub fn unknown(self) -> Container {
        Container {
            id: self.id,
            task_id: self.task_id,
            state: ContainerState::Unknown,
            health: None,
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            error: String::new(),
            ports: Vec::new(),
        }
    }
}

/// Desired state of an overlay network on the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPlan {
    /// Id of the swarm network.
    pub id: NetworkId,
    /// Name of both the swarm network and the engine's.
    pub name: String,
    pub subnet: Ipv4Net,
    /// Gateway and name server of its containers.
    pub gateway: Ipv4Addr,
    /// Its subnets beside the first one.
    pub further: Vec<FurtherSubnet>,
    /// Its IPv6 half, if it has one.
    pub v6: Option<NetworkV6>,
    /// Its containers get no default route.
    pub internal: bool,
    /// It is the network of published ports.
    pub ingress: bool,
    /// MTU in bytes, recorded for people: the driver uses the current one.
    pub mtu: u32,
    /// Largest MTU that its containers may have; `None`: the driver's.
    pub most_mtu: Option<u32>,
}

impl NetworkPlan {
    /// The IPv6 address that belongs to an IPv4 address on it.
    #[must_use]
    pub fn v6_of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let further = self.further.iter().map(|further| further.subnet);
        let subnets: Vec<Ipv4Net> = std::iter::once(self.subnet).chain(further).collect();
        pairs(&subnets, self.v6?.subnet).iter().find_map(|pair| pair.to_v6(address))
    }

    /// From a network as the node's view has it.
    #[must_use]
    pub fn of(id: NetworkId, part: &NetworkPart, mtu: u32) -> Self {
        Self {
            id,
            name: part.name.clone(),
            subnet: part.subnet,
            gateway: part.gateway,
            further: part.further.clone(),
            v6: part.v6,
            internal: part.internal,
            ingress: part.ingress,
            mtu: part.mtu.map_or(mtu, |most| most.min(mtu)),
            most_mtu: part.mtu,
        }
    }
}

/// A network of skep's driver on the engine.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LocalNetwork {
    /// The engine's id of the network.
    pub id: String,
    pub name: String,
    /// The swarm network that it was created for; empty if its option is missing.
    pub network_id: NetworkId,
}

/// What a container is created from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerPlan {
    pub task: Task,
    /// This node, for the label.
    pub node_id: NodeId,
    /// Its networks with its address on each, in the order of the task's attachments (`ingress` first).
    pub networks: Vec<(NetworkPlan, Ipv4Addr)>,
    /// A bind mount of this path is replaced by `skep_socket`, so that the container talks to skep's API.
    pub engine_socket: PathBuf,
    /// `None` leaves the mounts as they are.
    pub skep_socket: Option<PathBuf>,
    /// Its secrets and configs.
    pub files: Vec<FileMount>,
}

/// A change of a container, which should be inspected again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerEvent {
    /// The engine's id of the container.
    pub container_id: String,
    /// The engine's name of the event, such as `die`.
    pub action: String,
}

/// How long the calls of an engine may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadlines {
    /// Of a call that reads one object.
    pub inspect: Duration,
    /// Of a call that lists objects.
    pub list: Duration,
    /// Of a pull without progress.
    pub pull_idle: Duration,
    /// Of a call that others wait for.
    pub permit: Duration,
}

impl Deadlines {
    pub const DEFAULT: Self = Self {
        inspect: Duration::from_secs(10),
        list: Duration::from_secs(30),
        pull_idle: Duration::from_mins(2),
        permit: Duration::from_secs(20),
    };
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What the agent needs of a Docker Engine. Every method is idempotent: it adopts what exists already, and removing what
/// is missing succeeds.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Description of the node; its plugins include the overlay driver.
    async fn describe(&self) -> Result<NodeDescription, EngineError>;
    /// Every container with the label of this node, running or not, sorted by id.
    async fn containers(&self, me: &NodeId) -> Result<Vec<ListedContainer>, EngineError>;
    /// How long its calls may take.
    fn deadlines(&self) -> Deadlines {
        Deadlines::default()
    }
    /// One container; `None` if it does not exist.
    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError>;
    /// Whether the engine has an image.
    async fn has_image(&self, reference: &str) -> Result<bool, EngineError>;
    /// Pulls an image, with these credentials if there are any. May take minutes.
    async fn pull(&self, reference: &str, auth: Option<&PullAuth>) -> Result<(), EngineError>;
    /// Creates the network, unless it exists. A network of another driver with that name is an error; one of skep's driver
    /// for an earlier swarm network is replaced ([`EngineError::Busy`] while containers are attached to it).
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError>;
    /// The networks of skep's driver, sorted.
    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError>;
    /// Containers that are no task's on a network, by the engine's id of it: by their addresses there.
    async fn plain_containers(&self, _network: &str) -> Result<BTreeMap<Ipv4Addr, AttachedContainer>, EngineError> {
        Ok(BTreeMap::new())
    }
    /// Whether a container that is no task's refers to the network, by the engine's id: one that runs, or one that was not started
    /// yet or has stopped, and could not be started without it.
    async fn is_referenced(&self, _network: &str) -> Result<bool, EngineError> {
        Ok(false)
    }
    /// Disconnects every container from a network, by the engine's id.
    async fn disconnect_all(&self, _network: &str) -> Result<(), EngineError> {
        Ok(())
    }
    /// Removes a network by the engine's id. [`EngineError::Busy`] while containers are attached to it.
    async fn remove_network(&self, id: &str) -> Result<(), EngineError>;
    /// Creates the container, or finds the one created earlier; returns its id.
    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError>;
    /// Connects the container to those of its networks that it is not on yet, then starts it unless it runs.
    async fn start(&self, container_id: &str, plan: &ContainerPlan) -> Result<(), EngineError>;
    /// Sends the stop signal, and kills after `grace`; `None` uses the grace period of the container.
    async fn stop(&self, container_id: &str, grace: Option<Duration>) -> Result<(), EngineError>;
    /// Removes the container with its anonymous volumes, by force.
    async fn remove(&self, container_id: &str) -> Result<(), EngineError>;
    /// The log of a task's container, running or not; `None` if there is no such container. `tty`: it has a terminal.
    async fn logs(&self, task: &TaskId, tty: bool, options: &LogOptions) -> Result<Option<LogPieces>, EngineError>;
    /// Events of containers with the label of this node from `since` (Unix time in seconds) on. Ends when the connection to
    /// the engine is lost.
    async fn events(
        &self,
        me: &NodeId,
        since: i64,
    ) -> Result<BoxStream<'static, Result<ContainerEvent, EngineError>>, EngineError>;
}
