//! The desired datapath, updated from one view to the next: only entries that a change affects are computed again. The result
//! equals that of [`desired_datapath`], which the loop computes anyway whenever it reads the maps. Pure.

use super::desired::{DesiredDatapath, NodesById, add_port, backend, desired_datapath, is_vip_backend, links, nodes, port_key};
use super::dirty::{Changed, Dirty};
use super::eligibility::PortEligibility;
use super::inputs::Inputs;
use super::left::leave;
use super::left_objects::LeftObjects;
use super::maglev::TableCache;
use crate::datapath::ebpf::{Hook, HostDevices, Members, ports_unavailable};
use crate::ingress::HeldPorts;
use crate::model::mesh::MeshPrefix;
use crate::model::view::{NetworkPart, Peer, PublishedPort, TaskEndpoint};
use crate::model::{IpFamily, NetworkId, NodeId, NodeView, Protocol, SubnetPair};
use crate::protocol::entries::differing;
use ipnet::{Ipv4Net, Ipv6Net};
use skep_ebpf::{V4, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// The desired datapath and the view it was computed from.
#[derive(Default)]
pub struct DesiredState {
    desired: DesiredDatapath,
    last: Option<(NodeView, Dependencies, OwnContainers)>,
    /// [`Inputs::held`] of the last call.
    held: Option<Arc<HeldPorts>>,
    tables: TableCache,
}

impl DesiredState {
    #[must_use]
    pub fn desired(&self) -> &DesiredDatapath {
        &self.desired
    }

    /// Computes everything. Returns whether the result is what it was before.
    pub fn recompute(&mut self, view: &NodeView, inputs: &Inputs) -> bool {
        let mut desired = desired_datapath(&mut self.tables, view, inputs);
        leave(&mut desired, inputs.left.unwrap_or(&LeftObjects::default()));
        let (before, now) = (self.last.take(), (view.clone(), Dependencies::new(view, inputs), OwnContainers::new(inputs)));
        let same = self.desired == desired;
        let held_same = self.held.as_ref() == inputs.held;
        debug_assert!(same || !held_same || before.as_ref() != Some(&now), "updates and a full computation of one view differ");
        self.held = inputs.held.cloned();
        self.desired = desired;
        self.last = Some(now);
        same
    }

    /// Updates to a view; computes everything if the change affects more than single entries.
    pub fn update(&mut self, view: &NodeView, inputs: &Inputs) -> Changed {
        let dependencies = Dependencies::new(view, inputs);
        if inputs.left.is_none_or(LeftObjects::is_empty)
            && let Some((before, last_dependencies, last_containers)) = self.last.take()
            && last_dependencies == dependencies
            && let Some(mut dirty) = self.update_entries(&before, view, inputs)
        {
            let containers = OwnContainers::new(inputs);
            self.update_containers(&last_containers, &containers, view, inputs, &mut dirty);
            self.held = inputs.held.cloned();
            self.last = Some((view.clone(), dependencies, containers));
            return Changed::Only(dirty);
        }
        self.recompute(view, inputs);
        Changed::All
    }

    /// Makes the next [`Self::update`] compute everything.
    pub fn invalidate(&mut self) {
        self.last = None;
    }

    /// `None`: the change affects more than single entries.
    fn update_entries(&mut self, before: &NodeView, view: &NodeView, inputs: &Inputs) -> Option<Dirty> {
        let mut dirty = Dirty::default();
        let nodes = nodes(view);
        for (id, now) in &view.networks.by_id {
            self.update_network(before.networks.by_id.get(id)?, now, &nodes, inputs, &mut dirty)?;
        }
        self.update_ports(before, view, inputs, &mut dirty)?;
        Some(dirty)
    }

    /// A container of this node that starts or ends has a device and a membership more or less.
    fn update_containers(
        &mut self,
        before: &OwnContainers,
        now: &OwnContainers,
        view: &NodeView,
        inputs: &Inputs,
        dirty: &mut Dirty,
    ) {
        if before == now {
            return;
        }
        dirty.own_containers = true;
        self.desired.members.clone_from(&now.members);
        self.desired.links = links(inputs.host_devices, inputs.unavailable);
        let changed = |address: &Ipv4Addr| before.veths.get(address) != now.veths.get(address);
        let nodes = nodes(view);
        let members = view.networks.by_id.values().flat_map(|network| network.members.iter().map(|task| (network.ingress, task)));
        for (ingress, task) in members.filter(|(_, task)| changed(&task.address)) {
            dirty.backends.insert(convert::v4(task.address));
            self.desired.backends.remove(&convert::v4(task.address));
            self.desired.backends.extend(backend(&nodes, inputs, ingress, task));
        }
    }

    fn update_network(
        &mut self,
        before: &NetworkPart,
        now: &NetworkPart,
        nodes: &NodesById,
        inputs: &Inputs,
        dirty: &mut Dirty,
    ) -> Option<()> {
        if differing(&before.services, &now.services).next().is_some() {
            return None;
        }
        let tasks: Vec<_> = differing(&before.members, &now.members).collect();
        let mut vips: BTreeSet<V4> = BTreeSet::new();
        // Removed tasks before added ones: an address may pass from one to the other.
        for task in tasks.iter().filter_map(|(was, _)| *was) {
            dirty.backends.insert(convert::v4(task.address));
            self.desired.backends.remove(&convert::v4(task.address));
            if let Some(vip) = vip_of(now, task) {
                self.desired.vips.get_mut(&vip)?.tasks.remove(&task.address);
                vips.insert(vip);
            }
        }
        for task in tasks.iter().filter_map(|(_, is)| *is) {
            dirty.backends.insert(convert::v4(task.address));
            self.desired.backends.extend(backend(nodes, inputs, now.ingress, task));
            if let Some(vip) = vip_of(now, task) {
                self.desired.vips.get_mut(&vip)?.tasks.insert(task.address, !task.starting);
                vips.insert(vip);
            }
        }
        for vip in vips {
            self.desired.vips.get_mut(&vip)?.select(&mut self.tables);
            dirty.vips.insert(vip);
        }
        Some(())
    }

    fn update_ports(&mut self, before: &NodeView, view: &NodeView, inputs: &Inputs, dirty: &mut Dirty) -> Option<()> {
        let eligibility = PortEligibility::new(view, inputs.unavailable, inputs.held.map(|held| &**held));
        let mut ports: Vec<_> = differing(&before.cluster.ports, &view.cluster.ports).collect();
        let held_changed = self.ports_whose_listeners_changed(view, inputs)?;
        ports.extend(held_changed.iter().map(|port| (None, Some(*port))));
        let old_and_new = || ports.iter().flat_map(|(was, is)| [*was, *is]).flatten();
        // Their allowed sources are in a map that all ports share.
        if old_and_new().any(|port| !port.allow.is_empty()) {
            return None;
        }
        for key in old_and_new().flat_map(|port| IpFamily::ALL.map(|family| port_key(port, family))) {
            dirty.ports.insert(key);
            self.desired.ports.remove(&key);
        }
        if ports_unavailable(inputs.unavailable).is_some() {
            return Some(());
        }
        for port in ports.iter().filter_map(|(_, is)| *is).filter(|port| port.protocol != Protocol::Sctp) {
            for family in IpFamily::ALL {
                add_port(&mut self.tables, &eligibility, port, family, &mut self.desired);
            }
        }
        Some(())
    }
}

/// The virtual address that a task receives traffic of.
fn vip_of(network: &NetworkPart, task: &TaskEndpoint) -> Option<V4> {
    if !is_vip_backend(task) {
        return None;
    }
    let index = network.services.binary_search_by(|service| service.service_id.cmp(&task.service_id)).ok()?;
    Some(convert::v4(network.services[index].vip))
}

impl DesiredState {
    /// Published ports of which a listener was opened or closed since the last call. `None`: whether listeners hold the ports
    /// became known.
    fn ports_whose_listeners_changed<'a>(&self, view: &'a NodeView, inputs: &Inputs) -> Option<Vec<&'a Arc<PublishedPort>>> {
        let (before, now) = match (&self.held, inputs.held) {
            (None, None) => return Some(Vec::new()),
            // The same set, as after every change that is not one of listeners.
            (Some(before), Some(now)) if Arc::ptr_eq(before, now) => return Some(Vec::new()),
            (Some(before), Some(now)) => (before, now),
            _ => return None,
        };
        let changed: BTreeSet<(Protocol, u16)> =
            before.symmetric_difference(now).map(|(protocol, port, _)| (*protocol, *port)).collect();
        let find = |key: &(Protocol, u16)| {
            let at = view.cluster.ports.binary_search_by_key(key, |port| (port.protocol, port.published)).ok()?;
            Some(&view.cluster.ports[at])
        };
        Some(changed.iter().filter_map(find).collect())
    }
}

/// Devices and network memberships of this node's containers.
#[derive(PartialEq)]
struct OwnContainers {
    veths: BTreeMap<Ipv4Addr, (String, u32)>,
    members: Members,
}

impl OwnContainers {
    fn new(inputs: &Inputs) -> Self {
        Self { veths: inputs.host_devices.veths.clone(), members: inputs.members.clone() }
    }
}

/// What every entry depends on besides its own task, service or port in the view.
#[derive(PartialEq)]
struct Dependencies {
    mesh: MeshPrefix,
    pools: Vec<Ipv4Net>,
    subnets: Vec<Ipv4Net>,
    pairs: Vec<SubnetPair>,
    nodes: Vec<NodeDependencies>,
    udp_idle: Duration,
    networks: Vec<(NetworkId, Vec<Ipv4Net>, Vec<SubnetPair>)>,
    /// Without the devices of containers.
    host_devices: HostDevices,
    unavailable: BTreeMap<Hook, String>,
    left: LeftObjects,
    lost: BTreeSet<NodeId>,
}

#[derive(PartialEq)]
struct NodeDependencies {
    id: NodeId,
    hostname: String,
    subnet: Ipv6Net,
    endpoints: Vec<SocketAddr>,
    addresses: Vec<IpAddr>,
    ebpf: bool,
    down: bool,
}

impl NodeDependencies {
    fn new(node: &Peer) -> Self {
        Self {
            id: node.node_id.clone(),
            hostname: node.hostname.clone(),
            subnet: node.subnet,
            endpoints: node.endpoints.clone(),
            addresses: node.known_addresses().collect(),
            ebpf: node.ebpf,
            down: node.down,
        }
    }
}

impl Dependencies {
    fn new(view: &NodeView, inputs: &Inputs) -> Self {
        let cluster = &view.cluster;
        Self {
            mesh: cluster.mesh,
            pools: cluster.pools.clone(),
            subnets: cluster.subnets.clone(),
            pairs: cluster.pairs.clone(),
            nodes: cluster.nodes.iter().map(NodeDependencies::new).collect(),
            udp_idle: inputs.udp_idle,
            networks: view.networks.by_id.iter().map(|(id, network)| (id.clone(), network.subnets(), network.pairs())).collect(),
            host_devices: HostDevices { veths: BTreeMap::new(), ..inputs.host_devices.clone() },
            unavailable: inputs.unavailable.clone(),
            left: inputs.left.cloned().unwrap_or_default(),
            lost: inputs.lost.cloned().unwrap_or_default(),
        }
    }
}
