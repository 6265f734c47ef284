//! Which published ports the eBPF datapath serves on this node, and why it does not serve the others. Pure.
//!
//! A node without an eBPF datapath cannot return replies to clients whose addresses were kept. Its tasks are therefore left
//! out of the tables here, as long as tasks on other nodes listen: it does not turn the port to the userspace datapath on
//! all nodes. They get the connections that enter by nodes without an eBPF datapath, and all that the userspace datapath
//! carries.

use crate::datapath::ebpf::{Hook, ports_unavailable};
use crate::ingress::HeldPorts;
use crate::model::view::{Backend, PublishedPort};
use crate::model::{IpFamily, NodeId, NodeView, Protocol};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Why the eBPF datapath does not serve a published port for clients of an address family; the userspace datapath does.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PortUnavailable {
    /// A hook on the path of published ports cannot be attached on this node.
    #[error("{} cannot run: {reason}", .hook.program())]
    Hook { hook: Hook, reason: String },
    /// Another program of this node has the port.
    #[error("another program of this node has the port")]
    Taken,
    /// No program handles the protocol.
    #[error("neither TCP nor UDP")]
    Protocol,
    /// Every task that listens runs on a node that could not return the replies to the client; this is one of them.
    #[error("node {hostname} has no eBPF datapath")]
    Node { hostname: String },
    #[error("no task runs")]
    NoTask,
    #[error("no task was seen to listen on {target}")]
    NoListener { target: u16 },
    #[error("no task was seen to listen on {target} over IPv6")]
    NoIpv6Listener { target: u16 },
    /// The Maglev tables of all frontends fill the slot array.
    #[error("the slot array has no room for its Maglev table")]
    NoSlots,
}

/// What decides whether a port is served, looked up once for all ports.
pub(super) struct PortEligibility<'a> {
    unavailable: Option<(Hook, &'a str)>,
    held: Option<&'a HeldPorts>,
    /// Host names of nodes without an eBPF datapath.
    without_ebpf: BTreeMap<&'a NodeId, &'a str>,
}

impl<'a> PortEligibility<'a> {
    pub(super) fn new(view: &'a NodeView, unavailable: &'a BTreeMap<Hook, String>, held: Option<&'a HeldPorts>) -> Self {
        let without_ebpf = view.cluster.nodes.iter().filter(|node| !node.ebpf);
        Self {
            unavailable: ports_unavailable(unavailable),
            held,
            without_ebpf: without_ebpf.map(|node| (&node.node_id, node.hostname.as_str())).collect(),
        }
    }

    /// Whether the eBPF datapath serves a port for clients of a family on this node.
    ///
    /// # Errors
    /// The reason why it does not.
    pub(super) fn check(&self, port: &PublishedPort, family: IpFamily) -> Result<(), PortUnavailable> {
        if let Some((hook, reason)) = self.unavailable {
            return Err(PortUnavailable::Hook { hook, reason: reason.to_owned() });
        }
        if port.protocol == Protocol::Sctp {
            return Err(PortUnavailable::Protocol);
        }
        if self.held.is_some_and(|held| !held.contains(&(port.protocol, port.published, family))) {
            return Err(PortUnavailable::Taken);
        }
        if self.backends(port, family).next().is_none() {
            let target = port.target;
            let without = listening(port, family).find_map(|backend| self.without_ebpf.get(&backend.node_id));
            if let Some(hostname) = without {
                return Err(PortUnavailable::Node { hostname: (*hostname).to_owned() });
            }
            return Err(match (port.backends.is_empty(), family) {
                (true, _) => PortUnavailable::NoTask,
                (false, IpFamily::V4) => PortUnavailable::NoListener { target },
                (false, IpFamily::V6) => PortUnavailable::NoIpv6Listener { target },
            });
        }
        Ok(())
    }

    /// The backends that the eBPF datapath uses for clients of a family.
    pub(super) fn backends(&self, port: &PublishedPort, family: IpFamily) -> impl Iterator<Item = Ipv4Addr> {
        listening(port, family).filter(|backend| !self.without_ebpf.contains_key(&backend.node_id)).map(|b| b.address)
    }
}

/// Backends that were seen to listen on a family.
fn listening(port: &PublishedPort, family: IpFamily) -> impl Iterator<Item = &Backend> {
    port.backends.iter().filter(move |backend| if family == IpFamily::V4 { backend.listens.v4 } else { backend.listens.v6 })
}
