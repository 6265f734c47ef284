//! What the maps of the fast plane shall hold, from the view and from what the node stands on; and the difference to what
//! they hold. Pure.
//!
//! Backends of a frontend are in a range of slots that nothing else uses. A table that changes goes to slots that are
//! free, then its frontend is turned to them: no packet ever sees half of each.

use super::maglev::Built;
use super::plan::Family;
use crate::datapath::fast::{
    HOST_END, Hook, Link, MESH_END, Range, Slots, Sources, State, Step, Surroundings, Tables, ports_lack,
};
use crate::datapath::mesh::TUNNEL;
use crate::model::service::EndpointMode;
use crate::model::view::{NetworkPart, Peer, PublishedPort};
use crate::model::{NodeId, NodeView, Protocol, ServiceId};
use ipnet::IpNet;
use skep_ebpf::{
    AFFINITY, Address, Backend, Config, Frontend, GUARDED, Member, NO_CLIENT, Port, PortNumber, Source, V4, Vip, packet, words,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

/// What shall be there. Tables by content; where they lie follows from where they are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Desired {
    /// What this node is.
    pub config: Config,
    /// Virtual addresses: network, mask, backends.
    pub vips: BTreeMap<V4, (V4, V4, Slots)>,
    /// Namespaces on networks.
    pub members: BTreeSet<Member>,
    /// Published ports: target, flags and table. Those that the fast plane does not serve are here without a backend: what
    /// leaves from their numbers is told apart all the same.
    pub ports: BTreeMap<Port, (PortNumber, u16, Slots)>,
    /// Containers.
    pub backends: BTreeMap<V4, Backend>,
    /// The host's addresses.
    pub locals: BTreeSet<Address>,
    /// Who may use which port, and who is nobody's client.
    pub sources: Sources,
    /// Programs at their places.
    pub links: BTreeSet<Link>,
}

/// Which plane serves a published port, and why not the fast one.
pub type PortPlane = Result<(), String>;

/// What shall be there on node `me`, with the tables that were built before. `lacking` says for a hook why it cannot be had.
#[must_use]
pub fn desired(
    built: &mut Built,
    view: &NodeView,
    me: &NodeId,
    around: &Surroundings,
    members: &BTreeSet<Member>,
    lacking: &BTreeMap<Hook, String>,
) -> Desired {
    let nodes: BTreeMap<&NodeId, &Peer> = view.cluster.nodes.iter().map(|node| (&node.node_id, node)).collect();
    let mut desired = Desired { members: members.clone(), ..Desired::default() };
    let mesh = view.cluster.mesh;
    if let Some(own) = view.cluster.node(me) {
        let mut uplinks = around.uplinks.values();
        desired.config = Config {
            host_end: around.host_end.unwrap_or_default(),
            mesh_end: around.mesh_end.unwrap_or_default(),
            tunnel: around.tunnel.unwrap_or_default(),
            uplink: uplinks.next().copied().filter(|_| uplinks.next().is_none()).unwrap_or_default(),
            prefix: words::prefix(own.subnet.addr()),
            containers: words::prefix(mesh.container(Ipv4Addr::UNSPECIFIED)),
        };
    }
    desired.locals = around.locals.iter().copied().map(words::address).collect();
    for network in view.networks.by_id.values() {
        virtual_addresses(network, &mut desired);
        containers(&nodes, me, network, around, &mut desired);
        desired.sources.insert(source(NO_CLIENT, IpNet::V4(network.subnet)));
    }
    // Addresses that only the swarm gives: who has one is no client from outside, and answers would not find it.
    desired.sources.extend(view.cluster.pools.iter().map(|pool| source(NO_CLIENT, IpNet::V4(*pool))));
    desired.sources.insert(source(NO_CLIENT, IpNet::V6(mesh.0)));
    if ports_lack(lacking).is_none() {
        let planes = Planes::of(view, lacking);
        for port in view.cluster.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
            for family in Family::ALL {
                frontend(built, &planes, port, family, &mut desired);
            }
        }
    }
    built.forget();
    desired.links = links(around, lacking);
    desired
}

/// What decides which plane serves a port, looked up once for all of them.
pub struct Planes<'a> {
    lacking: Option<(Hook, &'a str)>,
    /// Nodes without a fast plane, with their names.
    without: BTreeMap<&'a NodeId, &'a str>,
}

impl<'a> Planes<'a> {
    /// Of this node.
    #[must_use]
    pub fn of(view: &'a NodeView, lacking: &'a BTreeMap<Hook, String>) -> Self {
        let without = view.cluster.nodes.iter().filter(|node| !node.fast);
        Self { lacking: ports_lack(lacking), without: without.map(|node| (&node.node_id, node.hostname.as_str())).collect() }
    }

    /// Whether the fast plane serves a port for clients of a family on this node.
    ///
    /// # Errors
    /// Why it does not.
    pub fn serves(&self, port: &PublishedPort, family: Family) -> PortPlane {
        if let Some((hook, why)) = self.lacking {
            return Err(format!("{} cannot run: {why}", hook.program()));
        }
        if port.protocol == Protocol::Sctp {
            return Err("neither TCP nor UDP".to_owned());
        }
        if let Some(node) = port.backends.iter().find_map(|backend| self.without.get(&backend.node_id)) {
            return Err(format!("node {node} has no fast plane"));
        }
        if listening(port, family).next().is_none() {
            return Err(match (port.backends.is_empty(), family) {
                (true, _) => "no task runs".to_owned(),
                (false, Family::V4) => format!("no task was seen to listen on {}", port.target),
                (false, Family::V6) => format!("no task was seen to listen on {} over IPv6", port.target),
            });
        }
        Ok(())
    }
}

/// Backends that take connections of this family.
fn listening(port: &PublishedPort, family: Family) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let takes = move |b: &&crate::model::view::Backend| if family == Family::V4 { b.listens.v4 } else { b.listens.v6 };
    port.backends.iter().filter(takes).map(|b| b.address)
}

fn source(scope: u32, net: IpNet) -> (u32, Source) {
    let length = match net {
        IpNet::V4(net) => 96 + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    };
    (32 + length, Source { scope, address: words::address(net.network()) })
}

fn virtual_addresses(network: &NetworkPart, desired: &mut Desired) {
    let (net, mask) = (words::v4(network.subnet.network()), words::v4(network.subnet.netmask()));
    let mut backends: BTreeMap<&ServiceId, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for member in network.members.iter().filter(|m| m.backend && m.endpoint_mode == EndpointMode::Vip) {
        backends.entry(&member.service_id).or_default().insert(member.address);
    }
    for service in &network.services {
        let own = backends.get(&service.service_id).into_iter().flatten();
        desired.vips.insert(words::v4(service.vip), (net, mask, own.copied().map(words::v4).collect()));
    }
}

fn containers(
    nodes: &BTreeMap<&NodeId, &Peer>,
    me: &NodeId,
    network: &NetworkPart,
    around: &Surroundings,
    desired: &mut Desired,
) {
    for member in &network.members {
        let Some(node) = nodes.get(&member.node_id) else { continue };
        let here = member.node_id == *me;
        let ifindex = if here { around.veths.get(&member.address).map(|(_, index)| *index) } else { Some(0) };
        if let Some(ifindex) = ifindex {
            let backend = Backend { ifindex, serving: member.backend.into(), prefix: words::prefix(node.subnet.addr()) };
            desired.backends.insert(words::v4(member.address), backend);
        }
    }
}

/// The port as the maps name it.
#[must_use]
pub fn port_key(port: &PublishedPort, family: Family) -> Port {
    let protocol = match port.protocol {
        Protocol::Udp => packet::UDP,
        _ => packet::TCP,
    };
    Port { protocol, family: if family == Family::V4 { 4 } else { 6 }, port: words::port(port.published) }
}

fn frontend(built: &mut Built, planes: &Planes, port: &PublishedPort, family: Family, desired: &mut Desired) {
    let key = port_key(port, family);
    let mut flags = 0;
    if port.affinity {
        flags |= AFFINITY;
    }
    if !port.allow.is_empty() {
        flags |= GUARDED;
        let nets =
            port.allow.iter().filter(|net| matches!((net, family), (IpNet::V4(_), Family::V4) | (IpNet::V6(_), Family::V6)));
        desired.sources.extend(nets.map(|net| source(key.scope(), *net)));
    }
    let slots = if planes.serves(port, family).is_ok() {
        // In one order on every node.
        let backends: BTreeSet<Ipv4Addr> = listening(port, family).collect();
        let backends: Vec<Ipv4Addr> = backends.into_iter().collect();
        built.slots(&backends)
    } else {
        Slots::default()
    };
    desired.ports.insert(key, (words::port(port.target), flags, slots));
}

fn links(around: &Surroundings, lacking: &BTreeMap<Hook, String>) -> BTreeSet<Link> {
    let mut links = BTreeSet::new();
    let ports = ports_lack(lacking).is_none();
    for hook in Hook::ALL.into_iter().filter(|hook| !lacking.contains_key(hook)) {
        let mut put = |device: &str, index: u32| {
            links.insert(Link { hook, device: device.to_owned(), index });
        };
        match hook {
            Hook::FromUplink | Hook::OutUplink | Hook::FromHost | Hook::FromMesh | Hook::ToUplink if !ports => {}
            Hook::FromUplink | Hook::OutUplink => around.uplinks.iter().for_each(|(name, index)| put(name, *index)),
            Hook::FromHost => around.mesh_end.iter().for_each(|index| put(MESH_END, *index)),
            Hook::ToUplink => around.host_end.iter().for_each(|index| put(HOST_END, *index)),
            Hook::FromMesh => around.tunnel.iter().for_each(|index| put(TUNNEL, *index)),
            Hook::FromContainer => around.veths.values().for_each(|(name, index)| put(name, *index)),
            _ => put("", 0),
        }
    }
    links
}

/// What leads from what is there to what shall be. What is named comes before who names it; what nobody names any more
/// goes last.
#[must_use]
pub fn plan(desired: &Desired, actual: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    let tables = &actual.tables;
    if tables.config != desired.config {
        steps.push(Step::Config(desired.config));
    }
    for (address, backend) in &desired.backends {
        if tables.backends.get(address) != Some(backend) {
            steps.push(Step::SetBackend(*address, *backend));
        }
    }
    steps.extend(desired.locals.difference(&tables.locals).map(|a| Step::AddLocal(*a)));
    steps.extend(desired.sources.difference(&tables.sources).map(|(length, s)| Step::AddSource(*length, *s)));
    frontends(desired, tables, &mut steps);
    steps.extend(desired.members.difference(&tables.members).map(|m| Step::AddMember(*m)));
    let place = |link: &&Link| Hook::ALL.iter().position(|hook| *hook == link.hook);
    let mut missing: Vec<&Link> = desired.links.difference(&actual.links).collect();
    missing.sort_by_key(place);
    steps.extend(missing.into_iter().cloned().map(Step::Attach));

    let mut surplus: Vec<&Link> = actual.links.difference(&desired.links).collect();
    surplus.sort_by_key(place);
    steps.extend(surplus.into_iter().rev().cloned().map(Step::Detach));
    // Those that this plan replaces in place are not taken away by name.
    let replaced: BTreeSet<String> = desired.links.iter().map(Link::pin).collect();
    steps.extend(actual.stale.difference(&replaced).cloned().map(Step::Unpin));
    steps.extend(tables.members.difference(&desired.members).map(|m| Step::RemoveMember(*m)));
    steps.extend(tables.locals.difference(&desired.locals).map(|a| Step::RemoveLocal(*a)));
    steps.extend(tables.sources.difference(&desired.sources).map(|(length, s)| Step::RemoveSource(*length, *s)));
    steps.extend(tables.backends.keys().filter(|a| !desired.backends.contains_key(*a)).map(|a| Step::RemoveBackend(*a)));
    steps
}

/// Virtual addresses and ports, with their slots.
fn frontends(desired: &Desired, tables: &Tables, steps: &mut Vec<Step>) {
    let mut space = Space::of(tables);
    let mut later = Vec::new();
    for (address, (network, mask, slots)) in &desired.vips {
        let has = tables.vips.get(address);
        let Some((base, size)) = space.place(slots, has.map(|v| (v.base, v.size)), steps) else { continue };
        let vip = Vip { network: *network, mask: *mask, base, size };
        if has != Some(&vip) {
            later.push(Step::SetVip(*address, vip));
        }
    }
    for (port, (target, flags, slots)) in &desired.ports {
        let has = tables.ports.get(port);
        let Some((base, size)) = space.place(slots, has.map(|p| (p.base, p.size)), steps) else {
            // No room: the userspace port serves it.
            later.extend(has.map(|_| Step::RemovePort(*port)));
            continue;
        };
        let frontend = Frontend { base, size, target: *target, flags: *flags };
        if has != Some(&frontend) {
            later.push(Step::SetPort(*port, frontend));
        }
    }
    steps.extend(later);
    steps.extend(tables.vips.keys().filter(|a| !desired.vips.contains_key(*a)).map(|a| Step::RemoveVip(*a)));
    steps.extend(tables.ports.keys().filter(|p| !desired.ports.contains_key(*p)).map(|p| Step::RemovePort(*p)));
}

/// Which slots are used, by what is there and by what comes.
struct Space<'a> {
    tables: &'a Tables,
    used: BTreeMap<u32, u32>,
    /// Where tables are, by length and first slots: who has the same backends has the same table. Made when it is asked for.
    placed: Option<HashMap<Mark, Vec<(Range, &'a Slots)>>>,
}

/// What tells most tables apart.
type Mark = (usize, [V4; 8]);

fn mark(slots: &[V4]) -> Mark {
    let mut first = [0; 8];
    first.iter_mut().zip(slots).for_each(|(to, from)| *to = *from);
    (slots.len(), first)
}

impl<'a> Space<'a> {
    fn of(tables: &'a Tables) -> Self {
        let mut used = BTreeMap::new();
        // A damaged entry that names slots which there are not holds none: else nothing would have room beside it.
        let fits = |(base, size): &Range| *size > 0 && base.checked_add(*size).is_some_and(|end| end <= tables.room);
        for (base, size) in tables.ranges().filter(fits) {
            let held: &mut u32 = used.entry(base).or_default();
            *held = size.max(*held);
        }
        Self { tables, used, placed: None }
    }

    /// Keeps a table that is there, else puts it where nothing is. `None`: no room.
    fn place(&mut self, slots: &'a Slots, has: Option<Range>, steps: &mut Vec<Step>) -> Option<Range> {
        if slots.is_empty() {
            return Some((0, 0));
        }
        let same = |there: &Slots| Slots::ptr_eq(there, slots) || there == slots;
        if let Some(range) = has.filter(|range| self.tables.slots.get(range).is_some_and(same)) {
            return Some(range);
        }
        let tables = self.tables;
        let placed = self.placed.get_or_insert_with(|| {
            let mut placed: HashMap<Mark, Vec<(Range, &Slots)>> = HashMap::new();
            for (range, there) in tables.ranges().filter_map(|range| Some((range, tables.slots.get(&range)?))) {
                placed.entry(mark(there)).or_default().push((range, there));
            }
            placed
        });
        let alike = placed.entry(mark(slots)).or_default();
        if let Some((range, _)) = alike.iter().find(|(_, there)| same(there)) {
            return Some(*range);
        }
        let size = u32::try_from(slots.len()).ok()?;
        let mut base = 0_u32;
        for (start, length) in &self.used {
            if start.checked_sub(base).is_some_and(|gap| gap >= size) {
                break;
            }
            base = base.max(start.saturating_add(*length));
        }
        if base.checked_add(size)? > tables.room {
            return None;
        }
        self.used.insert(base, size);
        alike.push(((base, size), slots));
        steps.push(Step::Slots(base, slots.clone()));
        Some((base, size))
    }
}

#[cfg(test)]
mod tests;
