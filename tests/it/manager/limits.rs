//! No object and no node keeps the leader from writing what concerns all others.

use super::fixture::{self, apply, node, service};
use super::leader_cores::LeaderCores;
use super::simulation::Simulation;
use skep::manager::bounds::{self, DESCRIPTION, ENDPOINTS, STATUS_TEXT};
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::session::SessionId;
use skep::manager::transaction_limits::{OBJECT, TRANSACTION, TransactionLimits};
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::{NodeState, Revision, Task, TaskState, TaskStatus, UpdateState};
use skep::protocol::{FORMAT, ToManager};
use skep::store::{Action, Store};
use std::sync::Arc;
use std::time::Duration;

fn ready(nodes: usize) -> Store {
    let mut store = fixture::store(nodes);
    let ready = store.nodes().map(|n| {
        let mut n = n.clone();
        n.status.state = NodeState::Ready;
        Action::update(n)
    });
    let ready = ready.collect();
    apply(&mut store, fixture::START, ready);
    store
}

fn size(actions: &[Action]) -> usize {
    actions.iter().map(|action| serde_json::to_vec(action).unwrap().len()).sum()
}

#[test]
fn two_hundred_large_tasks_are_written_in_small_transactions() {
    let mut store = ready(3);
    let mut large = service("large", 200, &[(8080, 80)], &[]);
    large.spec.task_template.container_spec.env = vec![format!("TEXT={}", "x".repeat(42 << 10))];
    apply(&mut store, fixture::START, vec![Action::create(large)]);
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    for round in 0.. {
        assert!(round < 100, "it does not settle");
        let applied = LowestApplied::by_all(store.revision());
        let actions = planner.round(&store, Vec::new(), applied, fixture::START);
        if actions.is_empty() {
            break;
        }
        assert!(size(&actions) <= TRANSACTION, "{}", size(&actions));
        apply(&mut store, fixture::START, actions);
        planner.written();
    }
    assert_eq!(store.tasks().filter(|t| t.status.state == TaskState::Assigned).count(), 200);
    assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new());
}

#[test]
fn an_object_that_no_entry_holds_is_left_out_by_name_and_all_others_are_written() {
    let store = ready(2);
    let mut limits = TransactionLimits::default();
    let mut large = store.node(&node(1)).unwrap().clone();
    large.description.hostname = "n".repeat(OBJECT);
    let small = store.node(&node(2)).unwrap().clone();
    let actions = limits.fit(&store, vec![Action::update(large), Action::update(small)], fixture::START);
    assert_eq!(actions.iter().map(|a| a.target().1).collect::<Vec<_>>(), ["n2"]);
    let ((_, id), object) = limits.left_out().first_key_value().unwrap();
    assert!(id == "n1" && object.reason.contains("bytes") && object.service_id.is_none(), "{object:?}");
}

#[test]
fn the_guards_of_what_is_left_out_are_not_written_for_ever() {
    let store = ready(1);
    let mut limits = TransactionLimits::default();
    let network = store.networks().next().unwrap().clone();
    let mut large = store.node(&node(1)).unwrap().clone();
    large.description.hostname = "n".repeat(OBJECT);
    let plan = vec![Action::update(large), Action::update(network.clone())];
    assert_eq!(limits.fit(&store, plan, fixture::START), []);
    let renamed = skep::model::Network { subnet: Some("10.9.0.0/24".parse().unwrap()), ..network };
    assert_eq!(limits.fit(&store, vec![Action::update(renamed)], fixture::START).len(), 1, "a network that changes is");
}

#[test]
fn a_plan_that_the_store_always_refuses_is_halved_until_the_cause_is_left_out() {
    let store = ready(9);
    let mut limits = TransactionLimits::default();
    let plan = || -> Vec<Action> { store.nodes().map(|n| Action::update(n.clone())).collect() };
    let refuses = |actions: &[Action]| actions.iter().any(|a| a.target().1 == "n5");
    let mut written = std::collections::BTreeSet::new();
    for attempt in 0..60 {
        // What is written once is not planned again.
        let due = plan().into_iter().filter(|a| !written.contains(&a.target().1)).collect();
        let actions = limits.fit(&store, due, fixture::START);
        if actions.is_empty() {
            break;
        }
        assert!(attempt < 59, "it does not end: {actions:?}");
        if refuses(&actions) {
            limits.refused(&store, "no", fixture::START);
        } else {
            written.extend(actions.iter().map(|a| a.target().1));
            limits.written();
        }
    }
    assert_eq!(written.len(), 8);
    assert_eq!(limits.left_out().keys().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["n5"]);
    // Not for ever.
    let later = fixture::START.plus(Duration::from_mins(2));
    assert_eq!(limits.fit(&store, plan(), later).len(), 9);
}

#[test]
fn what_a_node_says_is_bounded_before_it_is_written() {
    let mut store = ready(2);
    apply(&mut store, fixture::START, vec![Action::create(service("web", 1, &[], &[]))]);
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    let actions = planner.round(&store, Vec::new(), LowestApplied::by_all(store.revision()), fixture::START);
    apply(&mut store, fixture::START, actions);
    let task: Task = store.tasks().next().unwrap().clone();
    let here = task.node_id.clone().unwrap();
    let mut cores = LeaderCores::new(ManagerSettings::default(), Arc::new(store.clone()), fixture::START);
    let mut description = fixture::description("n1");
    description.engine_labels.insert("big".to_owned(), "x".repeat(9 << 20));
    let endpoints = (1..100).map(|port| ([192, 0, 2, 1], port).into()).collect();
    let hello = ToManager::Hello { format: FORMAT, formats: None, description, endpoints, have: Revision::default() };
    cores.handle(fixture::START, Event::Opened { node: here.clone(), session: SessionId(1), hello });
    let status = TaskStatus { state: TaskState::Failed, err: "e".repeat(9 << 20), ..TaskStatus::default() };
    cores.handle(
        fixture::START,
        Event::Message { session: SessionId(1), message: ToManager::Status(vec![(task.id.clone(), status)]) },
    );
    let reports = cores.plan(&store, fixture::START);
    assert!(size(&reports) < DESCRIPTION + STATUS_TEXT + 8192, "{}", size(&reports));
    apply(&mut store, fixture::START, reports);
    let stored = store.node(&here).unwrap();
    assert!(stored.description.engine_labels.contains_key("skep.cut"), "{:?}", stored.description.engine_labels);
    assert_eq!(stored.mesh.endpoints.len(), ENDPOINTS);
    assert!(store.task(&task.id).unwrap().status.err.ends_with("(cut)"));
}

/// A spec with as large a text as the API takes, in the part that each task has too.
fn fill(service: &mut skep::model::Service) {
    let labels = |spec: &mut skep::model::ServiceSpec, size: usize| {
        spec.task_template.container_spec.labels.insert("text".to_owned(), "x".repeat(size));
    };
    let (mut fits, mut not) = (0, OBJECT);
    while not - fits > 1 {
        let middle = fits.midpoint(not);
        labels(&mut service.spec, middle);
        if bounds::service(&service.spec).is_ok() { fits = middle } else { not = middle }
    }
    labels(&mut service.spec, fits);
}

#[test]
fn a_service_of_the_largest_size_is_created_updated_scaled_and_rolled_back() {
    for ports in [1_u16, 3_000] {
        let mut simulation = Simulation::new(2, u64::from(ports));
        let published: Vec<(u16, u16)> = (0..ports).map(|n| (10_000 + n, 80)).collect();
        let mut web = fixture::restarting(service("web", 2, &published, &[]), fixture::after(Duration::from_millis(500)));
        let quick = fixture::updating(1, Duration::from_millis(200));
        (web.spec.update_config, web.spec.rollback_config) = (Some(quick.clone()), Some(quick));
        // Whatever it is changed to has that many bytes.
        web.spec.task_template.container_spec.image = "whoami-1".to_owned();
        fill(&mut web);
        assert!(size(&[Action::create(web.clone())]) > OBJECT / 3, "it is large");
        simulation.command(vec![Action::create(web)]);
        simulation.until("two run", |s| s.running("web").len() == 2);
        simulation.update("web", |spec| spec.task_template.container_spec.image = "whoami-2".to_owned());
        simulation.until("updated", |s| s.update_state("web") == Some(UpdateState::Completed));
        let whole = simulation.store.service(&"web".into()).unwrap().clone();
        assert!(whole.previous_spec.is_some() && size(&[Action::update(whole)]) <= OBJECT);
        simulation.scale("web", 3);
        simulation.until("three run", |s| s.running("web").len() == 3);
        simulation.rollback("web");
        simulation.until("rolled back", |s| s.update_state("web") == Some(UpdateState::RollbackCompleted));
        assert!(simulation.running("web").iter().all(|task| task.spec.container_spec.image == "whoami-1"));
    }
}

/// Networks as an earlier build took them. Each is written with the addresses that are assigned in it.
#[test]
fn networks_that_no_entry_holds_together_keep_nothing_else_from_being_written() {
    let mut store = ready(2);
    let names = ["one", "two", "three"];
    for name in names {
        let mut network = fixture::network(name, None);
        network.spec.labels.insert("big".to_owned(), "x".repeat(3 << 20));
        apply(&mut store, fixture::START, vec![Action::create(network)]);
    }
    let mut services =
        vec![service("wide", 1, &[], &names), service("plain", 1, &[], &[]), service("published", 1, &[(8080, 80)], &[])];
    services.extend(names.map(|name| service(&format!("in-{name}"), 2, &[], &[name])));
    apply(&mut store, fixture::START, services.into_iter().map(Action::create).collect());
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    let runs = |store: &Store, name: &str| {
        store.tasks().filter(|task| task.service_name == name && task.status.state == TaskState::Assigned).count()
    };
    let mut refusals = 0;
    loop {
        let actions = planner.round(&store, Vec::new(), LowestApplied::by_all(store.revision()), fixture::START);
        if actions.is_empty() {
            break;
        }
        if size(&actions) > OBJECT {
            refusals += 1;
            assert!(refusals < 50, "it does not end");
            planner.refused(&store, "too large to be written", fixture::START);
        } else {
            apply(&mut store, fixture::START, actions);
            planner.written();
        }
    }
    for (name, replicas) in [("plain", 1), ("published", 1), ("in-one", 2), ("in-two", 2), ("in-three", 2), ("wide", 0)] {
        assert_eq!(runs(&store, name), replicas, "{name}");
    }
    let left: Vec<String> = planner.left_out(&store).into_iter().map(|object| object.service_name).collect();
    assert!(!left.is_empty() && left.iter().all(|name| name == "wide"), "{left:?}");
    assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new());
}
