//! What is evicted when a node changes, and what is not.

use super::testing::*;
use crate::model::task::{GenericResource, Reservations};
use crate::model::{Availability, FormatRange, NodeState, Task, TaskSpec, TaskState, TaskStatus};

/// A task of `web` that runs on `n1`, which has the label `zone=a`.
fn running(template: TaskSpec) -> (TestCluster, crate::model::TaskId) {
    let mut cluster = TestCluster::new(1);
    cluster.node("n1", |n| {
        n.spec.labels = [("zone".to_owned(), "a".to_owned())].into();
        n.description.feature_levels = Some(FormatRange::new(1, 2));
        n.description.generic_resources = vec![GenericResource::named("gpu", "G1"), GenericResource::discrete("ssd", 2)];
    });
    cluster.service("web", &[], template);
    let id = cluster.pending("web", 1).remove(0);
    cluster.schedule();
    assert_eq!(cluster.fate(&id), "n1");
    cluster.observe(&id, TaskState::Running);
    assert_eq!(cluster.enforce(), 0, "all is well");
    (cluster, id)
}

#[test]
fn a_label_that_goes_evicts_in_swarmkits_words_once() {
    let (mut cluster, id) = running(constrained(&["node.labels.zone==a"]));
    cluster.node("n1", |n| n.spec.labels.clear());
    assert_eq!(cluster.enforce(), 1);
    let task = cluster.store.task(&id).unwrap();
    let expected = ("task rejected by constraint enforcer", "assigned node no longer meets constraints");
    assert_eq!((task.status.message.as_str(), task.status.err.as_str()), expected);
    // It runs until its node has stopped it, and holds what it has.
    assert_eq!((task.status.state, task.desired_state), (TaskState::Running, TaskState::Shutdown));
    let stopped = TaskStatus { state: TaskState::Shutdown, message: "shutdown".to_owned(), ..task.status.clone() };
    let status = task.status_by_report(&stopped);
    assert_eq!((status.state, status.message.as_str(), status.err.as_str()), (TaskState::Rejected, expected.0, expected.1));
    assert_eq!(task.status_by_report(&TaskStatus { message: "started".to_owned(), ..task.status.clone() }), task.status);
    assert!(task.is_evicted() && !task.is_backend());
    assert_eq!(cluster.enforce(), 0);
}

#[test]
fn an_eviction_that_was_not_written_is_planned_again() {
    let (mut cluster, _) = running(constrained(&["node.labels.zone==a"]));
    cluster.node("n1", |n| n.spec.labels.clear());
    assert_eq!(cluster.scheduler.enforce(&cluster.store, cluster.now).len(), 1);
    assert_eq!(cluster.scheduler.enforce(&cluster.store, cluster.now).len(), 1, "the node has not changed since");
    // A new leader sees it as well.
    assert_eq!(super::Scheduler::default().enforce(&cluster.store, cluster.now).len(), 1);
}

#[test]
fn the_constraints_of_today_count() {
    let (mut cluster, _) = running(constrained(&["node.labels.zone==a"]));
    cluster.service("web", &[], TaskSpec::default());
    cluster.node("n1", |n| n.spec.labels.clear());
    assert_eq!(cluster.enforce(), 0, "the service no longer asks for the label");
    cluster.service("web", &[], constrained(&["node.role==manager"]));
    assert_eq!(cluster.enforce(), 0, "a change of the spec is the updater's");
    cluster.node("n1", |n| n.spec.labels.clear());
    assert_eq!(cluster.enforce(), 1);
}

#[test]
fn nodes_that_are_not_active_or_not_known_keep_their_tasks() {
    let changes: [fn(&mut crate::model::Node); 4] = [
        |n| n.spec.availability = Availability::Pause,
        |n| n.spec.availability = Availability::Drain,
        |n| n.status.state = NodeState::Down,
        |n| n.description.engine_version.clear(),
    ];
    for change in changes {
        let (mut cluster, _) = running(constrained(&["node.labels.zone==a"]));
        cluster.node("n1", |n| {
            n.spec.labels.clear();
            change(n);
        });
        assert_eq!(cluster.enforce(), 0);
        cluster.node("n1", |n| {
            (n.spec.availability, n.status.state) = (Availability::Active, NodeState::Ready);
            "28.5.2".clone_into(&mut n.description.engine_version);
        });
        assert_eq!(cluster.enforce(), 1, "when it is back");
    }
}

#[test]
fn of_tasks_that_no_longer_fit_the_newest_go() {
    let (mut cluster, first) = running(memory(300));
    cluster.wait(std::time::Duration::from_secs(1));
    let later = cluster.pending("web", 2);
    let free = cluster.pending("free", 1).remove(0);
    cluster.schedule();
    for id in later.iter().chain([&free]) {
        cluster.observe(id, TaskState::Running);
    }
    cluster.node("n1", |n| n.description.memory_bytes = 700);
    assert_eq!(cluster.enforce(), 1);
    let evicted: Vec<bool> = [&first, &later[0], &later[1], &free].map(|id| cluster.store.task(id).unwrap().is_evicted()).into();
    assert_eq!(evicted, [false, false, true, false]);
    cluster.node("n1", |n| n.description.memory_bytes = 0);
    assert_eq!(cluster.enforce(), 2, "what reserves nothing stays");
}

#[test]
fn a_generic_resource_that_is_gone_or_of_another_type_evicts() {
    let wanted = |kind: &str, number: i64| {
        reserving(Reservations { generic_resources: vec![GenericResource::discrete(kind, number)], ..Reservations::default() })
    };
    for (kind, number, left, evicted) in [
        ("gpu", 1, GenericResource::named("gpu", "G1"), 0),
        ("gpu", 1, GenericResource::named("gpu", "G2"), 1),
        ("gpu", 1, GenericResource::discrete("gpu", 5), 1),
        ("ssd", 2, GenericResource::discrete("ssd", 2), 0),
        ("ssd", 2, GenericResource::discrete("ssd", 1), 1),
        ("ssd", 2, GenericResource::named("ssd", "S1"), 1),
    ] {
        let (mut cluster, _) = running(wanted(kind, number));
        cluster.node("n1", |n| n.description.generic_resources = vec![left]);
        assert_eq!(cluster.enforce(), evicted, "{kind}={number}");
    }
}

#[test]
fn tasks_that_are_on_their_way_out_or_wait_are_left_alone() {
    let (mut cluster, id) = running(constrained(&["node.labels.zone==a"]));
    cluster.task(&id, |task| task.desired_state = TaskState::Shutdown);
    let waiting = cluster.pending_with("web", 1, |task: &mut Task| task.slot_node = Some("n1".into())).remove(0);
    cluster.node("n1", |n| n.spec.labels.clear());
    assert_eq!(cluster.enforce(), 0);
    cluster.schedule();
    assert_eq!(cluster.fate(&waiting), "scheduling constraints not satisfied on 1 node");
}
