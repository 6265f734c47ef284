//! A follower of the change feed has the store: also after it missed changes, and after the state was replaced.

use super::{Op, Verb, ops, transaction};
use proptest::prelude::*;
use skep::model::{ClusterSecret, Timestamp};
use skep::store::{Action, Change, ChangeFollower, Changes, FeedEvent, Kind, LocalProposer, Object, Store, StorePublisher};
use std::collections::BTreeMap;
use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

type Objects = BTreeMap<(Kind, String), Object>;

fn objects(store: &Store) -> Objects {
    let cluster = store.cluster().into_iter().map(|o| o.clone().into());
    let nodes = store.nodes().map(|o| o.clone().into());
    let networks = store.networks().map(|o| o.clone().into());
    let services = store.services().map(|o| o.clone().into());
    let tasks = store.tasks().map(|o| o.clone().into());
    let secrets = store.all::<ClusterSecret>().map(|o| o.clone().into());
    let all = cluster.chain(nodes).chain(networks).chain(services).chain(tasks).chain(secrets);
    all.map(|object: Object| ((object.kind(), object.id()), object)).collect()
}

fn states(change: &Change) -> (Option<Object>, Option<Object>) {
    macro_rules! states {
        ($change:expr) => {
            ($change.before.as_deref().cloned().map(Object::from), $change.after.as_deref().cloned().map(Object::from))
        };
    }
    match change {
        Change::Cluster(change) => states!(change),
        Change::Node(change) => states!(change),
        Change::Network(change) => states!(change),
        Change::Service(change) => states!(change),
        Change::Task(change) => states!(change),
        Change::ClusterSecret(change) => states!(change),
        Change::ClusterConfig(change) => states!(change),
        Change::PayloadKeys(change) => states!(change),
    }
}

/// The next event, if there is one now.
fn poll(follower: &mut ChangeFollower) -> Option<FeedEvent> {
    match pin!(follower.next()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(event) => event,
        Poll::Pending => None,
    }
}

#[derive(Default)]
struct Mirror {
    index: u64,
    objects: Objects,
    snapshots: usize,
}

impl Mirror {
    fn follow(&mut self, follower: &mut ChangeFollower) {
        while let Some(event) = poll(follower) {
            match event {
                FeedEvent::Snapshot(store) => {
                    (self.index, self.objects) = (store.index(), objects(&store));
                    self.snapshots += 1;
                }
                FeedEvent::Changes(changes) => self.apply(&changes),
            }
        }
    }

    fn apply(&mut self, changes: &Changes) {
        assert!(changes.index > self.index, "{} after {}", changes.index, self.index);
        self.index = changes.index;
        for change in &changes.changes {
            let (before, after) = states(change);
            assert_eq!(self.objects.get(&change.target()), before.as_ref());
            match after {
                Some(after) => drop(self.objects.insert(change.target(), after)),
                None => drop(self.objects.remove(&change.target())),
            }
        }
    }
}

/// What happens after a transaction.
#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    Publish,
    Follow,
    /// Another state, restored from a snapshot: of later entries, or (after a disk failure) of earlier ones.
    Restore {
        ahead: bool,
    },
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![
        2 => Just(Then::Nothing),
        5 => Just(Then::Publish),
        4 => Just(Then::Follow),
        1 => any::<bool>().prop_map(|ahead| Then::Restore { ahead }),
    ]
}

fn apply(store: &mut Store, publisher: &mut StorePublisher, (at, ops): &(i64, Vec<Op>)) {
    let index = store.index() + 1;
    let outcome = store.apply(index, &transaction(store, *at, ops));
    publisher.applied(outcome.unwrap_or_else(|_| Changes::none(index)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_follower_equals_the_store(all in ops(), then in proptest::collection::vec(then(), 40)) {
        let mut publisher = StorePublisher::with_capacity(4);
        let mut follower = publisher.reader().changes();
        let (mut store, mut mirror) = (Store::default(), Mirror::default());
        for (entry, then) in all.iter().zip(then) {
            let before = store.clone();
            apply(&mut store, &mut publisher, entry);
            match then {
                Then::Nothing => {}
                Then::Publish => publisher.publish(&store),
                Then::Follow => mirror.follow(&mut follower),
                Then::Restore { ahead: true } => {
                    for entry in all.iter().take(3) {
                        let _ = store.apply(store.index() + 1, &transaction(&store, entry.0, &entry.1));
                    }
                    store = Store::restore(&store.snapshot()).expect("restores");
                    publisher.replaced();
                }
                Then::Restore { ahead: false } => {
                    publisher.publish(&store);
                    store = before;
                    publisher.replaced();
                    publisher.publish(&store);
                    apply(&mut store, &mut publisher, entry);
                }
            }
        }
        publisher.publish(&store);
        mirror.follow(&mut follower);
        prop_assert_eq!(mirror.index, store.index());
        prop_assert_eq!(mirror.objects, objects(&store));
    }
}

#[tokio::test]
async fn a_follower_gets_every_change_in_order_and_a_snapshot_only_first() {
    let handle = LocalProposer::handle();
    let mut follower = handle.changes();
    let mut mirror = Mirror::default();
    mirror.follow(&mut follower);
    for number in 0..50 {
        let op = Op { verb: Verb::Create, kind: Kind::Task, id: 0, name: 0, number };
        let actions = transaction(&Store::default(), 0, &[op]).actions;
        handle.write(Timestamp(1), actions).await.expect("created");
        handle.write(Timestamp(1), vec![Action::Remove(Kind::Task, "a".to_owned())]).await.expect("removed");
    }
    let mut seen = Vec::new();
    for _ in 0..100 {
        match follower.next().await {
            Some(FeedEvent::Changes(changes)) => {
                mirror.apply(&changes);
                seen.push(changes.index);
            }
            other => panic!("not a change: {other:?}"),
        }
    }
    assert_eq!(seen, (1..=100).collect::<Vec<u64>>());
    assert_eq!((mirror.snapshots, mirror.objects), (1, objects(&handle.read())));
    drop(handle);
    assert_eq!(follower.next().await, None, "the feed ends with the store");
}

#[test]
fn a_transaction_reports_each_object_once_with_its_first_and_last_state() {
    let op = |verb, id| Op { verb, kind: Kind::Task, id, name: 0, number: 2 };
    let mut store = Store::default();
    store.apply(1, &transaction(&store, 1, &[op(Verb::Create, 0), op(Verb::Create, 1)])).expect("created");
    let mut ops = transaction(&store, 2, &[op(Verb::Update { outdated: false }, 0), op(Verb::Remove, 1), op(Verb::Create, 1)]);
    ops.actions.push(Action::Remove(Kind::Task, "nothing".to_owned()));
    ops.actions.push(Action::Remove(Kind::Task, "a".to_owned()));
    let before = store.clone();
    let changes = store.apply(2, &ops).expect("applied");
    let targets: Vec<_> = changes.changes.iter().map(|c| c.target().1).collect();
    assert_eq!(targets, ["a", "b"]);
    let Change::Task(removed) = &changes.changes[0] else { panic!("a task") };
    assert_eq!((removed.before.as_deref(), removed.after.as_deref()), (before.task(&"a".into()), None));
    let Change::Task(replaced) = &changes.changes[1] else { panic!("a task") };
    assert_eq!((replaced.before.as_deref(), replaced.after.as_deref()), (before.task(&"b".into()), store.task(&"b".into())));
    assert!(!Arc::ptr_eq(replaced.before.as_ref().expect("before"), replaced.after.as_ref().expect("after")));
}
