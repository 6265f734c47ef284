//! Properties of the store: equal transactions result in equal bytes, a snapshot is the whole state, a refused transaction
//! writes nothing, names are unique; bytes that an earlier build wrote are still read.

mod conditions;
mod cost;
mod diff;
mod fields;
mod indexes;
mod payloads;
mod time;

use proptest::prelude::*;
use skep::model::WgKey;
use skep::model::cluster::{Cluster, ClusterSpec, JoinTokens};
use skep::model::mesh::MeshPrefix;
use skep::model::network::{Network, NetworkSpec};
use skep::model::node::{Node, NodeDescription, NodeMesh, NodeSpec, NodeStatus};
use skep::model::payload::{PayloadSpec, SealedData};
use skep::model::service::{Endpoint, EndpointSpec, Service, ServiceSpec};
use skep::model::task::{Attachment, NetworkAttachmentConfig, Task, TaskSpec, TaskState, TaskStatus};
use skep::model::{ClusterId, ClusterSecret, Meta, NetworkId, NodeId, PortConfig, ServiceId, TaskId, Timestamp};
use skep::store::{Action, FEATURE_LEVELS, Kind, Object, Store, StoreError, Transaction};
use std::collections::{BTreeMap, BTreeSet};

/// Few ids and names, so that they collide.
const IDS: [&str; 4] = ["a", "b", "c", "d"];
const NAMES: [&str; 6] = ["web", "WEB", "Web", "db", "Db", "cache"];

#[derive(Clone, Copy, Debug)]
enum Verb {
    Create,
    /// With the stored version, or (outdated) with another one.
    Update {
        outdated: bool,
    },
    Remove,
}

#[derive(Clone, Copy, Debug)]
struct Op {
    verb: Verb,
    kind: Kind,
    id: usize,
    name: usize,
    number: u16,
}

fn ops() -> impl Strategy<Value = Vec<(i64, Vec<Op>)>> {
    let verb = prop_oneof![
        4 => Just(Verb::Create),
        4 => Just(Verb::Update { outdated: false }),
        1 => Just(Verb::Update { outdated: true }),
        2 => Just(Verb::Remove),
    ];
    let kind = prop_oneof![
        1 => Just(Kind::Cluster),
        2 => Just(Kind::Node),
        3 => Just(Kind::Network),
        3 => Just(Kind::Service),
        3 => Just(Kind::Task),
        2 => Just(Kind::ClusterSecret),
    ];
    let op = (verb, kind, 0..IDS.len(), 0..NAMES.len(), any::<u16>()).prop_map(|(verb, kind, id, name, number)| Op {
        verb,
        kind,
        id,
        name,
        number,
    });
    proptest::collection::vec((any::<i64>(), proptest::collection::vec(op, 1..4)), 1..40)
}

fn object(op: Op, meta: Meta) -> Object {
    let (id, name, number) = (IDS[op.id], NAMES[op.name], op.number);
    let labels = BTreeMap::from([("number".to_owned(), number.to_string())]);
    let mesh = MeshPrefix("fd00:1:2::/48".parse().expect("prefix"));
    match op.kind {
        Kind::Cluster => Cluster {
            id: ClusterId::from(id),
            meta,
            spec: ClusterSpec { labels, ..ClusterSpec::default() },
            incarnation: u64::from(number),
            ca_certificate: "certificate".to_owned(),
            ca_key: "key".into(),
            tokens: JoinTokens { worker: "w".into(), manager: "m".into() },
            mesh,
            address_pools: vec!["10.0.0.0/8".parse().expect("pool")],
            reserved_subnets: Vec::new(),
            ca_history: skep::model::CaHistory::default(),
            unlock_key: None,
            incarnations: Vec::new(),
            subnet_size: 24,
            feature_level: 1 + u32::from(number % 2),
            data_path_port: number,
        }
        .into(),
        Kind::Node => Node {
            id: NodeId::from(id),
            meta,
            spec: NodeSpec { labels, ..NodeSpec::default() },
            description: NodeDescription { hostname: name.to_owned(), ..NodeDescription::default() },
            status: NodeStatus::default(),
            mesh: NodeMesh {
                key: WgKey([number.to_le_bytes()[0]; 32]),
                next: None,
                subnet: mesh.node(number),
                ingress_addr: "10.255.0.2".parse().expect("address"),
                endpoints: vec![],
            },
            manager: None,
        }
        .into(),
        Kind::Network => Network {
            id: NetworkId::from(id),
            meta,
            spec: NetworkSpec { name: name.to_owned(), labels, ..NetworkSpec::default() },
            subnet: None,
            further: Vec::new(),
            subnet6: None,
            removing: number % 8 == 7,
        }
        .into(),
        Kind::Service => Service {
            id: ServiceId::from(id),
            meta,
            spec: ServiceSpec {
                name: name.to_owned(),
                labels,
                task_template: TaskSpec { networks: vec![attachment(IDS[op.name % 4])], ..TaskSpec::default() },
                endpoint_spec: Some(EndpointSpec { ports: vec![port(number % 4)], ..EndpointSpec::default() }),
                ..ServiceSpec::default()
            },
            previous_spec: Some(ServiceSpec::default()),
            pull_auth: None,
            previous_pull_auth: None,
            spec_version: u64::from(number),
            previous_spec_version: None,
            newest_spec_version: None,
            update: None,
            job: None,
            endpoint: Endpoint { ports: vec![port(number % 3)], ..Endpoint::default() },
            scalings: Vec::new(),
        }
        .into(),
        Kind::Task => Task {
            id: TaskId::from(id),
            meta,
            // Some share one, some have none.
            spec: TaskSpec { force_update: u64::from(number / 3 % 3), ..TaskSpec::default() }.into(),
            spec_version: 0,
            service_id: ServiceId::from(IDS[op.name % 4]),
            service_name: name.to_owned(),
            service_labels: labels.into(),
            slot: u64::from(number),
            slot_node: None,
            job_iteration: None,
            cause: None,
            end: None,
            started_at: None,
            move_to: None,
            node_id: (number % 2 == 0).then(|| NodeId::from(id)),
            desired_state: TaskState::Running,
            status: TaskStatus {
                timestamp: Timestamp(i64::from(number)),
                state: [TaskState::New, TaskState::Pending, TaskState::Assigned, TaskState::Running][usize::from(number % 4)],
                ..TaskStatus::default()
            },
            attachments: vec![Attachment {
                network_id: NetworkId::from(IDS[usize::from(number / 4) % 4]),
                address: "172.16.9.7/24".parse().expect("address"),
            }],
            not_before: Some(Timestamp(i64::from(number))),
            ports: Vec::new(),
            listens: Vec::new(),
            failures: skep::model::task::EarlierFailures::default(),
            pull_auth: None,
            generic_resources: Vec::new(),
            attached: None,
        }
        .into(),
        Kind::ClusterSecret => ClusterSecret {
            id: id.into(),
            meta,
            spec: PayloadSpec { name: name.to_owned(), labels, ..PayloadSpec::default() },
            data: SealedData(number.to_string()),
        }
        .into(),
        // As secrets, and as the cluster: there is one at most.
        Kind::ClusterConfig | Kind::PayloadKeys | Kind::AcmeAccount | Kind::AcmeCertificate => {
            unreachable!("not among the operations")
        }
    }
}

fn attachment(network: &str) -> NetworkAttachmentConfig {
    NetworkAttachmentConfig { target: network.to_owned(), ..NetworkAttachmentConfig::default() }
}

fn port(published_port: u16) -> PortConfig {
    PortConfig { published_port, target_port: 80, ..PortConfig::default() }
}

fn stored(store: &Store, kind: Kind, id: &str) -> Option<Meta> {
    match kind {
        Kind::Cluster => store.cluster().filter(|c| c.id.as_str() == id).map(|c| c.meta),
        Kind::Node => store.node(&id.into()).map(|o| o.meta),
        Kind::Network => store.network(&id.into()).map(|o| o.meta),
        Kind::Service => store.service(&id.into()).map(|o| o.meta),
        Kind::Task => store.task(&id.into()).map(|o| o.meta),
        Kind::ClusterSecret | Kind::ClusterConfig | Kind::PayloadKeys | Kind::AcmeAccount | Kind::AcmeCertificate => {
            kind.stored_meta(store, id)
        }
    }
}

/// The transaction of a client that has read `store`.
fn transaction(store: &Store, at: i64, ops: &[Op]) -> Transaction {
    let actions = ops.iter().map(|op| match op.verb {
        Verb::Create => Action::Create(object(*op, Meta::default())),
        Verb::Update { outdated } => {
            let mut meta = stored(store, op.kind, IDS[op.id]).unwrap_or_default();
            meta.version += u64::from(outdated);
            Action::Update(object(*op, meta))
        }
        Verb::Remove => Action::Remove(op.kind, IDS[op.id].to_owned()),
    });
    Transaction { at: Timestamp(at), actions: actions.collect(), ..Transaction::default() }
}

/// The snapshot without the index of the last transaction.
fn content(store: &Store) -> serde_json::Value {
    let mut value: serde_json::Value = serde_json::from_slice(&store.snapshot()).expect("JSON");
    value["store"]["index"].take();
    value
}

fn run(all: &[(i64, Vec<Op>)], mut each: impl FnMut(&Store, &Store, &Transaction, &Result<(), StoreError>)) -> Store {
    let mut store = Store::default();
    for (index, (at, ops)) in (2..).zip(all) {
        let before = store.clone();
        let transaction = transaction(&store, *at, ops);
        let outcome = store.apply(index, &transaction);
        assert_eq!(store.index(), index);
        each(&before, &store, &transaction, &outcome);
    }
    store
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn equal_transactions_result_in_equal_bytes(all in ops()) {
        let mut log = Vec::new();
        let first = run(&all, |_, store, transaction, _| log.push((store.index(), serde_json::to_vec(transaction).expect("JSON"))));
        // The second store gets them as another manager does: as bytes, with a restart in between.
        let mut second = Store::default();
        for (i, (index, bytes)) in log.iter().enumerate() {
            let _ = second.apply(*index, &serde_json::from_slice(bytes).expect("a transaction"));
            if i == log.len() / 2 {
                second = Store::restore(&second.snapshot()).expect("restores");
            }
        }
        prop_assert_eq!(first.snapshot(), second.snapshot());
    }

    #[test]
    fn a_snapshot_is_the_whole_state(all in ops()) {
        let store = run(&all, |_, _, _, _| {});
        let restored = Store::restore(&store.snapshot()).expect("restores");
        prop_assert_eq!(restored.snapshot(), store.snapshot());
        prop_assert_eq!(restored, store);
    }

    #[test]
    fn a_refused_transaction_changes_nothing_but_the_index(all in ops()) {
        run(&all, |before, after, _, outcome| {
            if outcome.is_err() {
                assert_eq!(content(before), content(after));
            }
        });
    }

    #[test]
    fn names_are_unique_without_regard_to_case(all in ops()) {
        run(&all, |_, store, _, _| {
            let unique = |names: Vec<String>| names.len() == names.into_iter().collect::<BTreeSet<_>>().len();
            assert!(unique(store.all::<ClusterSecret>().map(|s| s.spec.name.to_ascii_lowercase()).collect()));
            assert!(unique(store.services().map(|s| s.spec.name.to_ascii_lowercase()).collect()));
            assert!(unique(store.networks().filter(|n| !n.removing).map(|n| n.spec.name.to_ascii_lowercase()).collect()));
        });
    }

    #[test]
    fn written_objects_have_index_and_time_of_the_transaction(all in ops()) {
        run(&all, |before, after, transaction, outcome| {
            for action in transaction.actions.iter().filter(|_| outcome.is_ok()) {
                if matches!(action, Action::Remove(..)) {
                    continue;
                }
                let (kind, id) = action.target();
                // A later action of the same transaction may have removed it.
                let Some(meta) = stored(after, kind, &id) else { continue };
                assert_eq!((meta.version, meta.updated_at), (after.index(), transaction.at));
                if let (Action::Update(_), Some(old), 1) = (action, stored(before, kind, &id), transaction.actions.len()) {
                    assert_eq!(meta.created_at, old.created_at);
                }
            }
        });
    }
}

#[test]
fn a_newer_snapshot_and_a_damaged_one_are_refused_with_the_reason() {
    let mut value: serde_json::Value = serde_json::from_slice(&Store::default().snapshot()).expect("JSON");
    let newer = FEATURE_LEVELS.newest + 1;
    value["format"] = newer.into();
    let error = Store::restore(&serde_json::to_vec(&value).expect("JSON")).expect_err("refused").to_string();
    assert!(error.contains(&format!("format {newer}")) && error.contains("newer skep"), "{error}");
    assert!(Store::restore(b"{").is_err());
    assert!(Store::restore(b"").is_err());
}

#[test]
fn two_writers_of_one_object_do_not_overwrite_each_other() {
    let op = |verb| Op { verb, kind: Kind::Service, id: 0, name: 0, number: 1 };
    let mut store = Store::default();
    let create = transaction(&store, 1, &[op(Verb::Create)]);
    store.apply(2, &create).expect("created");
    let update = || op(Verb::Update { outdated: false });
    let (first, second) = (transaction(&store, 2, &[update()]), transaction(&store, 3, &[update()]));
    store.apply(3, &first).expect("the first is applied");
    assert_eq!(store.apply(4, &second), Err(StoreError::OutOfSequence));
    let rename = Op { id: 1, name: 3, ..op(Verb::Create) };
    store.apply(5, &transaction(&store, 4, &[rename])).expect("another service");
    let taken = Op { id: 1, name: 2, ..op(Verb::Update { outdated: false }) };
    let conflict = store.apply(6, &transaction(&store, 5, &[taken]));
    assert!(
        matches!(conflict, Err(StoreError::NameConflict { .. })),
        "a rename to the name of another service is refused: {conflict:?}"
    );
}

/// Written by the build of commit 3338e5a: every field of every kind of object is set.
const RECORDED_TRANSACTION: &[u8] = include_bytes!("store/recorded/transaction.json");
/// State after that transaction at index 5.
const RECORDED_SNAPSHOT: &[u8] = include_bytes!("store/recorded/snapshot.json");

#[test]
fn a_transaction_that_an_earlier_build_wrote_is_applied_and_written_the_same() {
    let transaction: Transaction = serde_json::from_slice(RECORDED_TRANSACTION).expect("readable");
    assert_eq!(serde_json::to_vec(&transaction).expect("JSON"), RECORDED_TRANSACTION);
    let mut store = Store::default();
    store.apply(5, &transaction).expect("applied");
    assert_eq!(text(&store.snapshot()), text(RECORDED_SNAPSHOT));
}

#[test]
fn a_snapshot_that_an_earlier_build_wrote_is_read_and_written_the_same() {
    let store = Store::restore(RECORDED_SNAPSHOT).expect("readable");
    assert_eq!(text(&store.snapshot()), text(RECORDED_SNAPSHOT));
    assert_eq!(store.index(), 5);
    assert_eq!(store.cluster().map(|c| c.incarnation), Some(3));
    let counts = [store.nodes().count(), store.networks().count(), store.services().count(), store.tasks().count()];
    assert_eq!(counts, [1, 1, 1, 1]);
    let empty = String::from_utf8(Store::default().snapshot()).expect("text");
    assert!(empty.contains("\"cluster\":null"), "as earlier builds write a store without a cluster: {empty}");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn there_is_one_cluster_object() {
    let op = |verb, id| Op { verb, kind: Kind::Cluster, id, name: 0, number: 1 };
    let mut store = Store::default();
    store.apply(2, &transaction(&store, 1, &[op(Verb::Create, 0)])).expect("created");
    let second = store.apply(3, &transaction(&store, 1, &[op(Verb::Create, 1)]));
    assert_eq!(second, Err(StoreError::Exists { kind: Kind::Cluster, id: "b".to_owned() }));
    let other = store.apply(4, &transaction(&store, 1, &[op(Verb::Update { outdated: false }, 1)]));
    assert_eq!(other, Err(StoreError::NotFound { kind: Kind::Cluster, id: "b".to_owned() }));
    store.apply(5, &transaction(&store, 1, &[op(Verb::Remove, 1)])).expect("no error");
    assert!(store.cluster().is_some(), "another id removes nothing");
}
