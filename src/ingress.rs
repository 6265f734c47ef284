//! Published ports and virtual addresses on this node: how a client's packet or connection reaches a task.
//!
//! Four parts, each a loop over the node's view: [`http`] leads hosts and paths to tasks; [`userspace`] listens on every published port and proxies connections and
//! datagrams; [`ebpf`] decides what the kernel programs do and keeps their maps accordingly; [`readiness`] finds out which
//! containers listen. None of them knows the others.

pub mod demand;
pub mod ebpf;
pub mod http;
pub mod load;
pub mod readiness;
pub mod userspace;
pub mod waiting;

pub use userspace::UserspaceSettings;
pub use waiting::WaitingRoom;

use crate::model::{IpFamily, Protocol};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Published ports that this node's own listeners hold, by address family. A port that another program of the node has is
/// not among them, and no datapath may take its packets.
pub type HeldPorts = BTreeSet<(Protocol, u16, IpFamily)>;

/// A published port as the userspace datapath of this node has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    pub protocol: Protocol,
    /// Port on the node.
    pub port: u16,
    /// Name of the service.
    pub service: String,
    pub state: PortState,
    /// Number of tasks that new connections are spread over.
    pub backends: usize,
    /// Open connections, including those to tasks that are no longer backends; for UDP, flows.
    pub connections: usize,
    /// Connections (for UDP, datagrams) that no backend accepted, since the port was opened.
    pub errors: u64,
    /// Connections (for UDP, datagrams) refused because their source is not in the port's allow list, since it was opened.
    #[serde(default)]
    pub refused: u64,
    /// Connections refused because their client had its share of this node's connections, since it was opened.
    #[serde(default)]
    pub over_share: u64,
}

/// Whether a published port has its listeners.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// On IPv4 and IPv6.
    Listening,
    /// The kernel refused the listener of at least one family, with its error; the other family may be served. The loop
    /// tries again at each tick.
    Taken(String),
    /// Neither TCP nor UDP: the userspace datapath does not serve it.
    Unsupported,
}
