//! The plan as text, and that a carried-out plan leaves nothing to do.

use super::{Actual, Desired, HANDSHAKE_OLD, desired, mesh_steps, peer_steps, plan};
use crate::datapath::mesh::{Link, MAIN, MeshState, MeshStep, Rule, TUNNEL, Target, mesh_end};
use crate::datapath::{TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use crate::model::WgKey;
use crate::model::mesh::{MeshPrefix, gateway};
use crate::model::service::EndpointMode;
use crate::model::view::{ClusterPart, NetworkPart, Networks, Peer, TaskEndpoint, Tasks};
use crate::model::{NodeId, NodeView, Revision, ServiceId, TaskId};
use proptest::prelude::*;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

fn mesh() -> MeshPrefix {
    MeshPrefix("fd12:3456:789a::/48".parse().expect("prefix"))
}

fn peer(number: u8) -> Peer {
    Peer {
        node_id: NodeId::from(format!("node{number}")),
        hostname: format!("m{number}"),
        manager: number == 1,
        key: WgKey([number; 32]),
        subnet: mesh().node(number.into()),
        ingress_addr: Ipv4Addr::new(10, 0, 0, 1 + number),
        endpoints: vec![format!("192.0.2.{number}:2377").parse().expect("endpoint")],
        containers: vec![Ipv4Addr::new(10, 0, 1, 10 + number)],
        ebpf: false,
        down: false,
    }
}

fn member(node: u8, address: Ipv4Addr) -> TaskEndpoint {
    TaskEndpoint {
        task_id: TaskId::from(format!("task{address}")),
        service_id: ServiceId::from("service"),
        service_name: "service".to_owned(),
        endpoint_mode: EndpointMode::default(),
        aliases: vec![],
        slot: 1,
        container_name: "c".to_owned(),
        node_id: NodeId::from(format!("node{node}")),
        address,
        backend: true,
    }
}

fn network(third: u8, ingress: bool, members: Vec<TaskEndpoint>) -> NetworkPart {
    let subnet = format!("10.0.{third}.0/24").parse().expect("net");
    NetworkPart {
        name: format!("n{third}"),
        subnet,
        gateway: gateway(subnet),
        internal: false,
        ingress,
        members: members.into_iter().map(Arc::new).collect(),
        services: Vec::new(),
    }
}

fn view(networks: Vec<NetworkPart>) -> NodeView {
    NodeView {
        revision: Revision::default(),
        tasks: Arc::new(Tasks::default()),
        networks: Arc::new(Networks { by_id: networks.into_iter().map(|n| (n.name.clone().into(), n)).collect() }),
        cluster: Arc::new(ClusterPart { mesh: mesh(), pools: vec![], nodes: vec![peer(1), peer(2)], ports: vec![] }),
    }
}

fn me() -> NodeId {
    NodeId::from("node1")
}

fn with_links(links: &[&str]) -> MeshState {
    let link = |(index, name): (usize, &&str)| {
        ((*name).to_owned(), Link { index: u32::try_from(index).expect("few") + 1, mtu: 1420, up: *name == "lo" })
    };
    MeshState { links: links.iter().enumerate().map(link).collect(), ..MeshState::default() }
}

/// What the kernel would do.
fn carry_out(state: &mut MeshState, steps: &[MeshStep]) {
    for step in steps {
        match step.clone() {
            MeshStep::Sysctl(key, value) => drop(state.sysctls.insert(key, value)),
            MeshStep::Mtu(link, mtu) => state.links.get_mut(&link).expect("link").mtu = mtu,
            MeshStep::Up(link) => state.links.get_mut(&link).expect("link").up = true,
            MeshStep::AddAddress(link, address) => drop(state.addresses.insert((link, address))),
            MeshStep::RemoveAddress(link, address) => drop(state.addresses.remove(&(link, address))),
            MeshStep::SetRoute(route) => {
                if let Target::Device(device) = &route.target {
                    assert!(state.links.contains_key(device), "{device} is not there");
                }
                state.routes.retain(|old| (old.table, old.to) != (route.table, route.to));
                state.routes.insert(route);
            }
            MeshStep::RemoveRoute(route) => assert!(state.routes.remove(&route), "removes what is not there: {route}"),
            MeshStep::AddRule(rule) => drop(state.rules.insert(rule)),
            MeshStep::RemoveRule(rule) => assert!(state.rules.remove(&rule), "removes what is not there: {rule}"),
        }
    }
}

fn text(steps: &[MeshStep]) -> String {
    let shown = steps.iter().filter(|s| !matches!(s, MeshStep::Sysctl(..))).map(ToString::to_string);
    shown.fold(String::new(), |all, step| all + &step + "\n")
}

fn some_view() -> NodeView {
    let a = |last| Ipv4Addr::new(10, 0, 1, last);
    let ingress = network(0, true, vec![member(2, Ipv4Addr::new(10, 0, 0, 22))]);
    // 10.0.1.13 is ours but has no veth yet: no route at all, least of all to the tunnel.
    view(vec![ingress, network(1, false, vec![member(1, a(11)), member(2, a(12)), member(1, a(13))])])
}

#[test]
fn a_fresh_namespace() {
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b"]);
    let kernels = [(false, 0), (false, 32_766), (true, 0)].map(|(v6, priority)| Rule {
        v6,
        priority,
        from: None,
        to: None,
        iif: None,
        action: crate::datapath::mesh::Action::Table(MAIN),
    });
    state.rules.extend(kernels);
    let steps = mesh_steps(&desired(&some_view(), &me(), &state, 1380), &state);
    assert_eq!(
        text(&steps),
        "\
link set v0a00010b mtu 1380
address add 10.0.0.1 dev lo
address add 10.0.0.2 dev lo
address add 10.0.1.1 dev lo
address add fd12:3456:789a:1::1 dev lo
address add 10.0.1.1 dev v0a00010b
link set skep0 up
link set v0a00010b up
route set fd12:3456:789a::/49 dev skep0 table main
route set local 10.0.0.1/32 dev lo table 167772160
route set local 10.0.0.2/32 dev lo table 167772160
route set 10.0.0.3/32 dev skep0 table 167772160
route set 10.0.0.22/32 dev skep0 table 167772160
route set local 10.0.1.1/32 dev lo table 167772416
route set 10.0.1.11/32 dev v0a00010b table 167772416
route set 10.0.1.12/32 dev skep0 table 167772416
rule add 100: from 10.0.0.0/24 lookup 167772160
rule add 100: from 10.0.1.0/24 lookup 167772416
rule add 30000: iif lo lookup local
rule add 30001: iif lo lookup main
rule add 30002: to 10.0.0.0/24 iif lo lookup 167772160
rule add 30002: to 10.0.1.0/24 iif lo lookup 167772416
rule add 32000: unreachable
rule add -6 52: from fd12:3456:789a::/49 iif skep0 lookup local
rule add -6 30000: iif lo lookup local
rule add -6 30001: iif lo lookup main
rule add -6 32000: unreachable
rule del 0: lookup main
rule del 32766: lookup main
rule del -6 0: lookup main
"
    );
    assert_eq!(
        steps.iter().filter(|s| matches!(s, MeshStep::Sysctl(..))).count(),
        crate::datapath::mesh::base::SYSCTLS.len() + 1
    );
    carry_out(&mut state, &steps);
    assert_eq!(mesh_steps(&desired(&some_view(), &me(), &state, 1380), &state), []);
}

#[test]
fn changes_are_differences() {
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b"]);
    let run = |state: &mut MeshState, view: &NodeView| {
        let steps = mesh_steps(&desired(view, &me(), state, 1420), state);
        carry_out(state, &steps);
        text(&steps)
    };
    run(&mut state, &some_view());
    let a = |last| Ipv4Addr::new(10, 0, 1, last);
    // 12 comes here, 14 appears there.
    state.links.insert("v0a00010c".to_owned(), Link { index: 9, mtu: 1420, up: true });
    let moved =
        view(vec![network(0, true, vec![]), network(1, false, vec![member(1, a(11)), member(1, a(12)), member(2, a(14))])]);
    assert_eq!(
        run(&mut state, &moved),
        "\
address add 10.0.1.1 dev v0a00010c
route set 10.0.1.12/32 dev v0a00010c table 167772416
route set 10.0.1.14/32 dev skep0 table 167772416
route del 10.0.0.22/32 dev skep0 table 167772160
"
    );
    // The network goes from the view, but a veth of it is there: it stays until the veth goes.
    let without = view(vec![network(0, true, vec![])]);
    assert_eq!(run(&mut state, &without), "route del 10.0.1.14/32 dev skep0 table 167772416\n");
    for (gone, address) in [("v0a00010b", a(11)), ("v0a00010c", a(12))] {
        state.links.remove(gone);
        state.sysctls.remove(&crate::datapath::mesh::ipv6_switch(gone));
        state.addresses.retain(|(link, _)| link != gone);
        state.routes.retain(|route| route.to.addr() != std::net::IpAddr::V4(address));
    }
    assert_eq!(
        run(&mut state, &without),
        "\
rule del 100: from 10.0.1.0/24 lookup 167772416
rule del 30002: to 10.0.1.0/24 iif lo lookup 167772416
route del local 10.0.1.1/32 dev lo table 167772416
address del 10.0.1.1 dev lo
"
    );
    // Without a tunnel device nothing leads to it; without its MTU the links are left alone.
    state.links.remove(TUNNEL);
    state.routes.retain(|route| route.target != Target::Device(TUNNEL.to_owned()));
    assert_eq!(mesh_steps(&desired(&without, &me(), &state, 0), &state), []);
}

#[test]
fn peers_are_kept_and_their_endpoints_learned() {
    let cluster = some_view().cluster;
    let mut tunnel = TunnelState::default();
    let first = peer(2).endpoints[0];
    let wanted = TunnelPeer { endpoint: Some(first), allowed_ips: peer(2).allowed_ips(mesh()), keepalive: Some(25) };
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), [TunnelStep::Set(peer(2).key, wanted.clone())]);

    let state = |peer: TunnelPeer, age| TunnelPeerState { peer, handshake_age: age, rx_bytes: 0, tx_bytes: 0 };
    tunnel.peers.insert(peer(2).key, state(wanted.clone(), None));
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), [], "just added");
    let learned = TunnelPeer { endpoint: Some("198.51.100.7:4000".parse().expect("endpoint")), ..wanted.clone() };
    tunnel.peers.insert(peer(2).key, state(learned.clone(), Some(Duration::from_secs(100))));
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), [], "a live endpoint is left alone");
    let fewer = TunnelPeer { allowed_ips: vec![], ..learned.clone() };
    tunnel.peers.insert(peer(2).key, state(fewer, Some(Duration::from_secs(100))));
    let kept = TunnelPeer { endpoint: None, ..wanted.clone() };
    assert_eq!(
        peer_steps(&cluster, &me(), &tunnel, Some(25)),
        [TunnelStep::Set(peer(2).key, kept)],
        "addresses change, endpoint not"
    );
    tunnel.peers.insert(peer(2).key, state(learned, Some(HANDSHAKE_OLD)));
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), [TunnelStep::Set(peer(2).key, wanted.clone())], "silent for long");
    let mapped = TunnelPeer { endpoint: Some("[::ffff:192.0.2.2]:2377".parse().expect("endpoint")), ..wanted.clone() };
    tunnel.peers.insert(peer(2).key, state(mapped, None));
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), [], "the same address in its other form");

    // Strangers go, and so does our own key.
    for stranger in [9, 1] {
        tunnel.peers.insert(WgKey([stranger; 32]), state(wanted.clone(), None));
    }
    let gone = [TunnelStep::Remove(WgKey([1; 32])), TunnelStep::Remove(WgKey([9; 32]))];
    assert_eq!(peer_steps(&cluster, &me(), &tunnel, Some(25)), gone);
    // A tunnel that cannot be asked is left alone.
    let deaf = Actual { mesh: with_links(&["lo"]), tunnel: None };
    assert!(plan(&some_view(), &me(), &deaf, 0).iter().all(|step| matches!(step, super::Step::Mesh(_))));
}

fn any_view() -> impl Strategy<Value = NodeView> {
    let members = proptest::collection::btree_map(2_u8..12, 1_u8..4, 0..6);
    proptest::collection::btree_map(0_u8..4, members, 0..4).prop_map(|networks| {
        let part = |(third, members): (u8, std::collections::BTreeMap<u8, u8>)| {
            let all = members.into_iter().map(|(last, node)| member(node, Ipv4Addr::new(10, 0, third, last)));
            network(third, third == 0, all.collect())
        };
        view(networks.into_iter().map(part).collect())
    })
}

fn any_links() -> impl Strategy<Value = MeshState> {
    (any::<bool>(), proptest::collection::btree_set((0_u8..4, 2_u8..12), 0..6)).prop_map(|(tunnel, veths)| {
        let mut names = vec!["lo".to_owned()];
        names.extend(tunnel.then(|| TUNNEL.to_owned()));
        names.extend(veths.into_iter().map(|(third, last)| mesh_end(Ipv4Addr::new(10, 0, third, last))));
        with_links(&names.iter().map(String::as_str).collect::<Vec<_>>())
    })
}

proptest! {
    /// From any view to any other: the plan settles at once, sends nothing of ours to the tunnel, and never stands open.
    #[test]
    fn a_carried_out_plan_leaves_nothing_to_do(first in any_view(), second in any_view(), mut state in any_links()) {
        for view in [first, second] {
            let wish: Desired = desired(&view, &me(), &state, 1420);
            let steps = mesh_steps(&wish, &state);
            carry_out(&mut state, &steps);
            prop_assert_eq!(mesh_steps(&desired(&view, &me(), &state, 1420), &state), []);
            prop_assert!(crate::datapath::mesh::base::rules().is_subset(&state.rules));
            let ours: Vec<Ipv4Addr> = view.networks.by_id.values().flat_map(|n| &n.members).filter(|m| m.node_id == me()).map(|m| m.address).collect();
            for route in &state.routes {
                let to_tunnel = route.target == Target::Device(TUNNEL.to_owned());
                prop_assert!(!to_tunnel || ours.iter().all(|own| route.to.addr() != std::net::IpAddr::V4(*own)));
            }
        }
    }
}
