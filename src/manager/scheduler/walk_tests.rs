//! Random walks: nodes, services and tasks change in any order, and no decision breaks what was promised. The scheduler that follows
//! the store decides the same as one that has just begun.

use super::Scheduler;
use super::testing::*;
use crate::model::task::{GenericResource, Placement, Reservations};
use crate::model::{Availability, NodeId, NodeState, Task, TaskId, TaskSpec, TaskState};
use crate::store::{Action, Object, Store};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// Any service: what it needs, and its labels.
fn random_service(rng: &mut StdRng) -> (TaskSpec, Vec<(&'static str, &'static str)>) {
    let generic = match rng.random_range(0..4) {
        0 => vec![GenericResource::discrete("gpu", rng.random_range(1..=2))],
        1 => vec![GenericResource::discrete("ssd", 1), GenericResource::discrete("gpu", 1)],
        _ => Vec::new(),
    };
    let mut template = reserving(Reservations {
        nano_cpus: [0, 1_000_000_000, 1_500_000_000][rng.random_range(0..3)],
        memory_bytes: [0, 200, 350][rng.random_range(0..3)],
        generic_resources: generic,
    });
    let mut placement = Placement { max_replicas: [0, 0, 1, 2][rng.random_range(0..4)], ..Placement::default() };
    if rng.random_bool(0.3) {
        placement.constraints = vec!["node.labels.zone!=b".to_owned()];
    }
    if rng.random_bool(0.3) {
        placement.preferences = spread_over(&["node.labels.zone"]).placement.unwrap().preferences;
    }
    template.placement = Some(placement);
    let labels = match rng.random_range(0..6) {
        0 => vec![("skep.placement.strategy", "binpack")],
        1 => vec![("skep.placement.anti-affinity", "a,b")],
        _ => Vec::new(),
    };
    (template, labels)
}

fn random_task(cluster: &TestCluster, rng: &mut StdRng, which: impl Fn(&Task) -> bool) -> Option<TaskId> {
    let ids: Vec<&TaskId> = cluster.store.tasks().filter(|t| which(t)).map(|t| &t.id).collect();
    (!ids.is_empty()).then(|| ids[rng.random_range(0..ids.len())].clone())
}

fn step(cluster: &mut TestCluster, rng: &mut StdRng) {
    let service = SERVICES[rng.random_range(0..SERVICES.len())];
    match rng.random_range(0..12) {
        0..=2 => {
            let number = rng.random_range(0..4);
            let bound = (number == 0).then(|| NodeId::from(format!("n{}", rng.random_range(1..=6)).as_str()));
            cluster.pending_with(service, rng.random_range(1..=4), |task| {
                // Two services compete for a port.
                if service <= "b" {
                    task.ports = vec![host_port(8080)];
                }
                task.node_id.clone_from(&bound);
            });
        }
        3..=4 => {
            if let Some(id) = random_task(cluster, rng, |t| node_of(t).is_some() && !t.status.state.is_final()) {
                let states =
                    [TaskState::Running, TaskState::Failed, TaskState::Rejected, TaskState::Complete, TaskState::Shutdown];
                let state = states[rng.random_range(0..states.len())];
                let now = cluster.now;
                cluster.task(&id, |t| {
                    (t.status.state, t.status.timestamp) = (state.max(t.status.state), now);
                    if state.is_final() {
                        t.desired_state = TaskState::Shutdown;
                    }
                });
            }
        }
        5 => {
            if let Some(id) = random_task(cluster, rng, |t| t.desired_state <= TaskState::Running) {
                cluster.task(&id, |t| t.desired_state = TaskState::Shutdown);
            }
        }
        6 => {
            if let Some(id) = random_task(cluster, rng, |t| t.status.state.is_final()) {
                cluster.remove(&id);
            }
        }
        7 => {
            let (template, labels) = random_service(rng);
            // A new version of the spec would be another group; here the tasks that wait keep their own.
            if random_task(cluster, rng, |t| t.service_name == service && t.status.state < TaskState::Assigned).is_none() {
                cluster.service(service, &labels, template);
            }
        }
        8..=9 => {
            let id = format!("n{}", rng.random_range(1..=6));
            let kind = rng.random_range(0..6);
            let value = ["a", "b", ""][rng.random_range(0..3)];
            let memory = [400, 1000, 2000][rng.random_range(0..3)];
            cluster.node(&id, |n| match kind {
                0 => n.spec.availability = Availability::Pause,
                1 => n.status.state = NodeState::Down,
                2 => drop(n.spec.labels.insert("zone".to_owned(), value.to_owned())),
                3 => n.description.memory_bytes = memory,
                4 => n.description.generic_resources = vec![GenericResource::discrete("gpu", 2)],
                _ => (n.spec.availability, n.status.state) = (Availability::Active, NodeState::Ready),
            });
        }
        10 => cluster.wait(Duration::from_secs(rng.random_range(1..120))),
        _ => drop(cluster.enforce()),
    }
}

/// A plan of the scheduler, checked before and after it is applied; false if there is nothing to do.
fn plan(cluster: &mut TestCluster) -> bool {
    let plan = cluster.scheduler.plan(&cluster.store, cluster.now);
    assert_eq!(plan, Scheduler::default().plan(&cluster.store, cluster.now), "it has lost track of the store");
    let assigned: Vec<Task> = plan
        .iter()
        .filter_map(|action| match action {
            Action::Update(Object::Task(task)) if task.status.state == TaskState::Assigned => Some((**task).clone()),
            _ => None,
        })
        .collect();
    let written = !plan.is_empty();
    cluster.apply(plan);
    for task in &assigned {
        check(&cluster.store, task);
    }
    written
}

/// A task that was just assigned is where it may be.
fn check(store: &Store, task: &Task) {
    let node = store.node(task.node_id.as_ref().unwrap()).unwrap();
    assert!(node.status.state == NodeState::Ready && node.spec.availability == Availability::Active, "{}", node.id);
    assert!(crate::model::constraint::Constraints::of(&task.spec).are_met_by(node));
    let here: Vec<&Task> = store.tasks_of_node(&node.id).filter(|t| node_of(t).is_some() && !t.status.state.is_final()).collect();
    let reserved = |of: fn(&Reservations) -> i64| -> i64 {
        here.iter().filter_map(|t| Some(of(t.spec.resources.as_ref()?.reservations.as_ref()?))).sum()
    };
    let own = task.spec.resources.as_ref().and_then(|r| r.reservations.clone()).unwrap_or_default();
    assert!(own.memory_bytes == 0 || reserved(|r| r.memory_bytes) <= node.description.memory_bytes, "memory of {}", node.id);
    assert!(own.nano_cpus == 0 || reserved(|r| r.nano_cpus) <= node.description.nano_cpus, "CPUs of {}", node.id);
    for wanted in own.generic_resources.iter().filter_map(|resource| resource.discrete_resource_spec.as_ref()) {
        let got: i64 = task.generic_resources.iter().filter(|r| r.kind() == wanted.kind).map(count_of).sum();
        assert_eq!(got, wanted.value, "{}", wanted.kind);
        let of_kind = |all: &[GenericResource]| all.iter().filter(|r| r.kind() == wanted.kind).map(count_of).sum::<i64>();
        let names_of_kind =
            node.description.generic_resources.iter().any(|r| r.kind() == wanted.kind && r.named_resource_spec.is_some());
        let used: i64 = here.iter().map(|t| of_kind(&t.generic_resources)).sum();
        assert!(
            names_of_kind || used <= of_kind(&node.description.generic_resources) || was_renamed(&here, &wanted.kind),
            "{}",
            node.id
        );
    }
    let mut names = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for other in &here {
        let named = other.generic_resources.iter().filter(|r| r.named_resource_spec.is_some());
        assert!(named.into_iter().all(|name| names.insert(name)), "a name twice on {}", node.id);
        assert!(other.ports.iter().all(|port| ports.insert(port.published_port)), "a port twice on {}", node.id);
    }
    let mut per_service = BTreeMap::<_, u64>::new();
    for other in here.iter().filter(|t| t.is_wanted()) {
        *per_service.entry(&other.service_id).or_default() += 1;
    }
    let most = task.spec.placement.as_ref().map_or(0, |p| p.max_replicas);
    assert!(most == 0 || per_service[&task.service_id] <= most, "{} on {}", task.service_name, node.id);
}

/// Tasks have names of a kind of which the node has a number now.
fn was_renamed(here: &[&Task], kind: &str) -> bool {
    here.iter().any(|t| t.generic_resources.iter().any(|r| r.kind() == kind && r.named_resource_spec.is_some()))
}

fn count_of(resource: &GenericResource) -> i64 {
    resource.discrete_resource_spec.as_ref().map_or(1, |discrete| discrete.value)
}

#[test]
fn no_decision_breaks_a_limit_whatever_changes() {
    for seed in 0..150 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cluster = TestCluster::new(6);
        for number in 1..=6_i64 {
            cluster.node(&format!("n{number}"), |n| {
                n.description.feature_levels = Some(crate::model::FormatRange::new(1, 2));
                n.description.generic_resources = if number % 2 == 0 {
                    vec![GenericResource::discrete("gpu", number), GenericResource::discrete("ssd", 2)]
                } else {
                    vec![GenericResource::named("gpu", "G1"), GenericResource::named("gpu", "G2")]
                };
            });
        }
        for service in SERVICES {
            let (template, labels) = random_service(&mut rng);
            cluster.service(service, &labels, template);
        }
        for _ in 0..60 {
            step(&mut cluster, &mut rng);
            if rng.random_bool(0.6) {
                plan(&mut cluster);
            }
        }
        let mut rounds = 0;
        while plan(&mut cluster) {
            rounds += 1;
            assert!(rounds < 50, "seed {seed}: it writes for ever");
        }
        let silent = cluster.store.pending_tasks().filter(|t| t.desired_state <= TaskState::Running && t.status.err.is_empty());
        assert_eq!(silent.count(), 0, "seed {seed}: a task waits without a reason");
    }
}
