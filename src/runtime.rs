//! Containers: what the agent asks of a Docker Engine, as a trait. Knows tasks only as far as a container is made from
//! one; decides nothing. [`docker`] is the engine itself (the one home of `bollard`), [`fake`] one for tests.

use crate::model::{NetworkId, NodeId, PortConfig, Task, TaskId, node::NodeDescription};
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

pub mod container;
pub mod docker;
pub mod fake;

#[cfg(test)]
mod container_tests;

pub use docker::DockerEngine;

/// Name of our network and IPAM driver, as the engine knows it.
pub const DRIVER: &str = "skep";
/// Option of an engine network that holds the MTU at the time it was made.
pub const OPTION_MTU: &str = "mtu";

/// Label with the id of the node that a container belongs to.
pub const LABEL_NODE: &str = "com.docker.swarm.node.id";
/// Label with the id of a container's service.
pub const LABEL_SERVICE: &str = "com.docker.swarm.service.id";
/// Label with the name of a container's service.
pub const LABEL_SERVICE_NAME: &str = "com.docker.swarm.service.name";
/// Label that marks a container as a task's; its value is empty.
pub const LABEL_TASK: &str = "com.docker.swarm.task";
/// Label with the id of a container's task.
pub const LABEL_TASK_ID: &str = "com.docker.swarm.task.id";
/// Label with the name of a container's task, which is also the container's name.
pub const LABEL_TASK_NAME: &str = "com.docker.swarm.task.name";

/// Why an engine did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers, or it went away during the call. Worth another try, with the same call.
    #[error("the Docker Engine at {engine} does not answer: {reason} (is it running? `systemctl status docker`)")]
    Unavailable {
        /// Its URL.
        engine: String,
        /// What was seen.
        reason: String,
    },
    /// Something is in the way that goes away by itself. Worth another try.
    #[error("{0}")]
    Busy(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The engine's refusal, in its own words.
    #[error("{0}")]
    Refused(String),
}

impl EngineError {
    /// Whether the same call may succeed later without anybody changing the wish.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Busy(_))
    }
}

/// What a container is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its process runs (paused counts: it is there and holds its addresses).
    Running,
    /// Its process ended.
    Exited,
    /// The engine is taking it away, or failed to.
    Removing,
}

/// What a container's health check says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// Not known yet.
    Starting,
    /// Good.
    Healthy,
    /// Bad, often enough.
    Unhealthy,
}

/// A container as observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    /// The engine's id of it.
    pub id: String,
    /// From its label; `None` if it has none, then it is nobody's task.
    pub task_id: Option<TaskId>,
    /// State.
    pub state: ContainerState,
    /// `None` without a health check.
    pub health: Option<Health>,
    /// Process id on the node; 0 if it does not run.
    pub pid: i64,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// The kernel ended it for want of memory.
    pub oom_killed: bool,
    /// What the engine has to say of its end; often empty.
    pub error: String,
    /// Ports of the host that it is bound to, sorted; one entry per address that the engine names.
    pub ports: Vec<PortConfig>,
}

/// An overlay network as the engine shall have it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkPlan {
    /// The swarm network's id.
    pub id: NetworkId,
    /// Its name, also on the engine.
    pub name: String,
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Its gateway and name server.
    pub gateway: Ipv4Addr,
    /// No default route for its containers.
    pub internal: bool,
    /// It carries published ports.
    pub ingress: bool,
    /// MTU in bytes, for people: the driver asks for the current one itself.
    pub mtu: u32,
}

/// A network of our driver as the engine has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LocalNetwork {
    /// The engine's id of it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The swarm network that it was made for; empty if the engine lost it.
    pub network_id: NetworkId,
}

/// A container as the engine shall make it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerPlan {
    /// Its task.
    pub task: Task,
    /// The node that it runs on.
    pub node_id: NodeId,
    /// Its networks with its addresses, in the order of the task's attachments (`ingress` first).
    pub networks: Vec<(NetworkPlan, Ipv4Addr)>,
    /// A bind mount of this path …
    pub engine_socket: PathBuf,
    /// … gets this one instead, if there is one.
    pub skep_socket: Option<PathBuf>,
}

/// Something happened to the container with this engine id: look at it again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerEvent {
    /// The engine's id of it.
    pub container_id: String,
    /// The engine's word, as `die`.
    pub action: String,
}

/// What the agent needs of a Docker Engine. Every verb may be repeated: what is there already is adopted, what is gone
/// already is fine.
#[async_trait]
pub trait Engine: Send + Sync {
    /// What the node says of itself, our overlay driver included.
    async fn describe(&self) -> Result<NodeDescription, EngineError>;
    /// Every container with our node label, running or not, sorted by id.
    async fn list(&self, me: &NodeId) -> Result<Vec<Container>, EngineError>;
    /// One container; `None` if it is gone.
    async fn inspect(&self, container_id: &str) -> Result<Option<Container>, EngineError>;
    /// Whether an image is there already.
    async fn has_image(&self, reference: &str) -> Result<bool, EngineError>;
    /// Fetches an image. May take minutes.
    async fn pull(&self, reference: &str) -> Result<(), EngineError>;
    /// Makes the network, unless it is there. A network of another driver with that name is refused; one of ours that was
    /// made for an earlier swarm network is replaced, [`EngineError::Busy`] as long as containers are on it.
    async fn ensure_network(&self, network: &NetworkPlan) -> Result<(), EngineError>;
    /// The networks of our driver, sorted.
    async fn networks(&self) -> Result<Vec<LocalNetwork>, EngineError>;
    /// Removes a network by the engine's id. [`EngineError::Busy`] as long as containers are on it.
    async fn remove_network(&self, id: &str) -> Result<(), EngineError>;
    /// Makes the container, or finds the one made before; its id.
    async fn create(&self, plan: &ContainerPlan) -> Result<String, EngineError>;
    /// Connects what is not connected yet, then starts. Fine if it runs already.
    async fn start(&self, container_id: &str, plan: &ContainerPlan) -> Result<(), EngineError>;
    /// Stops by signal, then by force; `None` uses the grace that the container was made with.
    async fn stop(&self, container_id: &str, grace: Option<Duration>) -> Result<(), EngineError>;
    /// Removes the container with its anonymous volumes, by force.
    async fn remove(&self, container_id: &str) -> Result<(), EngineError>;
    /// Events of containers with our node label from `since` (seconds since 1970) on. Ends when the engine goes away.
    async fn events(
        &self,
        me: &NodeId,
        since: i64,
    ) -> Result<BoxStream<'static, Result<ContainerEvent, EngineError>>, EngineError>;
}
