//! Reads what a user asks to trace. Pure.

use crate::admin::TraceQuery;
use crate::datapath::ebpf::{FrameHeaders, TraceRequest};
use crate::datapath::mesh::mesh_end;
use crate::model::view::Peer;
use crate::model::{NodeId, NodeView};
use anyhow::{Context as _, bail, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Source port of a packet whose user names none.
const SOURCE_PORT: u16 = 40_000;
/// Longest packet: the kernel takes one page, with room for its own use.
const MOST_BYTES: u16 = 3_000;
/// Numbers of IP protocols.
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

fn find_node<'a>(view: &'a NodeView, name: &str) -> anyhow::Result<&'a Peer> {
    let is = |node: &&Peer| node.hostname == name || node.node_id.as_str() == name;
    let known = || {
        let mut names: Vec<&str> = view.cluster.nodes.iter().map(|node| node.hostname.as_str()).collect();
        names.sort_unstable();
        names.join(", ")
    };
    let mut found = view.cluster.nodes.iter().filter(is);
    let node = found.next().with_context(|| format!("there is no node {name}; the nodes are {}", known()))?;
    anyhow::ensure!(found.next().is_none(), "several nodes are named {name}: use the id of one, see `docker node ls`");
    Ok(node)
}

/// Whether the trace is to run on this node.
pub(super) fn check_node(view: &NodeView, me: &NodeId, name: &str) -> anyhow::Result<()> {
    if name.is_empty() || name == "self" || name == me.as_str() {
        return Ok(());
    }
    let node = find_node(view, name)?;
    ensure!(
        node.node_id == *me,
        "{name} is another node, and a trace runs on the node of the command: run `skep trace …` on {}",
        node.hostname
    );
    Ok(())
}

/// The packet of a query.
pub(super) fn read(view: &NodeView, me: &NodeId, query: &TraceQuery) -> anyhow::Result<TraceRequest> {
    let source = endpoint(&query.source).with_context(|| format!("the source {:?}", query.source))?;
    let destination = endpoint(&query.destination).with_context(|| format!("the destination {:?}", query.destination))?;
    ensure!(
        source.0.is_ipv4() == destination.0.is_ipv4(),
        "{} and {} are of different families: a packet has addresses of one",
        source.0,
        destination.0
    );
    let protocol = match (query.protocol.as_str(), source.0) {
        ("tcp", _) => TCP,
        ("udp", _) => UDP,
        ("icmp", IpAddr::V4(_)) => ICMP,
        ("icmp" | "icmp6", IpAddr::V6(_)) => ICMP6,
        (other, _) => bail!("the protocol {other:?} is not tcp, udp or icmp: the programs handle no other"),
    };
    let ports = match (protocol, source.1, destination.1) {
        (TCP | UDP, from, Some(to)) => (from.unwrap_or(SOURCE_PORT), to),
        (TCP | UDP, _, None) => bail!("the destination needs a port: {}", with_port(destination.0)),
        (_, None, None) => (0, 0),
        _ => bail!("ICMP has no ports: write the addresses alone"),
    };
    ensure!(protocol == TCP || query.flags.is_empty(), "--flags are those of TCP");
    ensure!(query.length <= MOST_BYTES, "--length is {MOST_BYTES} bytes at most");
    let flags = if protocol == TCP { flags(&query.flags)? } else { 0 };
    let from_node = match query.from_node.as_str() {
        "" => None,
        name => Some(other_node(view, me, name)?),
    };
    let headers = FrameHeaders {
        source: source.0,
        destination: destination.0,
        source_port: ports.0,
        destination_port: ports.1,
        protocol,
        flags,
    };
    let device = Some(query.device.as_str()).filter(|name| !name.is_empty()).map(|name| device(view, name));
    Ok(TraceRequest { headers, length: query.length.into(), device, from_node, reply: query.reply })
}

fn other_node(view: &NodeView, me: &NodeId, name: &str) -> anyhow::Result<Ipv6Addr> {
    let node = find_node(view, name)?;
    ensure!(node.node_id != *me, "{name} is this node: --from-node names the one that sends the packet to it");
    Ok(node.subnet.addr())
}

/// The device of a name: a container stands for the mesh end of its veth on the first network that it is found on.
fn device(view: &NodeView, name: &str) -> String {
    let mut members = view.networks.by_id.values().flat_map(|network| &network.members);
    members.find(|task| task.container_name == name).map_or_else(|| name.to_owned(), |task| mesh_end(task.address))
}

fn with_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 80)
}

/// An address with a port or without.
fn endpoint(text: &str) -> anyhow::Result<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((address.to_canonical(), None));
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        ensure!(socket.port() != 0, "port 0 is none");
        return Ok((socket.ip().to_canonical(), Some(socket.port())));
    }
    let example = with_port(Ipv4Addr::new(192, 0, 2, 9).into());
    bail!("is no IP address with a port: write {example}, [2001:db8::9]:80 or an address alone (names are not looked up)")
}

/// TCP flags by name.
fn flags(text: &str) -> anyhow::Result<u8> {
    let mut all = 0;
    for name in text.split(',').filter(|name| !name.is_empty()) {
        all |= match name {
            "fin" => 1,
            "syn" => 2,
            "rst" => 4,
            "ack" => 16,
            other => bail!("the TCP flag {other:?} is not syn, ack, fin or rst"),
        };
    }
    Ok(if all == 0 { 2 } else { all })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::{cluster_part, network_part, node_view, peer, task_endpoint};

    fn view() -> NodeView {
        let task = task_endpoint("web", 1, "node1", Ipv4Addr::new(10, 0, 1, 5));
        let network = network_part("front", "10.0.1.0/24".parse().unwrap(), vec![task]);
        node_view(1, vec![network], cluster_part(vec![peer(1), peer(2)]))
    }

    fn query(protocol: &str, source: &str, destination: &str) -> TraceQuery {
        let [protocol, source, destination] = [protocol, source, destination].map(str::to_owned);
        TraceQuery { protocol, source, destination, ..TraceQuery::default() }
    }

    fn packet(protocol: &str, source: &str, destination: &str) -> Result<FrameHeaders, String> {
        let read = read(&view(), &"node1".into(), &query(protocol, source, destination));
        read.map(|request| request.headers).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn a_packet_is_read_with_ports_or_without() {
        let tcp = packet("tcp", "192.168.7.9", "172.16.0.1:8080").unwrap();
        assert_eq!((tcp.source_port, tcp.destination_port, tcp.protocol, tcp.flags), (SOURCE_PORT, 8080, TCP, 2));
        let udp = packet("udp", "[2001:db8::9]:5", "[2001:db8::1]:53").unwrap();
        assert_eq!((udp.source_port, udp.destination_port, udp.protocol, udp.flags), (5, 53, UDP, 0));
        assert_eq!(packet("icmp", "10.0.1.5", "10.0.1.9").unwrap().protocol, ICMP);
        assert_eq!(packet("icmp", "2001:db8::9", "[2001:db8::1]").unwrap().protocol, ICMP6);
        assert_eq!(flags("ack,fin").unwrap(), 17);
    }

    #[test]
    fn what_is_no_packet_is_refused_with_what_to_write() {
        for (protocol, source, destination, said) in [
            ("tcp", "192.0.2.9", "web:80", "names are not looked up"),
            ("tcp", "192.0.2.9", "192.0.2.1", "the destination needs a port: 192.0.2.1:80"),
            ("tcp", "192.0.2.9", "192.0.2.1:99999", "the destination \"192.0.2.1:99999\""),
            ("udp", "192.0.2.9", "192.0.2.1:0", "port 0 is none"),
            ("tcp", "192.0.2.9", "[2001:db8::1]:80", "different families"),
            ("icmp", "192.0.2.9", "192.0.2.1:80", "ICMP has no ports"),
            ("sctp", "192.0.2.9", "192.0.2.1:80", "not tcp, udp or icmp"),
            ("icmp6", "192.0.2.9", "192.0.2.1", "not tcp, udp or icmp"),
        ] {
            let error = packet(protocol, source, destination).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(flags("syn,push").unwrap_err().to_string().contains("push"));
        let of_udp = TraceQuery { flags: "syn".to_owned(), ..query("udp", "192.0.2.9", "192.0.2.1:80") };
        assert!(read(&view(), &"node1".into(), &of_udp).is_err());
    }

    #[test]
    fn another_node_is_named_with_what_to_do() {
        let check = |name: &str| check_node(&view(), &"node1".into(), name).map_err(|e| e.to_string());
        for name in ["", "self", "node1", "host1"] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        assert!(check("host2").unwrap_err().contains("run `skep trace …` on host2"));
        assert!(check("host7").unwrap_err().contains("there is no node host7; the nodes are host1, host2"));
    }

    #[test]
    fn nodes_and_containers_are_known_by_name() {
        let with = |from_node: &str, device: &str| {
            let (from_node, device) = (from_node.to_owned(), device.to_owned());
            read(&view(), &"node1".into(), &TraceQuery { device, from_node, ..query("tcp", "10.0.1.6:1", "10.0.1.5:80") })
        };
        let request = with("host2", "web.1.web1id").unwrap();
        assert_eq!(request.from_node, Some(peer(2).subnet.addr()));
        assert_eq!(request.device, Some(mesh_end(Ipv4Addr::new(10, 0, 1, 5))));
        assert_eq!(with("", "eth0").unwrap().device.as_deref(), Some("eth0"));
        assert!(with("host1", "").unwrap_err().to_string().contains("is this node"));
    }
}
