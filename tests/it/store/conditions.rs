//! What a proposer has checked is checked again when its transaction is applied, after the writes that came in between.

use super::{Op, Verb, content, object, transaction};
use skep::model::{Meta, NodeId, Protocol, PublishMode, ServiceId, Timestamp, WgKey};
use skep::store::{Action, Condition, Kind, Object, PlanBase, Store, StoreError, Transaction};

const CREATE: Verb = Verb::Create;

fn op(kind: Kind, id: usize, number: u16) -> Op {
    Op { verb: CREATE, kind, id, name: id, number }
}

/// A network `a`, and nothing else.
fn store() -> Store {
    let mut store = Store::default();
    store.apply(1, &transaction(&store, 1, &[op(Kind::Network, 0, 0)])).expect("created");
    store
}

fn create(kind: Kind, id: usize, number: u16) -> Action {
    Action::Create(object(op(kind, id, number), Meta::default()))
}

fn apply(store: &mut Store, transaction: &Transaction) -> Result<(), StoreError> {
    let before = content(store);
    let outcome = store.apply(store.index() + 1, transaction);
    if outcome.is_err() {
        assert_eq!(content(store), before, "a refused transaction writes nothing");
    }
    outcome
}

fn write(actions: Vec<Action>, condition: Condition) -> Transaction {
    Transaction::new(Timestamp(5), actions).require([condition])
}

#[test]
fn a_network_is_not_removed_while_a_service_or_a_task_is_wanted_to_run_on_it() {
    let remove = write(vec![Action::Remove(Kind::Network, "a".to_owned())], Condition::unreferenced(Kind::Network, "a"));
    // The second service is attached to another network, its task to this one.
    let attached = vec![create(Kind::Service, 0, 1)];
    let detached = vec![create(Kind::Service, 1, 1), create(Kind::Task, 1, 2)];
    for (users, user, service) in [(attached, "service a", "a"), (detached, "task b", "b")] {
        let mut store = store();
        apply(&mut store, &Transaction::new(Timestamp(2), users)).expect("created in between");
        let refused = apply(&mut store, &remove).expect_err("in use");
        assert_eq!(refused.to_string(), format!("network a is in use by {user}"));
        let ends = Action::Remove(Kind::Service, service.to_owned());
        apply(&mut store, &Transaction::new(Timestamp(2), vec![ends])).expect("its task is to stop");
        apply(&mut store, &remove).expect("not in use any more");
        assert_eq!(store.networks().count(), 0);
    }
}

#[test]
fn allow_lists_that_came_in_between_count() {
    let prefixes = |count: u32| -> String {
        (0..count).map(|n| std::net::Ipv4Addr::from_bits(0xc0a8_0000 + n).to_string()).collect::<Vec<_>>().join(",")
    };
    // One published port each.
    let guarded = |id: usize, count: u32| {
        let Object::Service(mut service) = object(op(Kind::Service, id, 1), Meta::default()) else { panic!("a service") };
        service.spec.labels.insert("skep.allow".to_owned(), prefixes(count));
        Action::create(*service)
    };
    for (second, fits) in [(45_056, true), (45_057, false)] {
        let mut store = store();
        apply(&mut store, &Transaction::new(Timestamp(2), vec![guarded(1, second)])).expect("created in between");
        let condition = Condition::AllowListsFit { entries: 16_384, except: None };
        let outcome = apply(&mut store, &write(vec![guarded(3, 16_384)], condition));
        assert_eq!(outcome.is_ok(), fits);
        let why = outcome.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(fits || (why.contains("45057 of the other services") && why.contains("61440")), "{why}");
        // Those of the service itself are replaced.
        let itself = Condition::AllowListsFit { entries: 61_440, except: Some(ServiceId::from("b")) };
        assert_eq!(itself.check(&store).is_ok(), !fits);
    }
}

#[test]
fn a_service_is_not_created_on_a_network_that_was_removed_in_between() {
    let missing = StoreError::NotFound { kind: Kind::Network, id: "a".to_owned() };
    let removed = Action::Remove(Kind::Network, "a".to_owned());
    // The tasks of earlier services still have addresses there.
    let removing = Action::Update(object(op(Kind::Network, 0, 7), Meta { version: 1, ..Meta::default() }));
    for removal in [removed, removing] {
        let mut store = store();
        apply(&mut store, &Transaction::new(Timestamp(2), vec![removal])).expect("removed");
        let create = write(vec![create(Kind::Service, 0, 1)], Condition::present(Kind::Network, "a"));
        assert_eq!(apply(&mut store, &create), Err(missing.clone()));
    }
}

#[test]
fn of_two_services_that_publish_one_port_the_second_is_refused() {
    let free = |mode, except: Option<&str>| Condition::FreePort {
        mode,
        protocol: Protocol::Tcp,
        port: 1,
        except: except.map(ServiceId::from),
    };
    let mut store = store();
    // Both were checked on the same state, where the port was free.
    apply(&mut store, &write(vec![create(Kind::Service, 0, 1)], free(PublishMode::Ingress, None))).expect("the first");
    let second = write(vec![create(Kind::Service, 3, 1)], free(PublishMode::Ingress, None));
    let refused = apply(&mut store, &second).expect_err("taken");
    assert_eq!(refused.to_string(), "port '1' is already in use by service 'web' (a) as an ingress port");
    let conflict = |condition: Condition| condition.check(&store).is_err();
    assert!(conflict(free(PublishMode::Host, None)), "a port of the routing mesh is bound on every node");
    assert!(!conflict(free(PublishMode::Ingress, Some("a"))), "its own port does not exclude a service");
    assert!(!conflict(Condition::FreePort { mode: PublishMode::Ingress, protocol: Protocol::Udp, port: 1, except: None }));
}

#[test]
fn a_wireguard_key_that_another_node_has_is_refused_with_what_to_do() {
    let mut store = store();
    let admit = |id| write(vec![create(Kind::Node, id, 7)], Condition::FreeKey { key: WgKey([7; 32]) });
    apply(&mut store, &admit(0)).expect("the first");
    let refused = apply(&mut store, &admit(1));
    assert_eq!(refused, Err(StoreError::KeyInUse { node: NodeId::from("a") }));
    assert!(refused.expect_err("refused").to_string().contains("docker node rm --force a"));
    apply(&mut store, &Transaction::new(Timestamp(3), vec![Action::Remove(Kind::Node, "a".to_owned())])).expect("removed");
    apply(&mut store, &admit(1)).expect("free again");
}

#[test]
fn a_version_that_was_read_must_still_be_the_stored_one() {
    let mut store = store();
    let remove =
        |version| write(vec![Action::Remove(Kind::Network, "a".to_owned())], Condition::version(Kind::Network, "a", version));
    assert_eq!(apply(&mut store, &remove(9)), Err(StoreError::OutOfSequence));
    apply(&mut store, &remove(1)).expect("as it was read");
    assert_eq!(apply(&mut store, &remove(1)), Err(StoreError::NotFound { kind: Kind::Network, id: "a".to_owned() }));
    let absent = |id: &str| Condition::Absent { kind: Kind::Network, id: id.to_owned() };
    apply(&mut store, &write(vec![create(Kind::Network, 0, 0)], absent("a"))).expect("created");
    let exists = StoreError::Exists { kind: Kind::Network, id: "a".to_owned() };
    assert_eq!(apply(&mut store, &write(vec![], absent("a"))), Err(exists));
}

#[test]
fn a_plan_that_timed_out_and_its_successor_are_not_both_applied() {
    let mut store = store();
    let plan = |base, id| Transaction::new(Timestamp(4), vec![create(Kind::Task, id, 1)]).planned_from(base);
    // The first proposal got no answer in time, so the same task was planned again, with another id.
    let (late, again) = (plan(store.index(), 0), plan(store.index(), 1));
    apply(&mut store, &late).expect("applied after all");
    assert_eq!(apply(&mut store, &again), Err(StoreError::StalePlan));
    assert_eq!(store.tasks().count(), 1);
    // Other writers do not make a plan stale: its writes have versions of their own.
    let next = plan(store.index(), 1);
    apply(&mut store, &Transaction::new(Timestamp(4), vec![create(Kind::Service, 0, 0)])).expect("a user's");
    apply(&mut store, &next).expect("planned after the first");
    assert_eq!(store.tasks().count(), 2);
}

#[test]
fn a_plan_of_an_old_term_is_refused_also_after_a_restore() {
    let mut store = store();
    let plan = |index, term| Transaction { plan: Some(PlanBase { index, term }), ..Transaction::new(Timestamp(4), vec![]) };
    apply(&mut store, &plan(1, 5)).expect("of the leader");
    let mut store = Store::restore(&store.snapshot()).expect("restores");
    let index = store.index();
    assert_eq!(apply(&mut store, &plan(index, 4)), Err(StoreError::StalePlan));
    apply(&mut store, &plan(index + 1, 6)).expect("of the next leader");
}

#[test]
fn without_conditions_in_the_log_they_are_checked_by_the_proposer() {
    let mut store = store();
    let transaction = write(vec![create(Kind::Service, 0, 1)], Condition::present(Kind::Network, "a"));
    let resolved = transaction.resolved(&store).expect("holds");
    assert_eq!(serde_json::to_value(&resolved).expect("JSON").as_object().expect("fields").len(), 2, "as builds before wrote it");
    apply(&mut store, &Transaction::new(Timestamp(2), vec![Action::Remove(Kind::Network, "a".to_owned())])).expect("removed");
    assert!(transaction.resolved(&store).is_err());
}
