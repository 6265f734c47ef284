//! A table of questions over one view: two user networks, an internal one and ingress.

use super::*;
use crate::model::mesh::MeshPrefix;
use crate::model::service::EndpointMode;
use crate::model::task::{ContainerSpec, DnsConfig};
use crate::model::view::{ClusterPart, Networks, Tasks};
use crate::model::{Meta, NetworkId, Revision, Task, TaskSpec, TaskState, TaskStatus};
use rand::{SeedableRng, rngs::StdRng};
use std::sync::Arc;

const HERE: &str = "here";
const THERE: &str = "there";

fn member(service: &str, slot: u64, node: &str, address: [u8; 4], backend: bool) -> TaskEndpoint {
    let id = format!("{service}{slot}id");
    TaskEndpoint {
        container_name: format!("{service}.{slot}.{id}"),
        task_id: id.into(),
        service_id: service.into(),
        service_name: service.to_owned(),
        endpoint_mode: EndpointMode::Vip,
        aliases: Vec::new(),
        slot,
        node_id: node.into(),
        address: address.into(),
        backend,
    }
}

fn network(name: &str, third: u8, members: Vec<TaskEndpoint>) -> (NetworkId, NetworkPart) {
    let part = NetworkPart {
        name: name.to_owned(),
        subnet: Ipv4Net::new([10, 0, third, 0].into(), 24).unwrap(),
        gateway: [10, 0, third, 1].into(),
        internal: name == "vault",
        ingress: name == "ingress",
        members: members.into_iter().map(Arc::new).collect(),
        services: Vec::new(),
    };
    (name.into(), part)
}

fn task(id: &str, nameservers: &[&str]) -> Task {
    let nameservers = nameservers.iter().map(ToString::to_string).collect();
    let container_spec =
        ContainerSpec { dns_config: Some(DnsConfig { nameservers, ..DnsConfig::default() }), ..ContainerSpec::default() };
    Task {
        id: id.into(),
        meta: Meta::default(),
        spec: TaskSpec { container_spec, ..TaskSpec::default() },
        spec_version: 1,
        service_id: "web".into(),
        service_name: "web".to_owned(),
        service_labels: BTreeMap::new(),
        slot: 1,
        node_id: Some(HERE.into()),
        desired_state: TaskState::Running,
        status: TaskStatus::default(),
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
    }
}

fn view() -> NodeView {
    let aliased = |mut m: TaskEndpoint, alias: &str| {
        m.aliases.push(alias.to_owned());
        m
    };
    let networks = BTreeMap::from([
        network(
            "ingress",
            0,
            vec![
                member("web", 1, HERE, [10, 0, 0, 11], true),
                member("lone", 1, HERE, [10, 0, 0, 12], true),
                member("far", 1, THERE, [10, 0, 0, 13], true),
            ],
        ),
        network(
            "Front",
            1,
            vec![
                member("web", 1, HERE, [10, 0, 1, 11], true),
                aliased(member("app", 1, HERE, [10, 0, 1, 21], true), "Shop.Example"),
                aliased(member("app", 2, THERE, [10, 0, 1, 22], true), "Shop.Example"),
                aliased(member("app", 3, THERE, [10, 0, 1, 23], false), "Shop.Example"),
                member("asleep", 1, THERE, [10, 0, 1, 31], false),
                member("both", 1, THERE, [10, 0, 1, 41], false),
            ],
        ),
        network(
            "back",
            2,
            vec![
                member("app", 1, HERE, [10, 0, 2, 21], true),
                member("db", 1, THERE, [10, 0, 2, 31], true),
                member("both", 1, THERE, [10, 0, 2, 41], true),
            ],
        ),
        network("vault", 3, vec![member("safe", 1, HERE, [10, 0, 3, 11], true), member("safe", 2, THERE, [10, 0, 3, 12], true)]),
    ]);
    let mesh = MeshPrefix("fd12:3456:789a::/48".parse().unwrap());
    NodeView {
        revision: Revision::default(),
        tasks: Arc::new(Tasks {
            by_id: BTreeMap::from([("web1id".into(), task("web1id", &["192.0.2.53", "rubbish", "2001:db8::53"]))]),
        }),
        networks: Arc::new(Networks { by_id: networks }),
        cluster: Arc::new(ClusterPart { mesh, pools: Vec::new(), nodes: Vec::new(), ports: Vec::new() }),
    }
}

/// Who asks: (gateway, source) by a short name.
fn asker(who: &str) -> ([u8; 4], [u8; 4]) {
    match who {
        "web" => ([10, 0, 1, 1], [10, 0, 1, 11]),
        "web at ingress" => ([10, 0, 0, 1], [10, 0, 0, 11]),
        "app" => ([10, 0, 1, 1], [10, 0, 1, 21]),
        "app at back" => ([10, 0, 2, 1], [10, 0, 2, 21]),
        "safe" => ([10, 0, 3, 1], [10, 0, 3, 11]),
        "lone" => ([10, 0, 0, 1], [10, 0, 0, 12]),
        "remote" => ([10, 0, 1, 1], [10, 0, 1, 22]),
        "stranger" => ([10, 0, 1, 1], [10, 0, 1, 99]),
        "web at the wrong gateway" => ([10, 0, 2, 1], [10, 0, 1, 11]),
        other => panic!("unknown asker {other}"),
    }
}

fn ask(who: &str, name: &str, kind: RecordType) -> Answer {
    let (gateway, source) = asker(who);
    let name = Name::from_ascii(format!("{name}.")).unwrap();
    let records = Records::build(&HERE.into(), &view(), &VipReadiness::default());
    let mut answer = records.answer(gateway.into(), IpAddr::from(source), &name, kind, &mut StdRng::seed_from_u64(1));
    if let Answer::Addresses(addresses) = &mut answer {
        addresses.sort();
    }
    answer
}

fn at(addresses: &[[u8; 4]]) -> Answer {
    Answer::Addresses(addresses.iter().map(|a| Ipv4Addr::from(*a)).collect())
}

#[test]
fn addresses() {
    let foreign = || Answer::Foreign(Vec::new());
    let app = || at(&[[10, 0, 1, 21], [10, 0, 1, 22]]);
    let cases: Vec<(&str, &str, Answer)> = vec![
        // A service: its backends on the shared network, whichever node they run on.
        ("web", "app", app()),
        ("web", "tasks.app", app()),
        ("web", "APP", app()),
        ("web", "Tasks.aPP", app()),
        ("web", "web", at(&[[10, 0, 1, 11]])),
        // Aliases, with dots and capitals too.
        ("web", "shop.example", app()),
        ("web", "tasks.SHOP.example", app()),
        // One task.
        ("web", "app.2", at(&[[10, 0, 1, 22]])),
        ("web", "app.2.app2id", at(&[[10, 0, 1, 22]])),
        ("web", "app.3", Answer::Empty),
        ("web", "app.3.app3id", Answer::Empty),
        ("web", "app.4", Answer::Foreign(vec![[192, 0, 2, 53].into(), "2001:db8::53".parse().unwrap()])),
        // Within a network.
        ("web", "app.front", app()),
        ("web", "tasks.app.FRONT", app()),
        ("web", "app.2.front", at(&[[10, 0, 1, 22]])),
        ("app", "app.back", at(&[[10, 0, 2, 21]])),
        ("app", "app.front", app()),
        // Asked at one gateway, all of the asker's networks are seen.
        ("app", "db", at(&[[10, 0, 2, 31]])),
        ("app at back", "web", at(&[[10, 0, 1, 11]])),
        // A network where nobody is there does not hide one where somebody is.
        ("app", "both", at(&[[10, 0, 2, 41]])),
        ("app", "both.front", Answer::Empty),
        // User networks come before ingress.
        ("web at ingress", "web", at(&[[10, 0, 1, 11]])),
        ("web at ingress", "web.ingress", at(&[[10, 0, 0, 11]])),
        ("lone", "far", at(&[[10, 0, 0, 13]])),
        // Owned without a backend: neither unknown nor asked of the world.
        ("app", "asleep", Answer::Empty),
        ("app", "tasks.asleep", Answer::Empty),
        // Not the asker's networks.
        ("app", "safe", foreign()),
        ("app", "web.ingress", foreign()),
        ("lone", "db", foreign()),
        // Foreign, with one label too.
        ("app", "example.com", foreign()),
        ("app", "nosuch", foreign()),
        ("app", "nosuch.front", foreign()),
        ("app", "front", foreign()),
        ("app", "tasks", foreign()),
        ("app", "xapp", foreign()),
        ("app", "appfront", foreign()),
        // The spec's own resolvers.
        ("web", "example.com", Answer::Foreign(vec![[192, 0, 2, 53].into(), "2001:db8::53".parse().unwrap()])),
        // No way out: no question out.
        ("safe", "safe", at(&[[10, 0, 3, 11], [10, 0, 3, 12]])),
        ("safe", "example.com", Answer::Refused),
        // Nobody we know.
        ("stranger", "app", Answer::Refused),
        ("stranger", "example.com", Answer::Refused),
        ("remote", "app", Answer::Refused),
        ("web at the wrong gateway", "app", Answer::Refused),
    ];
    for (who, name, expected) in cases {
        assert_eq!(ask(who, name, RecordType::A), expected, "{who} asks {name}");
    }
}

#[test]
fn other_types_of_our_names_are_empty_and_never_foreign() {
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::HTTPS, RecordType::SOA] {
        assert_eq!(ask("web", "app", kind), Answer::Empty, "{kind}");
        assert_eq!(ask("web", "asleep", kind), Answer::Empty, "{kind}");
        assert!(matches!(ask("web", "example.com", kind), Answer::Foreign(_)), "{kind}");
    }
    assert_eq!(ask("web", "app", RecordType::ANY), at(&[[10, 0, 1, 21], [10, 0, 1, 22]]));
}

#[test]
fn pointers() {
    let pointer = |name: &str| Answer::Pointer(name.to_owned());
    let cases = [
        ("web", "22.1.0.10.in-addr.arpa", pointer("app.2.app2id.Front")),
        ("web", "22.1.0.10.IN-ADDR.ARPA", pointer("app.2.app2id.Front")),
        // What an address is does not depend on whether it takes traffic.
        ("web", "23.1.0.10.in-addr.arpa", pointer("app.3.app3id.Front")),
        ("web", "200.1.0.10.in-addr.arpa", Answer::NoSuchName),
        ("web", "31.2.0.10.in-addr.arpa", Answer::NoSuchName),
        ("app", "31.2.0.10.in-addr.arpa", pointer("db.1.db1id.back")),
        ("app", "9.9.9.9.in-addr.arpa", Answer::Foreign(Vec::new())),
        ("app", "1.0.10.in-addr.arpa", Answer::Foreign(Vec::new())),
        ("stranger", "22.1.0.10.in-addr.arpa", Answer::Refused),
    ];
    for (who, name, expected) in cases {
        assert_eq!(ask(who, name, RecordType::PTR), expected, "{who} asks {name}");
    }
    assert_eq!(ask("web", "22.1.0.10.in-addr.arpa", RecordType::A), Answer::Empty);
    let mesh = Name::from("fd12:3456:789a:8000::5".parse::<std::net::Ipv6Addr>().unwrap());
    assert_eq!(ask("app", mesh.to_ascii().trim_end_matches('.'), RecordType::PTR), Answer::NoSuchName);
}

#[test]
fn addresses_are_shuffled_by_the_given_randomness() {
    let mut view = view();
    let many = (2..250).map(|n| member("app", u64::from(n), HERE, [10, 0, 1, n], true)).collect();
    view.networks = Arc::new(Networks { by_id: BTreeMap::from([network("front", 1, many)]) });
    let records = Records::build(&HERE.into(), &view, &VipReadiness::default());
    let name = Name::from_ascii("app.").unwrap();
    let of = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        records.answer([10, 0, 1, 1].into(), IpAddr::from([10, 0, 1, 2]), &name, RecordType::A, &mut rng)
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    let Answer::Addresses(addresses) = of(1) else { panic!("{:?}", of(1)) };
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 248);
}

#[test]
fn labels_with_dots_or_rubbish_in_them_are_nobodys_name() {
    let records = Records::build(&HERE.into(), &view(), &VipReadiness::default());
    for labels in [vec![b"app.2".as_slice()], vec![b"\xff\xfe".as_slice()], vec![b"app".as_slice(), b"".as_slice()], vec![]] {
        let Ok(name) = Name::from_labels(labels) else { continue };
        let answer = records.answer(
            [10, 0, 1, 1].into(),
            IpAddr::from([10, 0, 1, 21]),
            &name,
            RecordType::A,
            &mut StdRng::seed_from_u64(1),
        );
        assert_eq!(answer, Answer::Foreign(Vec::new()), "{name:?}");
    }
}

#[test]
fn our_own_gateways_are_known_as_such() {
    let records = Records::build(&HERE.into(), &view(), &VipReadiness::default());
    assert!(records.is_gateway([10, 0, 2, 1].into()));
    assert!(!records.is_gateway([10, 0, 2, 2].into()));
}
