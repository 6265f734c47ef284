//! The difference of two states is what a comparison of all objects finds, also of states that share nothing.

use super::{ops, run};
use proptest::prelude::*;
use skep::model::{Cluster, Network, Node, Service, Task};
use skep::store::{LocalProposer, Store, StoreObject, changed};
use std::collections::BTreeMap;

type States<T> = BTreeMap<String, (Option<T>, Option<T>)>;

fn found<T: StoreObject>(before: &Store, after: &Store) -> States<T> {
    let states = changed::<T>(before, after).map(|(was, is)| {
        let id = was.or(is).expect("one of them").id().to_string();
        (id, (was.cloned(), is.cloned()))
    });
    states.collect()
}

fn compared<T: StoreObject>(before: &Store, after: &Store) -> States<T> {
    let ids = before.all::<T>().chain(after.all::<T>()).map(|object| object.id().clone());
    let states = ids.map(|id| (id.to_string(), (before.get::<T>(&id).cloned(), after.get::<T>(&id).cloned())));
    states.filter(|(_, (was, is))| was != is).collect()
}

fn check(before: &Store, after: &Store) {
    fn kind<T: StoreObject>(before: &Store, after: &Store) {
        assert!(found::<T>(before, after) == compared::<T>(before, after), "{}", T::KIND);
    }
    kind::<Cluster>(before, after);
    kind::<Node>(before, after);
    kind::<Network>(before, after);
    kind::<Service>(before, after);
    kind::<Task>(before, after);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_difference_is_what_a_comparison_finds(all in ops()) {
        let mut states = vec![Store::default()];
        run(&all, |_, store, _, _| states.push(store.clone()));
        let last = states.last().expect("one").clone();
        let restored = Store::restore(&last.snapshot()).expect("restores");
        for pair in states.windows(2) {
            check(&pair[0], &pair[1]);
            check(&pair[1], &pair[0]);
        }
        for state in &states {
            check(state, &last);
            check(state, &restored);
        }
    }
}

#[tokio::test]
async fn a_slow_follower_misses_nothing() {
    let handle = LocalProposer::handle();
    let mut watch = handle.watch();
    let seen = watch.borrow_and_update().clone();
    for number in 0..3000_u64 {
        let mut task = skep_task(number % 40);
        task.slot = number;
        let action = match handle.read().task(&task.id) {
            Some(stored) => {
                task.meta = stored.meta;
                skep::store::Action::update(task)
            }
            None => skep::store::Action::create(task),
        };
        handle.write(skep::model::Timestamp(1), vec![action]).await.expect("written");
    }
    watch.changed().await.expect("published");
    let now = watch.borrow_and_update().clone();
    let slots: Vec<u64> = changed::<Task>(&seen, &now).filter_map(|(_, is)| is.map(|task| task.slot)).collect();
    assert_eq!(slots.len(), 40);
    assert!(slots.iter().all(|slot| *slot >= 2960), "{slots:?}");
    drop(handle);
    assert!(watch.changed().await.is_err(), "it ends with the store");
}

fn skep_task(number: u64) -> Task {
    let op = super::Op { verb: super::Verb::Create, kind: skep::store::Kind::Task, id: 0, name: 0, number: 0 };
    let skep::store::Object::Task(task) = super::object(op, skep::model::Meta::default()) else { panic!("a task") };
    Task { id: format!("t{number}").as_str().into(), ..*task }
}
