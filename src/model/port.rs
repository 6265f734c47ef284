//! Ports that services publish, and ports that containers listen on.

use serde::{Deserialize, Serialize};

/// An address family. A published port has a listener, an eBPF frontend and a readiness per family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    /// Both families.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// A port that a service publishes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub protocol: Protocol,
    /// Port of the container.
    #[serde(skip_serializing_if = "is_zero")]
    pub target_port: u16,
    /// Port of the nodes; 0 in a spec: chosen by the allocator (or, in publish mode `host`, by the engine).
    #[serde(skip_serializing_if = "is_zero")]
    pub published_port: u16,
    pub publish_mode: PublishMode,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// Transport protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    /// Not implemented.
    Sctp,
}

impl Protocol {
    /// `tcp`, `udp` or `sctp`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a port is published.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, load-balanced over the tasks (routing mesh).
    #[default]
    Ingress,
    /// On the task's node only, bound by its engine.
    Host,
}

/// Address families in which a container listens on a port, on an address that is reachable through `ingress`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Listens {
    pub v4: bool,
    pub v6: bool,
}

impl Listens {
    /// In one family at least.
    #[must_use]
    pub fn is_any(self) -> bool {
        self.v4 || self.v6
    }
}

/// A port that a container listens on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ListeningPort {
    pub protocol: Protocol,
    pub port: u16,
    pub listens: Listens,
}
