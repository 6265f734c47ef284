//! Ports that services publish, and what is seen of those who listen on them.

use serde::{Deserialize, Serialize};

/// An address family. Published ports have a listener, an eBPF frontend and a readiness for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// A port that a service publishes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PortConfig {
    /// User's name for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    #[serde(skip_serializing_if = "is_zero")]
    pub target_port: u16,
    /// Port on every node; 0 in a spec lets the allocator draw one.
    #[serde(skip_serializing_if = "is_zero")]
    pub published_port: u16,
    /// Through the routing mesh or on the task's own host.
    pub publish_mode: PublishMode,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP (not carried out).
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
    /// On every node, balanced.
    #[default]
    Ingress,
    /// On the task's own node, by its engine.
    Host,
}

/// In which families a container listens on a port, on an address that `ingress` reaches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Listens {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

/// A port that a container listens on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ListeningPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub port: u16,
    /// In which families.
    pub listens: Listens,
}
