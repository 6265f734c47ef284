//! The plan as text, and that nothing is left to do after a plan was applied.

use super::peers::{Attempts, KEEPALIVE, is_changing};
use super::{
    DesiredMesh, NodePath, OverlayState, OverlayStep, PathMtus, SESSION_LIFETIME, desired_mesh, mesh_steps, peer_steps, plan,
};
use crate::datapath::mesh::{MAIN, MeshLink, MeshRule, MeshState, MeshStep, RouteTarget, RuleAction, TUNNEL, mesh_end};
use crate::datapath::{Redirect, TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use crate::model::fixture::{self, mesh, network_part};
use crate::model::network::FurtherSubnet;
use crate::model::view::{NetworkPart, Peer, TaskEndpoint};
use crate::model::{NetworkV6, NextKey, NodeId, NodeView, SubnetPair, WgKey};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

fn peer(number: u8) -> Peer {
    Peer {
        endpoints: vec![format!("192.0.2.{number}:2377").parse().expect("endpoint")],
        containers: vec![Ipv4Addr::new(10, 0, 1, 10 + number)],
        ..fixture::peer(number)
    }
}

fn member(node: u8, address: Ipv4Addr) -> TaskEndpoint {
    fixture::task_endpoint("service", 1, &format!("node{node}"), address)
}

/// The network `10.0.<third>.0/24`; number 0 is `ingress`.
fn network(third: u8, members: Vec<TaskEndpoint>) -> NetworkPart {
    let name = if third == 0 { "ingress".to_owned() } else { format!("n{third}") };
    network_part(&name, format!("10.0.{third}.0/24").parse().expect("net"), members)
}

fn view(networks: Vec<NetworkPart>) -> NodeView {
    fixture::node_view(1, networks, fixture::cluster_part(vec![peer(1), peer(2)]))
}

fn me() -> NodeId {
    NodeId::from("node1")
}

fn with_links(links: &[&str]) -> MeshState {
    let link = |(index, name): (usize, &&str)| {
        ((*name).to_owned(), MeshLink { index: u32::try_from(index).expect("few") + 1, mtu: 1420, up: *name == "lo" })
    };
    MeshState { links: links.iter().enumerate().map(link).collect(), ..MeshState::default() }
}

/// Applies the steps as the kernel would.
fn apply(state: &mut MeshState, steps: &[MeshStep]) {
    for step in steps {
        match step.clone() {
            MeshStep::Sysctl(key, value) => drop(state.sysctls.insert(key, value)),
            MeshStep::Mtu(link, mtu) => state.links.get_mut(&link).expect("link").mtu = mtu,
            MeshStep::Up(link) => state.links.get_mut(&link).expect("link").up = true,
            MeshStep::AddAddress(link, address) => drop(state.addresses.insert((link, address))),
            MeshStep::RemoveAddress(link, address) => drop(state.addresses.remove(&(link, address))),
            MeshStep::SetRoute(route) => {
                if let RouteTarget::Device(device) = &route.target {
                    assert!(state.links.contains_key(device), "{device} does not exist");
                }
                state.routes.retain(|old| (old.table, old.to) != (route.table, route.to));
                state.routes.insert(route);
            }
            MeshStep::RemoveRoute(route) => assert!(state.routes.remove(&route), "removes what does not exist: {route}"),
            MeshStep::AddRule(rule) => drop(state.rules.insert(rule)),
            MeshStep::RemoveRule(rule) => assert!(state.rules.remove(&rule), "removes what does not exist: {rule}"),
        }
    }
}

fn text(steps: &[MeshStep]) -> String {
    let shown = steps.iter().filter(|s| !matches!(s, MeshStep::Sysctl(..))).map(ToString::to_string);
    shown.fold(String::new(), |all, step| all + &step + "\n")
}

fn some_view() -> NodeView {
    let a = |last| Ipv4Addr::new(10, 0, 1, last);
    let ingress = network(0, vec![member(2, Ipv4Addr::new(10, 0, 0, 22))]);
    // 10.0.1.13 is on this node but has no veth yet: no route, in particular none to the tunnel.
    view(vec![ingress, network(1, vec![member(1, a(11)), member(2, a(12)), member(1, a(13))])])
}

#[test]
fn a_fresh_namespace() {
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b"]);
    let kernel_rules = [(false, 0), (false, 32_766), (true, 0)].map(|(v6, priority)| MeshRule {
        v6,
        priority,
        from: None,
        to: None,
        iif: None,
        action: RuleAction::Table(MAIN),
    });
    state.rules.extend(kernel_rules);
    let steps = mesh_steps(&desired_mesh(&some_view(), &me(), &state, &PathMtus::uniform(1380)), &state);
    assert_eq!(
        text(&steps),
        "\
link set skep0 mtu 1380
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
rule add 100: from 10.0.0.0/20 goto 121920
rule add 121920: from 10.0.0.0/24 lookup 167772160
rule add 121920: from 10.0.1.0/24 lookup 167772416
rule add 121921: goto 3000000
rule add 3000000: iif lo lookup local
rule add 3000001: iif lo lookup main
rule add 3000002: to 10.0.0.0/24 iif lo lookup 167772160
rule add 3000002: to 10.0.1.0/24 iif lo lookup 167772416
rule add 3200000: unreachable
rule add -6 52: from fd12:3456:789a::/49 iif skep0 lookup local
rule add -6 3000000: iif lo lookup local
rule add -6 3000001: iif lo lookup main
rule add -6 3200000: unreachable
rule del 0: lookup main
rule del 32766: lookup main
rule del -6 0: lookup main
"
    );
    assert_eq!(
        steps.iter().filter(|s| matches!(s, MeshStep::Sysctl(..))).count(),
        crate::datapath::mesh::base::SYSCTLS.len() + 1
    );
    apply(&mut state, &steps);
    assert_eq!(mesh_steps(&desired_mesh(&some_view(), &me(), &state, &PathMtus::uniform(1380)), &state), []);
}

#[test]
fn changes_are_differences() {
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b"]);
    let run = |state: &mut MeshState, view: &NodeView| {
        let steps = mesh_steps(&desired_mesh(view, &me(), state, &PathMtus::uniform(1420)), state);
        apply(state, &steps);
        text(&steps)
    };
    run(&mut state, &some_view());
    let a = |last| Ipv4Addr::new(10, 0, 1, last);
    // 10.0.1.12 moves to this node, 10.0.1.14 is created on the other one.
    state.links.insert("v0a00010c".to_owned(), MeshLink { index: 9, mtu: 1420, up: true });
    let moved = view(vec![network(0, vec![]), network(1, vec![member(1, a(11)), member(1, a(12)), member(2, a(14))])]);
    assert_eq!(
        run(&mut state, &moved),
        "\
address add 10.0.1.1 dev v0a00010c
route set 10.0.1.12/32 dev v0a00010c table 167772416
route set 10.0.1.14/32 dev skep0 table 167772416
route del 10.0.0.22/32 dev skep0 table 167772160
"
    );
    // The view no longer contains the network, but a veth of it exists: it stays until the veth is removed.
    let without = view(vec![network(0, vec![])]);
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
rule del 121920: from 10.0.1.0/24 lookup 167772416
rule del 3000002: to 10.0.1.0/24 iif lo lookup 167772416
route del local 10.0.1.1/32 dev lo table 167772416
address del 10.0.1.1 dev lo
"
    );
    // Without a tunnel device no route leads to it; without its MTU those of the links stay as they are.
    state.links.remove(TUNNEL);
    state.routes.retain(|route| route.target != RouteTarget::Device(TUNNEL.to_owned()));
    assert_eq!(mesh_steps(&desired_mesh(&without, &me(), &state, &PathMtus::default()), &state), []);
}

/// The IPv6 half of a network: a source is checked by its device, because IPv6 has no `rp_filter`.
#[test]
fn a_dual_stack_network() {
    let a = |last| Ipv4Addr::new(10, 0, 1, last);
    let members = || vec![member(1, a(11)), member(2, a(12))];
    let v6 = NetworkV6 { subnet: "fd00:1::/64".parse().expect("net"), gateway: "fd00:1::1".parse().expect("address") };
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b"]);
    let run = |state: &mut MeshState, view: &NodeView| {
        let steps = mesh_steps(&desired_mesh(view, &me(), state, &PathMtus::uniform(1420)), state);
        apply(state, &steps);
        assert_eq!(mesh_steps(&desired_mesh(view, &me(), state, &PathMtus::uniform(1420)), state), []);
        text(&steps)
    };
    run(&mut state, &view(vec![network(1, members())]));
    assert_eq!(state.sysctls["ipv6/conf/v0a00010b/disable_ipv6"], "1");
    let dual = view(vec![NetworkPart { v6: Some(v6), ..network(1, members()) }]);
    assert_eq!(
        run(&mut state, &dual),
        "\
address add fd00:1::1 dev lo
address add fd00:1::1 dev v0a00010b
address add fe80::1 dev v0a00010b
route set local fd00:1::1/128 dev lo table 167772416
route set fd00:1::b/128 dev v0a00010b table 167772416
route set fd00:1::c/128 dev skep0 table 167772416
rule add -6 50: to fe80::1/128 lookup local
rule add -6 50: to ff02::1:ff00:0/104 lookup local
rule add -6 100: from fd00:1::/64 goto 121920
rule add -6 121920: from fd00:1::/64 iif skep0 lookup 167772416
rule add -6 121920: from fd00:1::b/128 iif v0a00010b lookup 167772416
rule add -6 121921: goto 3000000
rule add -6 3000002: to fd00:1::/64 iif lo lookup 167772416
"
    );
    assert_eq!(state.sysctls["ipv6/conf/v0a00010b/disable_ipv6"], "0");
    // The view no longer contains the network, but a veth of it exists: only routes to other nodes end.
    assert_eq!(
        run(&mut state, &view(vec![])),
        "route del 10.0.1.12/32 dev skep0 table 167772416\nroute del fd00:1::c/128 dev skep0 table 167772416\n"
    );
    // A peer may use the IPv6 addresses of its containers there, and of no others.
    let pairs = [SubnetPair::new("10.0.1.0/24".parse().expect("net"), v6.subnet).expect("a pair")];
    let added: Vec<String> = peer(2)
        .allowed_ips(mesh(), &pairs)
        .iter()
        .filter(|net| !peer(2).allowed_ips(mesh(), &[]).contains(net))
        .map(ToString::to_string)
        .collect();
    assert_eq!(added, ["fd00:1::c/128"]);
}

/// The subnets of a network have one table, so that each leads to the others; an attach that the view knows nothing of is kept.
#[test]
fn a_network_of_several_subnets() {
    let v6 = NetworkV6 { subnet: "fd00:1::/64".parse().expect("net"), gateway: "fd00:1::1".parse().expect("address") };
    let further = FurtherSubnet { subnet: "172.20.0.0/16".parse().expect("net"), gateway: [172, 20, 255, 1].into() };
    let members = vec![
        member(1, Ipv4Addr::new(10, 0, 1, 11)),
        member(1, Ipv4Addr::new(172, 20, 3, 4)),
        member(2, Ipv4Addr::new(172, 20, 3, 5)),
    ];
    let part = NetworkPart { v6: Some(v6), further: vec![further], ..network(1, members) };
    let mut state = with_links(&["lo", TUNNEL, "v0a00010b", "vac140304"]);
    let run = |state: &mut MeshState, view: &NodeView| {
        let steps = mesh_steps(&desired_mesh(view, &me(), state, &PathMtus::uniform(1420)), state);
        apply(state, &steps);
        assert_eq!(mesh_steps(&desired_mesh(view, &me(), state, &PathMtus::uniform(1420)), state), []);
        text(&steps)
    };
    let steps = run(&mut state, &view(vec![part]));
    for step in [
        "address add 172.20.255.1 dev lo",
        "address add 172.20.255.1 dev vac140304",
        "address add fd00:1::1 dev vac140304",
        "route set 10.0.1.11/32 dev v0a00010b table 167772416",
        "route set 172.20.3.4/32 dev vac140304 table 167772416",
        "route set 172.20.3.5/32 dev skep0 table 167772416",
        "route set local 172.20.255.1/32 dev lo table 167772416",
        "route set fd00:1::a00:10b/128 dev v0a00010b table 167772416",
        "route set fd00:1::ac14:305/128 dev skep0 table 167772416",
        "rule add 100: from 172.20.0.0/16 lookup 167772416",
        "rule add 3000002: to 172.20.0.0/16 iif lo lookup 167772416",
    ] {
        assert!(steps.lines().any(|line| line == step), "{step} is missing:\n{steps}");
    }
    assert!(!steps.contains("address add 10.0.1.1 dev vac140304"), "{steps}");
    let left = run(&mut state, &view(vec![]));
    assert_eq!(
        left,
        "route del 172.20.3.5/32 dev skep0 table 167772416\nroute del fd00:1::ac14:305/128 dev skep0 table 167772416\n"
    );
}

/// Only what leads to a node with a smaller path gets a smaller route, and loses it when the path grows.
#[test]
fn routes_to_a_node_have_the_mtu_of_its_path() {
    let members = vec![member(2, Ipv4Addr::new(10, 0, 1, 12)), member(3, Ipv4Addr::new(10, 0, 1, 13))];
    let cluster = fixture::cluster_part(vec![peer(1), peer(2), peer(3)]);
    let view = fixture::node_view(1, vec![network(1, members)], cluster);
    let mut state = with_links(&["lo", TUNNEL]);
    let mut run = |mtus: &PathMtus| {
        let steps = mesh_steps(&desired_mesh(&view, &me(), &state, mtus), &state);
        apply(&mut state, &steps);
        assert_eq!(mesh_steps(&desired_mesh(&view, &me(), &state, mtus), &state), []);
        text(&steps)
    };
    run(&PathMtus::uniform(1440));
    let small = NodePath { path: Some(1460), tunnel: 1392 };
    let one = PathMtus { nodes: [(NodeId::from("node3"), small)].into(), smallest: 1392, ..PathMtus::uniform(1440) };
    let address = peer(3).address();
    let smaller = format!(
        "route set {address}/128 dev skep0 table main mtu 1392\nroute set 10.0.1.13/32 dev skep0 table 167772416 mtu 1392\n"
    );
    assert_eq!(run(&one), smaller);
    let larger = format!(
        "link set skep0 mtu 8941\nroute set 10.0.1.13/32 dev skep0 table 167772416\n\
         route del {address}/128 dev skep0 table main mtu 1392\n"
    );
    assert_eq!(run(&PathMtus::uniform(8941)), larger);
}

fn steps_of(cluster: &crate::model::view::ClusterPart, tunnel: &TunnelState) -> Vec<TunnelStep> {
    peer_steps(cluster, &me(), tunnel, &mut Attempts::default(), Instant::now())
}

#[test]
fn peers_are_set_when_they_differ_and_unknown_ones_removed() {
    let cluster = some_view().cluster;
    let mut tunnel = TunnelState::default();
    let first = peer(2).endpoints[0];
    let wanted = TunnelPeer { endpoint: Some(first), allowed_ips: peer(2).allowed_ips(mesh(), &[]), keepalive: Some(25) };
    assert_eq!(steps_of(&cluster, &tunnel), [TunnelStep::Set(peer(2).key, wanted.clone())]);

    let state = |peer: TunnelPeer, age| TunnelPeerState { peer, handshake_age: age, rx_bytes: 0, tx_bytes: 0 };
    tunnel.peers.insert(peer(2).key, state(wanted.clone(), None));
    assert_eq!(steps_of(&cluster, &tunnel), [], "just added");
    let learned = TunnelPeer { endpoint: Some("198.51.100.7:4000".parse().expect("endpoint")), ..wanted.clone() };
    tunnel.peers.insert(peer(2).key, state(learned.clone(), Some(Duration::from_secs(100))));
    assert_eq!(steps_of(&cluster, &tunnel), [], "the endpoint of a live session stays");
    let fewer = TunnelPeer { allowed_ips: vec![], ..learned.clone() };
    tunnel.peers.insert(peer(2).key, state(fewer, Some(Duration::from_secs(100))));
    let kept = TunnelPeer { endpoint: None, ..wanted.clone() };
    assert_eq!(steps_of(&cluster, &tunnel), [TunnelStep::Set(peer(2).key, kept)], "addresses change, the endpoint does not");
    tunnel.peers.insert(peer(2).key, state(learned.clone(), Some(SESSION_LIFETIME)));
    let redirect = Redirect { observed: learned.endpoint, to: first };
    assert_eq!(steps_of(&cluster, &tunnel), [TunnelStep::Redirect(peer(2).key, redirect)], "no session any more");
    let mapped = TunnelPeer { endpoint: Some("[::ffff:192.0.2.2]:2377".parse().expect("endpoint")), ..wanted.clone() };
    tunnel.peers.insert(peer(2).key, state(mapped, None));
    assert_eq!(steps_of(&cluster, &tunnel), [], "the same address in its other form");

    // Unknown peers are removed, and so is the node's own key.
    for unknown in [9, 1] {
        tunnel.peers.insert(WgKey([unknown; 32]), state(wanted.clone(), None));
    }
    let removals = [TunnelStep::Remove(WgKey([1; 32])), TunnelStep::Remove(WgKey([9; 32]))];
    assert_eq!(steps_of(&cluster, &tunnel), removals);
    // The peers of a tunnel that does not answer stay as they are.
    let unanswered = OverlayState { mesh: with_links(&["lo"]), tunnel: None };
    assert!(
        plan(&some_view(), &me(), &unanswered, &PathMtus::default(), &mut Attempts::default(), Instant::now())
            .iter()
            .all(|step| matches!(step, OverlayStep::Mesh(_)))
    );
}

/// The endpoint policy: what is set when the peer is absent, has a live session, an expired one, or none.
#[test]
fn an_advertised_endpoint_is_set_unless_a_live_session_has_learned_one() {
    let advertised: SocketAddr = "192.0.2.1:1".parse().expect("endpoint");
    let learned: SocketAddr = "192.0.2.2:2".parse().expect("endpoint");
    let mapped: SocketAddr = "[::ffff:192.0.2.1]:1".parse().expect("endpoint");
    let live = Some(Duration::from_secs(10));
    let just_live = Some(SESSION_LIFETIME.saturating_sub(Duration::from_secs(1)));
    let state = |endpoint, handshake_age| TunnelPeerState {
        peer: TunnelPeer { endpoint, allowed_ips: vec![], keepalive: None },
        handshake_age,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    for (advertised, actual, expected) in [
        (Some(advertised), None, Some(advertised)),
        (None, None, None),
        (Some(advertised), Some(state(Some(learned), live)), None),
        (Some(advertised), Some(state(Some(learned), just_live)), None),
        (Some(advertised), Some(state(Some(learned), Some(SESSION_LIFETIME))), Some(advertised)),
        (Some(advertised), Some(state(Some(learned), None)), Some(advertised)),
        (Some(advertised), Some(state(None, live)), Some(advertised)),
        (Some(advertised), Some(state(Some(advertised), None)), None),
        (Some(advertised), Some(state(Some(mapped), None)), None),
        (None, Some(state(Some(learned), None)), None),
    ] {
        let all: Vec<SocketAddr> = advertised.into_iter().collect();
        let seen = Attempts::default().endpoint_to_set(peer(2).key, &all, actual.as_ref(), Instant::now());
        assert_eq!(seen, expected, "{advertised:?} over {actual:?}");
    }
}

/// A peer that does not answer at one endpoint is tried at its others, and again at the first; one that answers is left alone.
#[test]
fn the_advertised_endpoints_are_tried_in_turn() {
    let all: Vec<SocketAddr> =
        ["192.0.2.1:1", "[2001:db8::1]:1", "10.0.0.1:1"].map(|text| text.parse().expect("endpoint")).into();
    let state = |endpoint, handshake_age| TunnelPeerState {
        peer: TunnelPeer { endpoint: Some(endpoint), allowed_ips: vec![], keepalive: None },
        handshake_age,
        rx_bytes: 0,
        tx_bytes: 0,
    };
    let (key, start) = (peer(2).key, Instant::now());
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut attempts = Attempts::default();
    assert_eq!(attempts.endpoint_to_set(key, &all, None, start), Some(all[0]));
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[0], None)), after(10)), None, "two initiations first");
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[0], None)), after(12)), Some(all[1]));
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[1], None)), after(14)), None);
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[1], None)), after(24)), Some(all[2]));
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[2], None)), after(36)), Some(all[0]));
    let live = Some(Duration::from_secs(1));
    assert_eq!(attempts.endpoint_to_set(key, &all, Some(&state(all[0], live)), after(200)), None);
    assert_eq!(
        attempts.endpoint_to_set(key, &all, Some(&state(all[0], Some(SESSION_LIFETIME))), after(400)),
        None,
        "tried from the start"
    );
    assert_eq!(attempts.endpoint_to_set(key, &all[..1], Some(&state(all[0], None)), after(500)), None, "there is no other");
}

fn any_view() -> impl Strategy<Value = NodeView> {
    let members = proptest::collection::btree_map(2_u8..12, 1_u8..4, 0..6);
    proptest::collection::btree_map(0_u8..4, members, 0..4).prop_map(|networks| {
        let part = |(third, members): (u8, std::collections::BTreeMap<u8, u8>)| {
            let all = members.into_iter().map(|(last, node)| member(node, Ipv4Addr::new(10, 0, third, last)));
            network(third, all.collect())
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
    /// From any view to any other: one plan settles, no own address is routed to the tunnel, and the base rules stay.
    #[test]
    fn nothing_is_left_to_do_after_a_plan(first in any_view(), second in any_view(), mut state in any_links()) {
        for view in [first, second] {
            let desired: DesiredMesh = desired_mesh(&view, &me(), &state, &PathMtus::uniform(1420));
            let steps = mesh_steps(&desired, &state);
            apply(&mut state, &steps);
            prop_assert_eq!(mesh_steps(&desired_mesh(&view, &me(), &state, &PathMtus::uniform(1420)), &state), []);
            prop_assert!(crate::datapath::mesh::base::rules().is_subset(&state.rules));
            let own: Vec<Ipv4Addr> = view.networks.by_id.values().flat_map(|n| &n.members).filter(|m| m.node_id == me()).map(|m| m.address).collect();
            for route in &state.routes {
                let to_tunnel = route.target == RouteTarget::Device(TUNNEL.to_owned());
                prop_assert!(!to_tunnel || own.iter().all(|own| route.to.addr() != std::net::IpAddr::V4(*own)));
            }
        }
    }
}

#[test]
fn a_next_key_is_a_peer_without_addresses_until_the_node_has_shown_that_it_uses_it() {
    let (next, at) = (WgKey([7; 32]), "192.0.2.2:40000".parse().expect("endpoint"));
    let changing = Peer { next: Some(NextKey { key: next, known: false }), ..peer(2) };
    let steady = fixture::cluster_part(vec![peer(1), peer(2)]);
    let cluster = fixture::cluster_part(vec![peer(1), changing.clone()]);
    let of = |allowed_ips: Vec<IpNet>, age: Option<u64>| TunnelPeerState {
        peer: TunnelPeer { endpoint: Some(at), allowed_ips, keepalive: Some(KEEPALIVE) },
        handshake_age: age.map(Duration::from_secs),
        rx_bytes: 0,
        tx_bytes: 0,
    };
    let all = peer(2).allowed_ips(steady.mesh, &steady.pairs);
    let mut tunnel = TunnelState::default();
    tunnel.peers.insert(peer(2).key, of(all.clone(), Some(1)));
    assert_eq!(steps_of(&steady, &tunnel), []);
    // Where the node is now, not where it says that it may be.
    let staged = TunnelPeer { endpoint: Some(at), allowed_ips: Vec::new(), keepalive: Some(KEEPALIVE) };
    let staging = [TunnelStep::Set(next, staged.clone()), TunnelStep::Succeed { old: peer(2).key, new: next }];
    assert_eq!(steps_of(&cluster, &tunnel), staging);
    tunnel.peers.insert(next, of(Vec::new(), None));
    assert_eq!(steps_of(&cluster, &tunnel), []);
    assert!(is_changing(&cluster, &"node1".into(), &tunnel) && !is_changing(&cluster, &"node2".into(), &tunnel));
    // A handshake with it: they move, and nothing is asked of the key before, from which they are taken with that.
    tunnel.peers.insert(next, of(Vec::new(), Some(0)));
    let moved = TunnelPeer { endpoint: None, allowed_ips: all.clone(), keepalive: Some(KEEPALIVE) };
    assert_eq!(steps_of(&cluster, &tunnel), [TunnelStep::Set(next, moved)]);
    tunnel.peers.insert(peer(2).key, of(Vec::new(), Some(1)));
    // `skep tunnel` forgets a handshake with its session; they do not move back.
    tunnel.peers.insert(next, of(all.clone(), None));
    assert_eq!(
        steps_of(&cluster, &tunnel),
        [TunnelStep::Redirect(next, Redirect { observed: Some(at), to: peer(2).endpoints[0] })]
    );
    tunnel.peers.insert(next, of(all.clone(), Some(0)));
    assert_eq!(steps_of(&cluster, &tunnel), []);
    assert!(!is_changing(&cluster, &"node1".into(), &tunnel));
    // It is the key.
    let changed = fixture::cluster_part(vec![peer(1), Peer { key: next, next: None, ..peer(2) }]);
    assert_eq!(steps_of(&changed, &tunnel), [TunnelStep::Remove(peer(2).key)]);
    // It gave the next one up, or this node has seen nothing of the change.
    let mut before = TunnelState::default();
    before.peers.insert(peer(2).key, of(all.clone(), Some(1)));
    before.peers.insert(next, of(Vec::new(), None));
    assert_eq!(steps_of(&steady, &before), [TunnelStep::Remove(next)]);
    let steps = steps_of(&changed, &before);
    assert_eq!(steps[0], TunnelStep::Remove(peer(2).key), "first: it frees the addresses");
    assert!(matches!(&steps[1], TunnelStep::Set(key, set) if *key == next && set.allowed_ips == all), "{steps:?}");
}

#[test]
fn a_key_that_two_nodes_have_stays_with_the_one_that_joined_first() {
    // The ids say nothing of who was first; subnets are given from the lowest on.
    for (first, second) in [("a", "z"), ("z", "a")] {
        let shared = WgKey([7; 32]);
        let older = Peer { node_id: first.into(), key: shared, ..peer(2) };
        let newer = Peer { node_id: second.into(), key: shared, ..peer(3) };
        let set = |nodes: [&Peer; 2], tunnel: &TunnelState| {
            let nodes = [&peer(1)].into_iter().chain(nodes).cloned().collect();
            let steps = peer_steps(&fixture::cluster_part(nodes), &me(), tunnel, &mut Attempts::default(), Instant::now());
            let mut set = steps.into_iter().filter_map(|step| match step {
                TunnelStep::Set(key, peer) if key == shared => Some(peer.allowed_ips),
                _ => None,
            });
            set.next()
        };
        let case = format!("{first} joined before {second}");
        let allowed = set([&older, &newer], &TunnelState::default()).expect("it is a peer");
        assert!(allowed.contains(&IpNet::from(older.subnet)), "{case}: {allowed:?}");
        // Also if the one that joined later has got a lower subnet, of a node that was removed: the key is in use for the other one.
        let (older, newer) = (Peer { subnet: newer.subnet, ..older.clone() }, Peer { subnet: older.subnet, ..newer });
        let allowed_ips = older.allowed_ips(mesh(), &[]);
        let endpoint = older.endpoints.first().copied();
        let state = TunnelPeerState {
            peer: TunnelPeer { endpoint, allowed_ips, keepalive: Some(KEEPALIVE) },
            handshake_age: Some(Duration::from_secs(1)),
            rx_bytes: 1,
            tx_bytes: 1,
        };
        let tunnel = TunnelState { peers: [(shared, state)].into(), ..TunnelState::default() };
        assert_eq!(set([&older, &newer], &tunnel), None, "{case}");
    }
}
