//! The state of the eBPF datapath for `/dump`: sorted, with addresses and ports as text.

use super::datapath::EbpfDatapath;
use super::hook::{Hook, ProgramLink};
use super::step::{port_name, protocol_name};
use serde::Serialize;
use skep_ebpf::{AFFINITY, Flow, NO_CLIENT, Reply, Tuple, V4, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Bound of the connections that are listed; further ones are only counted.
const MAX_LISTED: usize = 1_000;

/// The state for `/dump`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Dump {
    /// Attached programs, by the name of their pin.
    pub programs: BTreeSet<String>,
    /// Pins that are not of this run.
    pub stale: BTreeSet<String>,
    /// Unavailable hooks, and why.
    pub unavailable: BTreeMap<Hook, String>,
    pub vips: BTreeMap<Ipv4Addr, VipLine>,
    /// Published ports, as `8080/tcp`, for IPv6 clients `8080/tcp6`.
    pub ports: BTreeMap<String, PortLine>,
    pub containers: BTreeMap<Ipv4Addr, ContainerLine>,
    /// The host's addresses on its uplinks.
    pub locals: BTreeSet<IpAddr>,
    /// Prefixes whose packets to published ports are not translated.
    pub no_clients: BTreeSet<String>,
    /// Cookies of namespaces whose socket calls are translated, by the network's address.
    pub members: BTreeMap<Ipv4Addr, BTreeSet<u64>>,
    /// IPv6 subnets of networks, with the IPv4 network of each.
    pub subnets6: BTreeMap<String, Ipv4Addr>,
    /// Slots of all tables: used ones, and all.
    pub slots: (u32, u32),
    /// Flow entries: connections of clients that entered by this node, and recorded connections of the host.
    pub flows: Vec<String>,
    /// Number of flow entries that are not listed.
    pub more_flows: usize,
    /// Reverse NAT entries: how replies of containers are translated.
    pub replies: Vec<String>,
    /// Number of reverse NAT entries that are not listed.
    pub more_replies: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VipLine {
    pub network: Ipv4Addr,
    pub backends: BTreeSet<Ipv4Addr>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PortLine {
    pub target: u16,
    pub affinity: bool,
    /// Client prefixes that may use it; empty if all may.
    pub allow: BTreeSet<String>,
    /// Number of slots of each backend.
    pub backends: BTreeMap<Ipv4Addr, usize>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ContainerLine {
    pub serving: bool,
    /// Interface index of the mesh end of its veth; 0 if it runs on another node.
    pub device: u32,
}

impl EbpfDatapath {
    /// Reads the whole state, with the connections.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn dump(&self) -> anyhow::Result<Dump> {
        let state = self.observe().await?;
        let tables = &state.tables;
        let slots = |base, size| tables.slots.get(&(base, size)).map_or(&[][..], |all| &all[..]);
        let sources = |scope: u32| {
            let scoped = tables.sources.iter().filter(move |(_, source)| source.scope == scope);
            scoped.map(|(length, source)| prefix(length - 32, convert::to_address(source.address))).collect()
        };
        let mut members: BTreeMap<Ipv4Addr, BTreeSet<u64>> = BTreeMap::new();
        for member in tables.members.keys().filter(|member| member.network != 0) {
            members.entry(convert::to_v4(member.network)).or_default().insert(member.cookie);
        }
        let (flows, replies) = {
            let loaded = self.loaded();
            let mut flows = loaded.dump::<Tuple, Flow>("SYN_FLOWS")?;
            flows.extend(loaded.dump::<Tuple, Flow>("UDP_FLOWS")?);
            flows.extend(loaded.dump::<Tuple, Flow>("TCP_FLOWS")?);
            let mut replies = loaded.dump::<Tuple, Reply>("SYN_REPLIES")?;
            replies.extend(loaded.dump::<Tuple, Reply>("UDP_REPLIES")?);
            replies.extend(loaded.dump::<Tuple, Reply>("TCP_REPLIES")?);
            (flows, replies)
        };
        let ports = tables.ports.iter().map(|(port, to)| {
            let mut backends = BTreeMap::new();
            for slot in slots(to.base, to.size) {
                *backends.entry(convert::to_v4(*slot)).or_default() += 1;
            }
            let line = PortLine {
                target: convert::to_port(to.target),
                affinity: to.flags & AFFINITY != 0,
                allow: sources(port.scope()),
                backends,
            };
            (port_name(port), line)
        });
        let vip = |(address, vip): (&V4, &skep_ebpf::Vip)| {
            let backends = slots(vip.base, vip.size).iter().copied().map(convert::to_v4).collect();
            (convert::to_v4(*address), VipLine { network: convert::to_v4(vip.network), backends })
        };
        let container = |(address, backend): (&V4, &skep_ebpf::Backend)| {
            (convert::to_v4(*address), ContainerLine { serving: backend.serving != 0, device: backend.ifindex })
        };
        let subnets6 = tables
            .subnets6
            .iter()
            .map(|((length, first), subnet)| (prefix(*length, convert::to_address(*first)), convert::to_v4(subnet.network)));
        Ok(Dump {
            programs: state.links.iter().map(ProgramLink::pin).collect(),
            stale: state.stale.clone(),
            unavailable: self.unavailable().clone().into_iter().chain(state.blocked.clone()).collect(),
            vips: tables.vips.iter().map(vip).collect(),
            ports: ports.collect(),
            containers: tables.backends.iter().map(container).collect(),
            locals: tables.locals.iter().copied().map(convert::to_address).collect(),
            no_clients: sources(NO_CLIENT),
            members,
            subnets6: subnets6.collect(),
            slots: (tables.slots.keys().map(|(_, size)| size).sum(), tables.room),
            more_flows: flows.len().saturating_sub(MAX_LISTED),
            flows: sorted(flows.iter().map(|(tuple, flow)| flow_line(tuple, flow))),
            more_replies: replies.len().saturating_sub(MAX_LISTED),
            replies: sorted(replies.iter().map(|(tuple, reply)| reply_line(tuple, reply))),
        })
    }
}

fn sorted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<String> = lines.take(MAX_LISTED).collect();
    lines.sort();
    lines
}

fn prefix(length: u32, address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { length.saturating_sub(96) } else { length })
}

fn endpoint(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn tuple_text(tuple: &Tuple) -> String {
    let source = endpoint(convert::to_address(tuple.source), convert::to_port(tuple.source_port));
    let destination = endpoint(convert::to_address(tuple.destination), convert::to_port(tuple.destination_port));
    let via = if skep_ebpf::is_zero(&tuple.via) { String::new() } else { format!(" via {}", node(tuple.via)) };
    format!("{} {source} to {destination}{via}", protocol_name(tuple.protocol))
}

fn node(prefix: skep_ebpf::Prefix) -> IpAddr {
    convert::to_address([prefix[0], prefix[1], 0, 0])
}

pub(super) fn flow_line(tuple: &Tuple, flow: &Flow) -> String {
    if flow.backend == 0 {
        return format!("{}: the host's", tuple_text(tuple));
    }
    let replaced_port = if flow.client_port == tuple.source_port {
        String::new()
    } else {
        format!(" from port {}", convert::to_port(flow.client_port))
    };
    format!("{}: {}:{}{replaced_port}", tuple_text(tuple), convert::to_v4(flow.backend), convert::to_port(flow.target))
}

pub(super) fn reply_line(tuple: &Tuple, reply: &Reply) -> String {
    let to = if skep_ebpf::is_zero(&reply.entry) {
        format!("as {}", endpoint(convert::to_address(reply.address), convert::to_port(reply.port)))
    } else {
        format!("by node {}", node(reply.entry))
    };
    format!("{}: {to}", tuple_text(tuple))
}
