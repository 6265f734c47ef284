//! Tables of queries over one view: two user networks, an internal one and ingress.

use super::*;
use crate::model::fixture;
use crate::model::view::{Networks, Tasks};
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
    let tasks = Arc::new(Tasks { by_id: BTreeMap::from([(task.id.clone(), task)]) });
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
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    let records = Records::build(&ME.into(), &view(), &VipReadiness::default());
    let mut answer = records.answer(gateway.into(), IpAddr::from(source), &name, kind, &mut StdRng::seed_from_u64(1));
    if let RecordAnswer::Addresses(addresses) = &mut answer {
        addresses.sort();
    }
    answer
}

fn records_at(addresses: &[[u8; 4]]) -> RecordAnswer {
    RecordAnswer::Addresses(addresses.iter().map(|a| Ipv4Addr::from(*a)).collect())
}

#[test]
fn addresses() {
    let forward = || RecordAnswer::Forward(Vec::new());
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
        ("web", "app.4", RecordAnswer::Forward(vec![[192, 0, 2, 53].into(), "2001:db8::53".parse().unwrap()])),
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
        ("web", "example.com", RecordAnswer::Forward(vec![[192, 0, 2, 53].into(), "2001:db8::53".parse().unwrap()])),
        // An internal network: nothing is forwarded.
        ("safe", "safe", records_at(&[[10, 0, 3, 11], [10, 0, 3, 12]])),
        ("safe", "example.com", RecordAnswer::Refused),
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
        ("app", "9.9.9.9.in-addr.arpa", RecordAnswer::Forward(Vec::new())),
        ("app", "1.0.10.in-addr.arpa", RecordAnswer::Forward(Vec::new())),
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
    let name = Name::from_ascii("app.").unwrap();
    let answer = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        records.answer([10, 0, 1, 1].into(), IpAddr::from([10, 0, 1, 2]), &name, RecordType::A, &mut rng)
    };
    assert_eq!(answer(1), answer(1));
    assert_ne!(answer(1), answer(2));
    let RecordAnswer::Addresses(addresses) = answer(1) else { panic!("{:?}", answer(1)) };
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 248);
}

#[test]
fn labels_with_dots_or_invalid_bytes_are_no_name_of_ours() {
    let records = Records::build(&ME.into(), &view(), &VipReadiness::default());
    for labels in [vec![b"app.2".as_slice()], vec![b"\xff\xfe".as_slice()], vec![b"app".as_slice(), b"".as_slice()], vec![]] {
        let Ok(name) = Name::from_labels(labels) else { continue };
        let answer = records.answer(
            [10, 0, 1, 1].into(),
            IpAddr::from([10, 0, 1, 21]),
            &name,
            RecordType::A,
            &mut StdRng::seed_from_u64(1),
        );
        assert_eq!(answer, RecordAnswer::Forward(Vec::new()), "{name:?}");
    }
}

#[test]
fn gateways_are_recognised() {
    let records = Records::build(&ME.into(), &view(), &VipReadiness::default());
    assert!(records.is_gateway([10, 0, 2, 1].into()));
    assert!(!records.is_gateway([10, 0, 2, 2].into()));
}
