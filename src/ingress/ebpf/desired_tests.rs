//! What the maps should contain, of one view: sources, backends, and ports that the node does not have.

use super::desired::{DesiredDatapath, desired_datapath, port_key};
use super::inputs::Inputs;
use super::maglev::TableCache;
use crate::datapath::ebpf::HostDevices;
use crate::ingress::HeldPorts;
use crate::model::fixture::{cluster_part, network_part, node_view, peer, published_port, task_endpoint};
use crate::model::view::{ClusterPart, Peer, PublishedPort, ServiceVip, TaskEndpoint};
use crate::model::{IpFamily, Listens, NodeView, Protocol};
use ipnet::Ipv4Net;
use skep_ebpf::{NO_CLIENT, NODE, convert, owner};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const TASK: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

/// `node1` is this node, `node2` runs the task of `web`, which publishes 8080/tcp.
fn view() -> NodeView {
    let mut port = published_port(8080, 80, &[TASK]);
    port.backends[0].listens = Listens { v4: true, v6: true };
    port.backends[0].node_id = "node2".into();
    let nodes = [1, 2].map(|number| Peer {
        endpoints: vec![format!("192.0.2.{number}:2399").parse().unwrap()],
        ebpf: true,
        advertised: Some([203, 0, 113, number].into()),
        addresses: vec!["::ffff:198.51.100.9".parse().unwrap(), format!("2001:db8::{number}").parse().unwrap()],
        ..peer(number)
    });
    let cluster = ClusterPart {
        pools: vec!["10.0.0.0/8".parse().unwrap()],
        subnets: vec!["10.0.0.0/24".parse().unwrap(), "10.0.7.0/24".parse().unwrap()],
        ports: vec![Arc::new(port)],
        ..cluster_part(nodes.into())
    };
    let task = task_endpoint("web", 1, "node2", TASK);
    node_view(1, vec![network_part("ingress", "10.0.0.0/24".parse().unwrap(), vec![task])], cluster)
}

fn desired(view: &NodeView, held: Option<&HeldPorts>) -> DesiredDatapath {
    desired_without(view, held, &BTreeSet::new())
}

/// With nodes that are lost.
fn desired_without(view: &NodeView, held: Option<&HeldPorts>, lost: &BTreeSet<crate::model::NodeId>) -> DesiredDatapath {
    let (devices, members, unavailable) = (HostDevices::default(), BTreeMap::new(), BTreeMap::new());
    let held = held.map(|held| Arc::new(held.clone()));
    let held = held.as_ref();
    let me = "node1".into();
    let udp_idle = Duration::from_mins(1);
    let (unavailable, lost) = (&unavailable, Some(lost));
    let inputs = Inputs { me: &me, lost, host_devices: &devices, members: &members, unavailable, held, left: None, udp_idle };
    desired_datapath(&mut TableCache::default(), view, &inputs)
}

fn change_task(view: &mut NodeView, change: impl FnOnce(&mut TaskEndpoint)) {
    let network = Arc::make_mut(&mut view.networks).by_id.values_mut().next().unwrap();
    change(Arc::make_mut(&mut network.members[0]));
}

/// A virtual address leads to tasks that were seen to listen; to all only while none was: a service may listen on nothing that
/// skep knows of.
#[test]
fn a_virtual_address_waits_for_a_task_to_listen_unless_none_does() {
    let mut view = view();
    let address = |last: u8| Ipv4Addr::new(10, 0, 0, last);
    let web = |slot: u64, starting: bool, backend: bool| {
        let last = 10 + u8::try_from(slot).unwrap();
        Arc::new(TaskEndpoint { backend, starting, ..task_endpoint("web", slot, "node2", address(last)) })
    };
    let vip = Arc::new(ServiceVip { service_id: "web".into(), name: "web".to_owned(), vip: address(2) });
    let mut backends = |members: Vec<Arc<TaskEndpoint>>| {
        let network = Arc::make_mut(&mut view.networks).by_id.values_mut().next().unwrap();
        (network.members, network.services) = (members, vec![Arc::clone(&vip)]);
        let slots = desired(&view, None).vips[&convert::v4(address(2))].slots.clone();
        slots.iter().map(|slot| convert::to_v4(*slot).octets()[3]).collect::<BTreeSet<u8>>()
    };
    assert_eq!(backends(vec![web(1, true, true), web(2, true, true)]), [11, 12].into(), "none is known to listen");
    assert_eq!(backends(vec![web(1, false, true), web(2, true, true)]), [11].into(), "the other one is starting");
    assert_eq!(backends(vec![web(1, false, true), web(2, false, true)]), [11, 12].into());
    assert_eq!(backends(vec![web(1, false, false), web(2, true, true)]), [12].into(), "better than none");
    assert_eq!(backends(vec![web(1, false, false)]), [].into());
}

fn has_slots(desired: &DesiredDatapath, port: &PublishedPort, family: IpFamily) -> bool {
    !desired.ports[&port_key(port, family)].slots.is_empty()
}

/// The rest of the default pool, 10.0.0.0/8, is the LAN of most clients.
#[test]
fn only_addresses_of_networks_are_no_clients() {
    let desired = desired(&view(), None);
    let networks: BTreeSet<Ipv4Net> = desired
        .sources
        .iter()
        .filter(|(length, source)| source.scope == NO_CLIENT && *length > 128)
        .filter_map(|(length, source)| {
            let IpAddr::V4(address) = convert::to_address(source.address) else { return None };
            Some(Ipv4Net::new(address, u8::try_from(length - 128).unwrap()).unwrap())
        })
        .collect();
    assert_eq!(networks, ["10.0.0.0/24", "10.0.7.0/24"].map(|net| net.parse().unwrap()).into());
    let nodes = desired.sources.iter().filter(|(_, source)| source.scope == NODE);
    let nodes: BTreeSet<IpAddr> = nodes.map(|(_, source)| convert::to_address(source.address)).collect();
    let others = ["192.0.2.2", "203.0.113.2", "198.51.100.9", "2001:db8::2"].map(|address| address.parse().unwrap());
    assert_eq!(nodes, others.into(), "every address of the other node");
    assert_eq!(desired.config.tunnel_port, convert::port(2399));
}

#[test]
fn a_backend_has_its_service_as_owner_and_ends_with_its_container_or_node() {
    let key = convert::v4(TASK);
    let running = view();
    assert_eq!(desired(&running, None).backends[&key].owner, owner(b"web"));
    let mut drained = running.clone();
    change_task(&mut drained, |task| task.backend = false);
    assert_eq!(desired(&drained, None).backends[&key].serving, 0, "its connections continue");
    let mut ended = running.clone();
    change_task(&mut ended, |task| task.gone = true);
    assert!(!desired(&ended, None).backends.contains_key(&key));
    let lost = BTreeSet::from(["node2".into()]);
    assert_eq!(desired_without(&running, None, &lost), desired(&running, None), "it is up again");
    let mut down = running;
    Arc::make_mut(&mut down.cluster).nodes[1].down = true;
    assert_eq!(desired(&down, None).backends[&key].serving, 0, "it answers: its daemon alone is gone");
    assert!(!desired_without(&down, None, &lost).backends.contains_key(&key));
}

#[test]
fn a_node_that_is_down_in_its_own_view_has_its_containers() {
    let mut own = view();
    change_task(&mut own, |task| task.node_id = "node1".into());
    let nodes = &mut Arc::make_mut(&mut own.cluster).nodes;
    for node in nodes {
        node.down = true;
    }
    let devices = HostDevices { veths: BTreeMap::from([(TASK, ("veth".to_owned(), 9))]), ..HostDevices::default() };
    let (me, members, unavailable, udp_idle) = ("node1".into(), BTreeMap::new(), BTreeMap::new(), Duration::from_mins(1));
    let (unavailable, lost) = (&unavailable, None);
    let inputs =
        Inputs { me: &me, lost, host_devices: &devices, members: &members, unavailable, held: None, left: None, udp_idle };
    assert_eq!(desired_datapath(&mut TableCache::default(), &own, &inputs).backends[&convert::v4(TASK)].serving, 1);
}

#[test]
fn a_port_that_another_program_of_the_node_has_is_not_served() {
    let view = view();
    let port = &view.cluster.ports[0];
    let both = |held: Option<&HeldPorts>| IpFamily::ALL.map(|family| has_slots(&desired(&view, held), port, family));
    assert_eq!(both(None), [true, true], "not known yet");
    assert_eq!(both(Some(&HeldPorts::new())), [false, false]);
    let v6 = HeldPorts::from([(Protocol::Tcp, 8080, IpFamily::V6)]);
    assert_eq!(both(Some(&v6)), [false, true]);
}

#[test]
fn a_task_on_a_node_without_the_datapath_is_left_out_and_does_not_turn_the_port_to_user_space() {
    let other = Ipv4Addr::new(10, 0, 0, 12);
    let mut view = view();
    let cluster = Arc::make_mut(&mut view.cluster);
    cluster.nodes.push(Peer { ebpf: false, ..peer(3) });
    let port = Arc::make_mut(&mut cluster.ports[0]);
    port.backends.push(crate::model::view::Backend { address: other, node_id: "node3".into(), ..port.backends[0].clone() });
    let slots = |view: &NodeView| {
        let port = &view.cluster.ports[0];
        IpFamily::ALL.map(|family| {
            let desired = desired(view, None);
            desired.ports[&port_key(port, family)].slots.iter().copied().map(convert::to_v4).collect::<BTreeSet<_>>()
        })
    };
    assert_eq!(slots(&view), [BTreeSet::from([TASK]), BTreeSet::from([TASK])]);
    // It alone listens over IPv6: there the userspace datapath serves, and says why.
    let port = Arc::make_mut(&mut Arc::make_mut(&mut view.cluster).ports[0]);
    port.backends[0].listens.v6 = false;
    assert_eq!(slots(&view), [BTreeSet::from([TASK]), BTreeSet::new()]);
    let none = BTreeMap::new();
    let eligibility = super::eligibility::PortEligibility::new(&view, &none, None);
    let why = eligibility.check(&view.cluster.ports[0], IpFamily::V6).map_err(|why| why.to_string());
    assert_eq!(why, Err(format!("node {} has no eBPF datapath", peer(3).hostname)));
}
