//! Settings of the agent.

use crate::model::NodeId;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

/// Settings of the agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This node.
    pub me: NodeId,
    /// Path of the engine's own socket. In a task's bind mount of it …
    pub engine_socket: PathBuf,
    /// … it is replaced by this one. `None` leaves such mounts unchanged.
    pub skep_socket: Option<PathBuf>,
    /// Directory of the files that tasks get, in memory; of this agent alone.
    pub files: PathBuf,
    /// Current MTU of the overlay in bytes.
    pub mtu: watch::Receiver<u32>,
    /// Containers and networks of skep that no view of this run has named are kept this long after the first view, which
    /// may be an old one from the ledger.
    pub unassigned_grace: Duration,
    /// Calls on containers at the same time.
    pub steps: usize,
    /// Images pulled at the same time.
    pub pulls: usize,
}

impl AgentConfig {
    /// The defaults: grace of 10 s, 16 calls, 4 pulls.
    #[must_use]
    pub fn new(
        me: NodeId,
        engine_socket: PathBuf,
        skep_socket: Option<PathBuf>,
        files: PathBuf,
        mtu: watch::Receiver<u32>,
    ) -> Self {
        Self { me, engine_socket, skep_socket, files, mtu, unassigned_grace: Duration::from_secs(10), steps: 16, pulls: 4 }
    }
}
