//! A write of one field leaves the other fields as they are stored, whatever its proposer has read.

use super::{Op, Verb, object, transaction};
use skep::model::SpecChange;
use skep::model::cluster::ClusterSpec;
use skep::model::service::{Replicated, ServiceMode, ServiceSpec};
use skep::model::{Availability, ClusterId, ListeningPort, Listens, Meta, NodeSpec, Protocol, PullAuth, Role, Timestamp};
use skep::model::{TaskState, TaskStatus};
use skep::store::{Action, FieldUpdate, Kind, Object, Store, StoreError, Transaction};

fn store() -> Store {
    let mut store = Store::default();
    let create = |kind| Op { verb: Verb::Create, kind, id: 0, name: 0, number: 3 };
    let all = [create(Kind::Cluster), create(Kind::Node), create(Kind::Service)];
    store.apply(1, &transaction(&store, 1, &all)).expect("created");
    store
}

fn set(updates: Vec<FieldUpdate>) -> Transaction {
    Transaction::new(Timestamp(2), updates.into_iter().map(Action::Set).collect())
}

fn labelled() -> ClusterSpec {
    ClusterSpec { labels: [("new".to_owned(), "spec".to_owned())].into(), ..ClusterSpec::default() }
}

fn token(text: &str) -> FieldUpdate {
    FieldUpdate::JoinToken { id: ClusterId::from("a"), role: Role::Worker, token: text.into() }
}

fn spec(version: u64) -> FieldUpdate {
    FieldUpdate::ClusterSpec { id: ClusterId::from("a"), version, spec: Box::new(labelled()) }
}

#[test]
fn a_spec_from_a_manager_that_is_behind_brings_no_rotated_token_back() {
    let mut store = store();
    // The client knows version 2 from another manager; this one still has version 1, with the old token.
    let behind = store.clone();
    store.apply(2, &set(vec![token("rotated")])).expect("rotated");
    let mut whole = behind.cluster().expect("stored").clone();
    (whole.spec, whole.meta.version) = (labelled(), 2);
    let mut with_object = store.clone();
    with_object.apply(3, &Transaction::new(Timestamp(2), vec![Action::update(whole)])).expect("its version is right");
    assert_eq!(with_object.cluster().expect("stored").tokens.worker.expose(), "w", "what a write of the whole object does");

    store.apply(3, &set(vec![spec(2)])).expect("applied");
    let cluster = store.cluster().expect("stored");
    assert_eq!((cluster.tokens.worker.expose().as_str(), &cluster.spec), ("rotated", &labelled()));
    assert_eq!(cluster.meta.version, 3);
    assert_eq!(store.apply(4, &set(vec![spec(2)])), Err(StoreError::OutOfSequence));
}

#[test]
fn several_fields_of_an_object_are_written_together_or_not_at_all() {
    let mut store = store();
    assert!(store.apply(2, &set(vec![token("rotated"), spec(7)])).is_err());
    assert_eq!(store.cluster().expect("stored").tokens.worker.expose(), "w");
    let both = set(vec![spec(1), token("rotated")]);
    store.apply(3, &both).expect("applied");
    let cluster = store.cluster().expect("stored");
    assert_eq!((cluster.tokens.worker.expose().as_str(), &cluster.spec), ("rotated", &labelled()));
}

#[test]
fn a_service_keeps_its_endpoint_and_gets_a_previous_spec() {
    let mut store = store();
    let before = store.service(&"a".into()).expect("stored").clone();
    let mode = ServiceMode { replicated: Some(Replicated { replicas: Some(7) }), ..ServiceMode::default() };
    let next = ServiceSpec { mode, ..before.spec.clone() };
    let update = |id: &str, version, pull_auth: &str| FieldUpdate::ServiceSpec {
        id: id.into(),
        version,
        spec: Box::new(next.clone()),
        pull_auth: Some(PullAuth::new(pull_auth.to_owned())),
        change: SpecChange::default(),
    };
    store.apply(2, &set(vec![update("a", 1, "first")])).expect("applied");
    let service = store.service(&"a".into()).expect("stored");
    assert_eq!((&service.spec, service.previous_spec.as_ref()), (&next, Some(&before.spec)));
    assert_eq!((&service.endpoint, service.spec_version), (&before.endpoint, before.spec_version));
    store.apply(3, &set(vec![update("a", 2, "second")])).expect("applied");
    let service = store.service(&"a".into()).expect("stored");
    let auth = |auth: &Option<PullAuth>| auth.as_ref().map(|auth| auth.header().to_owned()).unwrap_or_default();
    assert_eq!((auth(&service.pull_auth), auth(&service.previous_pull_auth)), ("second".to_owned(), "first".to_owned()));
    let missing = StoreError::NotFound { kind: Kind::Service, id: "gone".to_owned() };
    assert_eq!(store.apply(4, &set(vec![update("gone", 1, "")])), Err(missing));
}

#[test]
fn a_node_keeps_what_it_reported() {
    let mut store = store();
    let Object::Node(reported) = object(Op { verb: Verb::Create, kind: Kind::Node, id: 0, name: 4, number: 3 }, meta(1)) else {
        panic!("a node")
    };
    store.apply(2, &Transaction::new(Timestamp(2), vec![Action::Update(Object::Node(reported.clone()))])).expect("reported");
    let drained = NodeSpec { availability: Availability::Drain, ..NodeSpec::default() };
    let update = FieldUpdate::NodeSpec { id: "a".into(), version: 2, spec: drained.clone() };
    store.apply(3, &set(vec![update])).expect("applied");
    let node = store.node(&"a".into()).expect("stored");
    assert_eq!((&node.spec, &node.description), (&drained, &reported.description));
}

/// A task of node `a`, and one that no node has.
fn with_tasks() -> Store {
    let mut store = store();
    let create = |id, number| Op { verb: Verb::Create, kind: Kind::Task, id, name: 0, number };
    store.apply(2, &transaction(&store, 1, &[create(0, 2), create(1, 1)])).expect("created");
    store
}

#[expect(clippy::unnecessary_box_returns, reason = "the updates have it in a box")]
fn status(state: TaskState, seconds: i64) -> Box<TaskStatus> {
    Box::new(TaskStatus { state, timestamp: Timestamp(seconds * 1_000_000_000), ..TaskStatus::default() })
}

#[test]
fn what_loops_write_of_one_task_does_not_overwrite_what_others_wrote() {
    let mut store = with_tasks();
    let listens = vec![ListeningPort { protocol: Protocol::Tcp, port: 80, listens: Listens { v4: true, v6: false } }];
    let report = |node: &str, status, listens| FieldUpdate::TaskReport { id: "a".into(), node: node.into(), status, listens };
    let stop = FieldUpdate::DesiredState { id: "a".into(), state: TaskState::Shutdown };
    // All of these were planned on one state.
    store.apply(3, &set(vec![stop.clone()])).expect("wanted");
    store.apply(4, &set(vec![report("a", Some(status(TaskState::Running, 9)), None)])).expect("reported");
    store.apply(5, &set(vec![report("a", None, Some(listens.clone()))])).expect("reported");
    let task = store.task(&"a".into()).expect("stored").clone();
    assert_eq!((task.desired_state, task.status.state, &task.listens), (TaskState::Shutdown, TaskState::Running, &listens));

    // What is obsolete writes nothing, not even a version.
    for late in [
        report("a", Some(status(TaskState::Starting, 10)), None),
        report("b", Some(status(TaskState::Failed, 10)), None),
        FieldUpdate::DesiredState { id: "a".into(), state: TaskState::Ready },
        stop,
        FieldUpdate::TaskStep {
            id: "a".into(),
            from: TaskState::Assigned,
            status: status(TaskState::Orphaned, 10),
            attachments: Vec::new(),
            node: None,
        },
        FieldUpdate::DesiredState { id: "gone".into(), state: TaskState::Remove },
        FieldUpdate::NodeReport { id: "gone".into(), status: None, description: None, endpoints: Some(Vec::new()) },
    ] {
        store.apply(store.index() + 1, &set(vec![late.clone()])).expect("no error");
        assert_eq!(store.task(&"a".into()), Some(&task), "{late:?}");
    }
}

#[test]
fn a_task_takes_its_steps_once() {
    let mut store = with_tasks();
    let step = |from, to, node: &str| FieldUpdate::TaskStep {
        id: "b".into(),
        from,
        status: status(to, 1),
        attachments: Vec::new(),
        node: Some(node.into()),
    };
    assert_eq!(store.task(&"b".into()).map(|t| t.status.state), Some(TaskState::Pending));
    // Two leaders assign it; then its node is removed.
    store.apply(3, &set(vec![step(TaskState::Pending, TaskState::Assigned, "n1")])).expect("assigned");
    store.apply(4, &set(vec![step(TaskState::Pending, TaskState::Assigned, "n2")])).expect("no error");
    let node = |store: &Store| store.task(&"b".into()).and_then(|task| task.node_id.clone());
    assert_eq!(node(&store), Some("n1".into()));
    store.apply(5, &set(vec![step(TaskState::Assigned, TaskState::Orphaned, "n2")])).expect("orphaned");
    assert_eq!(node(&store), Some("n1".into()), "a node never changes");
    assert_eq!(store.task(&"b".into()).map(|t| t.status.state), Some(TaskState::Orphaned));
    assert_eq!(store.tasks_of_node(&"n1".into()).count(), 1, "indexes follow");
}

#[test]
fn numbers_of_the_cluster_only_go_up() {
    let mut store = store();
    let before = store.cluster().expect("stored").incarnation;
    let incarnation = |incarnation| FieldUpdate::Incarnation { id: "a".into(), incarnation };
    store.apply(2, &set(vec![incarnation(before + 2), FieldUpdate::FeatureLevel { id: "a".into(), level: 2 }])).expect("raised");
    store
        .apply(3, &set(vec![incarnation(before + 1), FieldUpdate::FeatureLevel { id: "a".into(), level: 1 }]))
        .expect("no error");
    let cluster = store.cluster().expect("stored");
    assert_eq!((cluster.incarnation, cluster.feature_level, cluster.meta.version), (before + 2, 2, 2));
}

#[test]
fn resolved_for_an_older_build_the_writes_have_the_same_outcome() {
    let (mut new, mut old) = (store(), store());
    let both = set(vec![spec(1), token("rotated")]);
    let resolved = both.resolved(&old).expect("resolves");
    assert_eq!(resolved.actions.len(), 1, "one write of the object");
    new.apply(2, &both).expect("applied");
    old.apply(2, &resolved).expect("applied");
    let (new, old) = (new.cluster().expect("stored"), old.cluster().expect("stored"));
    assert_eq!((&new.spec, &new.tokens, new.meta.version), (&old.spec, &old.tokens, old.meta.version));
    assert_eq!(set(vec![spec(9)]).resolved(&store()), Err(StoreError::OutOfSequence));
}

fn meta(version: u64) -> Meta {
    Meta { version, ..Meta::default() }
}
