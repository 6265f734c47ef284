//! Published ports and virtual addresses on this node: how a client's packet or connection reaches a task.
//!
//! Three parts, each a loop over the node's view: [`userspace`] listens on every published port and carries what arrives;
//! [`ebpf`] decides what the kernel programs do and keeps their maps so; [`readiness`] finds out which containers listen.

pub mod ebpf;
pub mod readiness;
pub mod userspace;

pub use userspace::UserspaceSettings;

use crate::model::Protocol;
use serde::{Deserialize, Serialize};

/// A published port as this node has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PortStatus {
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the node.
    pub port: u16,
    /// Name of the service.
    pub service: String,
    /// Whether it answers.
    pub state: PortState,
    /// Tasks that it sends to.
    pub backends: usize,
    /// Connections carried now, those of backends that are gone included; of UDP, flows.
    pub connections: usize,
    /// Connections (of UDP, datagrams) that found no backend that takes them, since the port was opened.
    pub errors: u64,
    /// Connections (of UDP, datagrams) of sources that may not use it, since the port was opened.
    #[serde(default)]
    pub refused: u64,
}

/// Whether a port answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// On IPv4 and IPv6.
    Listening,
    /// The kernel refused an address; what it said. The other family may answer. Tried again at each tick.
    Taken(String),
    /// Neither TCP nor UDP: not carried out on this plane.
    Unsupported,
}
