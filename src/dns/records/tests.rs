//! Tables of queries over one view: two user networks, an internal one and ingress.

use super::*;
use crate::model::fixture;
use crate::model::network::FurtherSubnet;
use crate::model::view::{Networks, Tasks};
use crate::model::view::{ServiceNames, ServiceVip, TaskEndpoint};
use crate::model::{NetworkV6, PortConfig, Protocol};
use ipnet::Ipv4Net;
use rand::{SeedableRng, rngs::StdRng};
use std::sync::Arc;

const ME: &str = "me";
const OTHER: &str = "other";

fn member(service: &str, slot: u64, node: &str, address: [u8; 4], backend: bool) -> TaskEndpoint {
    TaskEndpoint { backend, ..fixture::task_endpoint(service, slot, node, address.into()) }
}

fn network(name: &str, third: u8, members: Vec<TaskEndpoint>) -> NetworkPart {
    let subnet = Ipv4Net::new([10, 0, third, 0].into(), 24).unwrap();
    NetworkPart { internal: name == "vault", ..fixture::network_part(name, subnet, members) }
}

fn view() -> NodeView {
    let aliased = |mut m: TaskEndpoint, alias: &str| {
        m.aliases.push(alias.to_owned());
        m
    };
    let networks = vec![
        network(
            "ingress",
            0,
            vec![
                member("web", 1, ME, [10, 0, 0, 11], true),
                member("lone", 1, ME, [10, 0, 0, 12], true),
                member("far", 1, OTHER, [10, 0, 0, 13], true),
            ],
        ),
        network(
            "Front",
            1,
            vec![
                member("web", 1, ME, [10, 0, 1, 11], true),
                aliased(member("app", 1, ME, [10, 0, 1, 21], true), "Shop.Example"),
                aliased(member("app", 2, OTHER, [10, 0, 1, 22], true), "Shop.Example"),
                aliased(member("app", 3, OTHER, [10, 0, 1, 23], false), "Shop.Example"),
                member("asleep", 1, OTHER, [10, 0, 1, 31], false),
                member("both", 1, OTHER, [10, 0, 1, 41], false),
            ],
        ),
        network(
            "back",
            2,
            vec![
                member("app", 1, ME, [10, 0, 2, 21], true),
                member("db", 1, OTHER, [10, 0, 2, 31], true),
                member("both", 1, OTHER, [10, 0, 2, 41], true),
            ],
        ),
        network("vault", 3, vec![member("safe", 1, ME, [10, 0, 3, 11], true), member("safe", 2, OTHER, [10, 0, 3, 12], true)]),
    ];
    let task = fixture::task_with_resolvers("web1id", "web", ME, &["192.0.2.53", "rubbish", "2001:db8::53"]);
    let tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), Arc::new(task))]), ..Tasks::default() });
    NodeView { tasks, ..fixture::node_view(0, networks, fixture::cluster_part(Vec::new())) }
}

/// (gateway, source) of a query, by a short name.
fn client(name: &str) -> ([u8; 4], [u8; 4]) {
    match name {
        "web" => ([10, 0, 1, 1], [10, 0, 1, 11]),
        "web on ingress" => ([10, 0, 0, 1], [10, 0, 0, 11]),
        "app" => ([10, 0, 1, 1], [10, 0, 1, 21]),
        "app on back" => ([10, 0, 2, 1], [10, 0, 2, 21]),
        "safe" => ([10, 0, 3, 1], [10, 0, 3, 11]),
        "lone" => ([10, 0, 0, 1], [10, 0, 0, 12]),
        "remote" => ([10, 0, 1, 1], [10, 0, 1, 22]),
        "unknown" => ([10, 0, 1, 1], [10, 0, 1, 99]),
        "web at the wrong gateway" => ([10, 0, 2, 1], [10, 0, 1, 11]),
        other => panic!("unknown client {other}"),
    }
}

fn query(from: &str, name: &str, kind: RecordType) -> RecordAnswer {
    let (gateway, source) = client(from);
    sorted(view_records().answer(gateway.into(), IpAddr::from(source), &name.to_ascii_lowercase(), kind, &mut rng()))
}

fn view_records() -> Records {
    Records::build(&ME.into(), &view(), &VipReadiness::default())
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

fn sorted(mut answer: RecordAnswer) -> RecordAnswer {
    match &mut answer {
        RecordAnswer::Addresses(addresses) => addresses.sort(),
        RecordAnswer::Services(targets) => targets.sort(),
        _ => {}
    }
    answer
}

fn forward_to(resolvers: &[&str]) -> RecordAnswer {
    let resolvers = resolvers.iter().map(|text| text.parse().unwrap()).collect();
    RecordAnswer::Forward(OutsideName { resolvers, otherwise: None })
}

fn records_at(addresses: &[[u8; 4]]) -> RecordAnswer {
    RecordAnswer::Addresses(addresses.iter().map(|a| Ipv4Addr::from(*a)).collect())
}

#[test]
fn addresses() {
    let forward = || forward_to(&[]);
    let app = || records_at(&[[10, 0, 1, 21], [10, 0, 1, 22]]);
    let cases: Vec<(&str, &str, RecordAnswer)> = vec![
        // A service: its backends on the shared network, on all nodes.
        ("web", "app", app()),
        ("web", "tasks.app", app()),
        ("web", "APP", app()),
        ("web", "Tasks.aPP", app()),
        ("web", "web", records_at(&[[10, 0, 1, 11]])),
        // Aliases, with dots and capitals too.
        ("web", "shop.example", app()),
        ("web", "tasks.SHOP.example", app()),
        // One task.
        ("web", "app.2", records_at(&[[10, 0, 1, 22]])),
        ("web", "app.2.app2id", records_at(&[[10, 0, 1, 22]])),
        ("web", "app.3", RecordAnswer::Empty),
        ("web", "app.3.app3id", RecordAnswer::Empty),
        ("web", "app.4", forward_to(&["192.0.2.53", "2001:db8::53"])),
        // With the network's name.
        ("web", "app.front", app()),
        ("web", "tasks.app.FRONT", app()),
        ("web", "app.2.front", records_at(&[[10, 0, 1, 22]])),
        ("app", "app.back", records_at(&[[10, 0, 2, 21]])),
        ("app", "app.front", app()),
        // At each gateway, all networks of the client are searched.
        ("app", "db", records_at(&[[10, 0, 2, 31]])),
        ("app on back", "web", records_at(&[[10, 0, 1, 11]])),
        // A network without a backend of the name does not hide another one with a backend.
        ("app", "both", records_at(&[[10, 0, 2, 41]])),
        ("app", "both.front", RecordAnswer::Empty),
        // User networks come before ingress.
        ("web on ingress", "web", records_at(&[[10, 0, 1, 11]])),
        ("web on ingress", "web.ingress", records_at(&[[10, 0, 0, 11]])),
        ("lone", "far", records_at(&[[10, 0, 0, 13]])),
        // A name of ours without a backend: neither unknown nor forwarded.
        ("app", "asleep", RecordAnswer::Empty),
        ("app", "tasks.asleep", RecordAnswer::Empty),
        // Networks that the client is not on.
        ("app", "safe", forward()),
        ("app", "web.ingress", forward()),
        ("lone", "db", forward()),
        // Names outside the cluster, also those of one label.
        ("app", "example.com", forward()),
        ("app", "nosuch", forward()),
        ("app", "nosuch.front", forward()),
        ("app", "front", forward()),
        ("app", "tasks", forward()),
        ("app", "xapp", forward()),
        ("app", "appfront", forward()),
        // Resolvers of the task's spec.
        ("web", "example.com", forward_to(&["192.0.2.53", "2001:db8::53"])),
        // An internal network: nothing is forwarded.
        ("safe", "safe", records_at(&[[10, 0, 3, 11], [10, 0, 3, 12]])),
        ("safe", "example.com", RecordAnswer::NoSuchName),
        ("safe", "nosuch", RecordAnswer::NoSuchName),
        // No container of this node.
        ("unknown", "app", RecordAnswer::Refused),
        ("unknown", "example.com", RecordAnswer::Refused),
        ("remote", "app", RecordAnswer::Refused),
        ("web at the wrong gateway", "app", RecordAnswer::Refused),
    ];
    for (from, name, expected) in cases {
        assert_eq!(query(from, name, RecordType::A), expected, "{from} queries {name}");
    }
}

#[test]
fn other_types_of_our_names_are_empty_and_never_forwarded() {
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::HTTPS, RecordType::SOA] {
        assert_eq!(query("web", "app", kind), RecordAnswer::Empty, "{kind}");
        assert_eq!(query("web", "asleep", kind), RecordAnswer::Empty, "{kind}");
        assert!(matches!(query("web", "example.com", kind), RecordAnswer::Forward(_)), "{kind}");
    }
    assert_eq!(query("web", "app", RecordType::ANY), records_at(&[[10, 0, 1, 21], [10, 0, 1, 22]]));
}

/// `back` has both families here, the other networks have IPv4.
#[test]
fn names_on_a_dual_stack_network_have_addresses_of_both_families() {
    let mut view = view();
    let mut networks = (*view.networks).clone();
    let back = networks.by_id.values_mut().find(|network| network.name == "back").unwrap();
    back.v6 = Some(NetworkV6 { subnet: "fd00:2::/64".parse().unwrap(), gateway: "fd00:2::1".parse().unwrap() });
    let vip = ServiceVip { service_id: "db".into(), name: "db".to_owned(), vip: [10, 0, 2, 9].into() };
    back.services = vec![Arc::new(vip)];
    view.networks = Arc::new(networks);
    let six = |all: &[&str]| RecordAnswer::Addresses6(all.iter().map(|address| address.parse().unwrap()).collect());
    let ready =
        VipReadiness { containers: BTreeSet::from([[10, 0, 2, 21].into()]), vips: BTreeSet::from([[10, 0, 2, 9].into()]) };
    let answer = |ready: &VipReadiness, from: &str, name: &str, kind| {
        let (gateway, source) = client(from);
        Records::build(&ME.into(), &view, ready).answer(gateway.into(), IpAddr::from(source), name, kind, &mut rng())
    };
    let none = VipReadiness::default();
    for (ready, from, name, expected) in [
        (&none, "app", "db", six(&["fd00:2::1f"])),
        (&none, "app", "tasks.db", six(&["fd00:2::1f"])),
        (&none, "app", "db.1", six(&["fd00:2::1f"])),
        (&none, "app", "db.back", six(&["fd00:2::1f"])),
        // On two networks: the address on the one that has IPv6. A records are those of the first one.
        (&none, "app", "app", six(&["fd00:2::15"])),
        (&none, "app", "app.front", RecordAnswer::Empty),
        (&none, "web", "app", RecordAnswer::Empty),
        (&ready, "app", "db", six(&["fd00:2::9"])),
        (&ready, "app", "tasks.db", six(&["fd00:2::1f"])),
    ] {
        assert_eq!(answer(ready, from, name, RecordType::AAAA), expected, "{from} queries {name}");
    }
    assert_eq!(answer(&none, "app", "db", RecordType::A), records_at(&[[10, 0, 2, 31]]));
    let pointer = |address: &str| {
        let name = hickory_proto::rr::Name::from(address.parse::<IpAddr>().unwrap()).to_ascii();
        (
            answer(&ready, "app", name.trim_end_matches('.'), RecordType::PTR),
            answer(&ready, "web", name.trim_end_matches('.'), RecordType::PTR),
        )
    };
    assert_eq!(pointer("fd00:2::1f"), (RecordAnswer::Pointer("db.1.db1id.back".to_owned()), RecordAnswer::NoSuchName));
    assert_eq!(pointer("fd00:2::9").0, RecordAnswer::Pointer("db.back".to_owned()));
    assert_eq!(pointer("fd00:2::77").0, RecordAnswer::NoSuchName);
}

/// The parts of its IPv6 subnet for its IPv4 subnets leave much of it out, and the gateway may be there.
#[test]
fn the_name_of_no_address_of_a_network_is_asked_for_outside() {
    let mut view = view();
    let mut networks = (*view.networks).clone();
    let back = networks.by_id.values_mut().find(|network| network.name == "back").unwrap();
    back.v6 = Some(NetworkV6 { subnet: "fd00:2::/64".parse().unwrap(), gateway: "fd00:2::1".parse().unwrap() });
    back.further = vec![FurtherSubnet { subnet: "10.0.9.0/24".parse().unwrap(), gateway: [10, 0, 9, 1].into() }];
    view.networks = Arc::new(networks);
    let (gateway, source) = client("web");
    let records = Records::build(&ME.into(), &view, &VipReadiness::default());
    for (address, expected) in [
        ("fd00:2::1", RecordAnswer::NoSuchName),
        ("fd00:2::a00:903", RecordAnswer::NoSuchName),
        ("fd00:3::1", forward_to(&["192.0.2.53", "2001:db8::53"])),
    ] {
        let name = hickory_proto::rr::Name::from(address.parse::<IpAddr>().unwrap()).to_ascii();
        let name = name.trim_end_matches('.');
        assert_eq!(records.answer(gateway.into(), source.into(), name, RecordType::PTR, &mut rng()), expected, "{address}");
    }
}

#[test]
fn pointers() {
    let pointer = |name: &str| RecordAnswer::Pointer(name.to_owned());
    let cases = [
        ("web", "22.1.0.10.in-addr.arpa", pointer("app.2.app2id.Front")),
        ("web", "22.1.0.10.IN-ADDR.ARPA", pointer("app.2.app2id.Front")),
        // A task that is no backend has its PTR record all the same.
        ("web", "23.1.0.10.in-addr.arpa", pointer("app.3.app3id.Front")),
        ("web", "200.1.0.10.in-addr.arpa", RecordAnswer::NoSuchName),
        ("web", "31.2.0.10.in-addr.arpa", RecordAnswer::NoSuchName),
        ("app", "31.2.0.10.in-addr.arpa", pointer("db.1.db1id.back")),
        ("app", "9.9.9.9.in-addr.arpa", forward_to(&[])),
        ("app", "1.0.10.in-addr.arpa", forward_to(&[])),
        ("unknown", "22.1.0.10.in-addr.arpa", RecordAnswer::Refused),
    ];
    for (from, name, expected) in cases {
        assert_eq!(query(from, name, RecordType::PTR), expected, "{from} queries {name}");
    }
    assert_eq!(query("web", "22.1.0.10.in-addr.arpa", RecordType::A), RecordAnswer::Empty);
    let mesh = Name::from("fd12:3456:789a:8000::5".parse::<std::net::Ipv6Addr>().unwrap());
    assert_eq!(query("app", mesh.to_ascii().trim_end_matches('.'), RecordType::PTR), RecordAnswer::NoSuchName);
}

#[test]
fn addresses_are_shuffled_by_the_random_number_generator() {
    let mut view = view();
    let many = (2..250).map(|n| member("app", u64::from(n), ME, [10, 0, 1, n], true)).collect();
    view.networks = Arc::new(Networks { by_id: BTreeMap::from([("front".into(), network("front", 1, many))]) });
    let records = Records::build(&ME.into(), &view, &VipReadiness::default());
    let answer = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        records.answer([10, 0, 1, 1].into(), IpAddr::from([10, 0, 1, 2]), "app", RecordType::A, &mut rng)
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
    let RecordAnswer::Addresses(addresses) = answer(1) else { panic!("{:?}", answer(1)) };
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 248);
}

#[test]
fn gateways_are_recognised() {
    let records = Records::build(&ME.into(), &view(), &VipReadiness::default());
    assert!(records.is_gateway([10, 0, 2, 1].into()));
    assert!(!records.is_gateway([10, 0, 2, 2].into()));
}

/// `web` of this node and `app`, `gone`, `lean` on one network; `app` has ports, `gone` no task, `lean` neither ports nor tasks.
fn services() -> NodeView {
    let port = |name: &str, protocol, target_port| PortConfig {
        name: name.to_owned(),
        protocol,
        target_port,
        published_port: 30_000 + target_port,
        ..PortConfig::default()
    };
    let names = |name: &str, aliases: &[&str], ports: Vec<PortConfig>| {
        let aliases = aliases.iter().map(ToString::to_string).collect();
        Arc::new(ServiceNames { service_id: name.into(), name: name.to_owned(), aliases, ports })
    };
    let vip =
        |name: &str, last| Arc::new(ServiceVip { service_id: name.into(), name: name.to_owned(), vip: [10, 0, 1, last].into() });
    let shop = |member: TaskEndpoint| TaskEndpoint { aliases: vec!["Shop".to_owned()], ..member };
    let mut front = network(
        "Front",
        1,
        vec![
            member("web", 1, ME, [10, 0, 1, 11], true),
            shop(member("app", 1, ME, [10, 0, 1, 21], true)),
            shop(member("app", 2, OTHER, [10, 0, 1, 22], true)),
            shop(member("app", 3, OTHER, [10, 0, 1, 23], false)),
        ],
    );
    front.names = vec![
        names(
            "app",
            &["Shop"],
            vec![port("Metrics", Protocol::Tcp, 9100), port("", Protocol::Udp, 53), port("", Protocol::Tcp, 80)],
        ),
        names("gone", &["left"], vec![port("", Protocol::Tcp, 80)]),
        names("lean", &[], Vec::new()),
    ];
    front.services = vec![vip("app", 201), vip("gone", 202)];
    let mut inner = network("vault", 3, vec![member("safe", 1, ME, [10, 0, 3, 11], true)]);
    inner.names = vec![names("shut", &[], Vec::new())];
    let mut task = fixture::task_with_resolvers("web1id", "web", ME, &[]);
    let config = Arc::make_mut(&mut task.spec).container_spec.dns_config.as_mut().unwrap();
    config.search = vec!["Corp.Test.".to_owned()];
    config.options = vec!["ndots:2".to_owned()];
    let tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), Arc::new(task))]), ..Tasks::default() });
    NodeView { tasks, ..fixture::node_view(0, vec![front, inner], fixture::cluster_part(Vec::new())) }
}

/// With virtual addresses in every container of this node, or in none.
fn answer_in(view: &NodeView, vips: bool, from: &str, name: &str, kind: RecordType) -> RecordAnswer {
    let (gateway, source) = client(from);
    let ready = VipReadiness {
        containers: BTreeSet::from([[10, 0, 1, 11].into(), [10, 0, 1, 21].into()]),
        vips: BTreeSet::from([[10, 0, 1, 201].into(), [10, 0, 1, 202].into()]),
    };
    let records = Records::build(&ME.into(), view, &if vips { ready } else { VipReadiness::default() });
    sorted(records.answer(gateway.into(), IpAddr::from(source), name, kind, &mut rng()))
}

/// The host would ask the machine that has the address on the networks outside.
#[test]
fn a_resolver_with_an_address_of_an_overlay_network_is_passed_over() {
    let mut view = services();
    let task = fixture::task_with_resolvers("web1id", "web", ME, &["10.0.1.53", "192.0.2.53", "fd00:7::53", "2001:db8::53"]);
    view.tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), Arc::new(task))]), ..Tasks::default() });
    let cluster = Arc::make_mut(&mut view.cluster);
    cluster.subnets = vec!["10.0.1.0/24".parse().unwrap()];
    cluster.pairs = vec![crate::model::SubnetPair { v4: "10.0.1.0/24".parse().unwrap(), v6: "fd00:7::/64".parse().unwrap() }];
    let answer = answer_in(&view, false, "web", "example.test", RecordType::A);
    assert_eq!(answer, forward_to(&["192.0.2.53", "2001:db8::53"]));
}

#[test]
fn a_service_without_a_task_is_known_with_its_virtual_address_or_without_records() {
    let view = services();
    for name in ["gone", "left", "gone.front"] {
        assert_eq!(answer_in(&view, true, "app", name, RecordType::A), records_at(&[[10, 0, 1, 202]]), "{name}");
        assert_eq!(answer_in(&view, true, "app", name, RecordType::AAAA), RecordAnswer::Empty, "{name}");
        assert_eq!(answer_in(&view, false, "app", name, RecordType::A), RecordAnswer::Empty, "{name}");
    }
    for vips in [false, true] {
        for name in ["tasks.gone", "lean", "tasks.lean", "lean.front"] {
            for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS] {
                assert_eq!(answer_in(&view, vips, "app", name, kind), RecordAnswer::Empty, "{name}");
            }
        }
        assert_eq!(answer_in(&view, vips, "app", "unheard", RecordType::A), forward_to(&[]));
    }
    assert_eq!(answer_in(&view, true, "app", "app", RecordType::A), records_at(&[[10, 0, 1, 201]]));
    assert_eq!(answer_in(&view, true, "app", "tasks.app", RecordType::A), records_at(&[[10, 0, 1, 21], [10, 0, 1, 22]]));
    assert_eq!(answer_in(&view, false, "safe", "shut", RecordType::A), RecordAnswer::Empty);
}

#[test]
fn a_name_without_a_task_on_one_network_does_not_hide_tasks_on_another() {
    let mut view = services();
    let mut back =
        network("back", 2, vec![member("gone", 7, OTHER, [10, 0, 2, 77], true), member("app", 1, ME, [10, 0, 2, 21], true)]);
    Arc::make_mut(&mut back.members[0]).service_id = "another".into();
    Arc::make_mut(&mut view.networks).by_id.insert("zback".into(), back);
    for vips in [false, true] {
        assert_eq!(answer_in(&view, vips, "app", "gone", RecordType::A), records_at(&[[10, 0, 2, 77]]));
    }
}

#[test]
fn ports_of_services_are_answered_inside_or_do_not_exist() {
    let view = services();
    let target = |slot: u8, port| ServiceTarget {
        host: format!("app.{slot}.app{slot}id.Front"),
        address: [10, 0, 1, 20 + slot].into(),
        port,
    };
    let both = |port| RecordAnswer::Services(vec![target(1, port), target(2, port)]);
    for vips in [false, true] {
        for (name, expected) in [
            ("_80._tcp.app", both(80)),
            ("_http._tcp.app", both(80)),
            ("_http._tcp.tasks.app", both(80)),
            ("_http._tcp.shop", both(80)),
            ("_http._tcp.app.front", both(80)),
            ("_metrics._tcp.app", both(9100)),
            ("_9100._tcp.app", both(9100)),
            ("_domain._udp.app", both(53)),
            ("_http._tcp.app.2", RecordAnswer::Services(vec![target(2, 80)])),
            ("_http._tcp.app.3", RecordAnswer::Empty),
            // No task, but a port.
            ("_http._tcp.gone", RecordAnswer::Empty),
            // No such port.
            ("_https._tcp.app", RecordAnswer::NoSuchName),
            ("_http._udp.app", RecordAnswer::NoSuchName),
            ("_http._tcp.lean", RecordAnswer::NoSuchName),
            ("_8443._https.app", RecordAnswer::NoSuchName),
            // Not ours.
            ("_http._tcp.example.com", forward_to(&[])),
            ("_dmarc.example.com", forward_to(&[])),
        ] {
            assert_eq!(answer_in(&view, vips, "app", name, RecordType::SRV), expected, "{name}");
        }
        for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            assert_eq!(answer_in(&view, vips, "app", "_http._tcp.app", kind), RecordAnswer::Empty, "{kind}");
            assert_eq!(answer_in(&view, vips, "app", "_https._tcp.app", kind), RecordAnswer::NoSuchName, "{kind}");
        }
    }
    assert_eq!(answer_in(&view, false, "safe", "_http._tcp.example.com", RecordType::SRV), RecordAnswer::NoSuchName);
}

#[test]
fn names_in_a_search_domain_are_ours_if_the_domain_does_not_have_them() {
    let view = services();
    let otherwise = |name: &str| match answer_in(&view, false, "web", name, RecordType::A) {
        RecordAnswer::Forward(outside) => outside.otherwise.map(|answer| *answer),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(otherwise("lean.corp.test"), Some(RecordAnswer::Empty));
    assert_eq!(otherwise("web.corp.test"), Some(records_at(&[[10, 0, 1, 11]])));
    assert_eq!(otherwise("web.front.corp.test"), Some(records_at(&[[10, 0, 1, 11]])));
    for other in ["unheard.corp.test", "webcorp.test", "corp.test", "web.other.test", "unheard"] {
        assert_eq!(otherwise(other), None, "{other}");
    }
    // A task without `ndots` asks for the name itself first.
    assert_eq!(answer_in(&view, false, "app", "web.corp.test", RecordType::A), forward_to(&[]));
}
