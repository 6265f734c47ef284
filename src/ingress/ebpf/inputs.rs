//! What the desired datapath depends on besides the node's view.

use super::left_objects::LeftObjects;
use crate::datapath::ebpf::{Hook, HostDevices, Members};
use crate::ingress::HeldPorts;
use crate::model::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What this node has, apart from its view.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// This node.
    pub me: &'a NodeId,
    /// Nodes that are down and do not answer here; `None`: none.
    pub lost: Option<&'a BTreeSet<NodeId>>,
    pub host_devices: &'a HostDevices,
    /// Container namespaces on networks.
    pub members: &'a Members,
    /// Hooks that cannot be attached, with the reason.
    pub unavailable: &'a BTreeMap<Hook, String>,
    /// Ports that this node's listeners hold; `None`: not known yet, all of them.
    pub held: Option<&'a Arc<HeldPorts>>,
    /// What the kernel did not take; `None`: nothing.
    pub left: Option<&'a LeftObjects>,
    /// A UDP flow ends after so long without a datagram of its client.
    pub udp_idle: Duration,
}
