//! Names of what a packet meets: containers, services, nodes, devices. Pure.

use crate::datapath::ebpf::{HookSide, HostDevices};
use crate::ingress::ebpf::service_names;
use crate::model::view::{Peer, TaskEndpoint};
use crate::model::{NodeId, NodeView};
use crate::node::refusals::device_name;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What names are looked up in.
pub(super) struct TraceNames<'a> {
    view: &'a NodeView,
    me: &'a NodeId,
    devices: &'a HostDevices,
    services: BTreeMap<u32, String>,
}

impl<'a> TraceNames<'a> {
    pub(super) fn new(view: &'a NodeView, me: &'a NodeId, devices: &'a HostDevices) -> Self {
        Self { view, me, devices, services: service_names(view) }
    }

    /// Host name of this node.
    pub(super) fn me(&self) -> String {
        self.view.cluster.node(self.me).map_or_else(|| self.me.to_string(), |node| node.hostname.clone())
    }

    /// The service with this `skep_ebpf::owner`; empty if it is gone.
    pub(super) fn service(&self, owner: u32) -> String {
        self.services.get(&owner).cloned().unwrap_or_default()
    }

    /// The device of a hook.
    pub(super) fn device(&self, side: HookSide, index: u32) -> String {
        device_name(self.devices, side, index).map_or_else(|| format!("#{index}"), str::to_owned)
    }

    /// The node with this /64.
    pub(super) fn node(&self, prefix: Ipv6Addr) -> String {
        let node = self.view.cluster.nodes.iter().find(|node| node.subnet.addr() == prefix);
        node.map_or_else(|| format!("the node of {prefix}/64, which is not in this node's view"), |node| node.hostname.clone())
    }

    fn task(&self, address: Ipv4Addr) -> Option<&TaskEndpoint> {
        let mut members = self.view.networks.by_id.values().flat_map(|network| &network.members);
        members.find(|task| task.address == address).map(|task| &**task)
    }

    fn host_of(&self, address: Ipv4Addr) -> Option<&Peer> {
        match self.task(address) {
            Some(task) => self.view.cluster.node(&task.node_id),
            None => self.view.cluster.nodes.iter().find(|node| node.containers.contains(&address)),
        }
    }

    /// The IPv4 address of a container, by that of either family; `None` if no node has such a container.
    pub(super) fn container_address(&self, address: IpAddr) -> Option<Ipv4Addr> {
        let v4 = match address {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(v6) => {
                let [.., a, b, c, d] = v6.octets();
                let v4 = Ipv4Addr::new(a, b, c, d);
                (self.view.cluster.mesh.container(v4) == v6).then_some(v4)?
            }
        };
        self.host_of(v4).map(|_| v4)
    }

    /// Container and host name of a container's address; empty where they are not known.
    pub(super) fn container_parts(&self, address: Ipv4Addr) -> (String, String) {
        let container = self.task(address).map(|task| task.container_name.clone()).unwrap_or_default();
        (container, self.host_of(address).map(|node| node.hostname.clone()).unwrap_or_default())
    }

    /// `container web.1.abc of service web`, with its node unless that is this one.
    pub(super) fn container(&self, address: Ipv4Addr) -> String {
        let named = self.task(address).map_or_else(
            || format!("container {address}"),
            |task| format!("container {} of service {}", task.container_name, task.service_name),
        );
        match self.host_of(address) {
            Some(node) if node.node_id != *self.me => format!("{named} on node {}", node.hostname),
            _ => named,
        }
    }

    /// The service that publishes a port, if one does.
    pub(super) fn publisher(&self, protocol: &str, port: u16) -> Option<&str> {
        let mut ports = self.view.cluster.ports.iter();
        ports.find(|p| p.protocol.as_str() == protocol && p.published == port).map(|p| p.service_name.as_str())
    }
}
