//! Random events from a seed; invariants are checked in every state and step, and at the end the cluster must settle.

use super::fixture::{self, after, global, global_job, in_mode, job, node, restarting, service, updating};
use super::simulation::Simulation;
use rand::Rng;
use skep::manager::invariants::check_settled;
use skep::model::service::UpdateConfig;
use skep::model::{Availability, Task, TaskState, UpdateState};
use skep::store::{Action, Kind, Store};
use std::collections::BTreeSet;
use std::time::Duration;

const NODES: usize = 4;

fn random_event(simulation: &mut Simulation) {
    let node_id = node(simulation.rng.random_range(1..=NODES));
    let name = ["web", "db", "flaky", "crash"][simulation.rng.random_range(0..4)];
    let exists = simulation.store.service(&name.into()).is_some();
    match simulation.rng.random_range(0..20) {
        0..=2 if !exists => {
            let replicas = simulation.rng.random_range(0..8);
            let ports: &[(u16, u16)] = if name == "web" { &[(8080, 80), (0, 81)] } else { &[] };
            let created = restarting(service(name, replicas, ports, &["back"]), after(Duration::from_millis(300)));
            simulation.command(vec![Action::create(created)]);
        }
        0..=3 if exists => {
            let replicas = simulation.rng.random_range(0..10);
            simulation.scale(name, replicas);
        }
        4 if exists => simulation.command(vec![Action::Remove(Kind::Service, name.to_owned())]),
        5 => simulation.availability(&node_id, Availability::Drain),
        6 => simulation.availability(&node_id, Availability::Pause),
        7 | 8 => simulation.availability(&node_id, Availability::Active),
        9 => simulation.disconnect(&node_id),
        10 | 11 => simulation.reconnect(&node_id),
        12 => simulation.change_leader(),
        13 | 14 if exists => {
            let image = ["v2", "v3", "whoami", "crash", "reject", "once"][simulation.rng.random_range(0..6)];
            simulation.update(name, |spec| image.clone_into(&mut spec.task_template.container_spec.image));
        }
        15 if exists => {
            let config = random_config(simulation);
            simulation.update(name, |spec| (spec.update_config, spec.rollback_config) = (Some(config.clone()), Some(config)));
        }
        16 if simulation.store.service(&name.into()).is_some_and(|s| s.previous_spec.is_some()) => simulation.rollback(name),
        17 => other_mode(simulation),
        _ => {
            // Another writer commits between a plan and its commit: the plan must be refused or still be valid.
            let write = move |store: &Store, _| Action::update(store.node(&node_id).unwrap().clone());
            simulation.concurrent_writes.push(Box::new(write));
        }
    }
}

fn random_config(simulation: &mut Simulation) -> UpdateConfig {
    let rng = &mut simulation.rng;
    UpdateConfig {
        delay: rng.random_bool(0.3).then(|| Duration::from_millis(rng.random_range(1..900)).into()),
        failure_action: ["pause", "continue", "rollback"][rng.random_range(0..3)].to_owned(),
        order: ["stop-first", "start-first"][rng.random_range(0..2)].to_owned(),
        ..updating(rng.random_range(0..4), Duration::from_millis(rng.random_range(200..1500)))
    }
}

/// Creates a global service or a job, updates it, or removes it.
fn other_mode(simulation: &mut Simulation) {
    let (name, mode) = [("all", global()), ("once-job", job(2, 5)), ("flaky-job", job(3, 3)), ("once-everywhere", global_job())]
        [simulation.rng.random_range(0..4)]
    .clone();
    let exists = simulation.store.service(&name.into()).is_some();
    match simulation.rng.random_range(0..4) {
        _ if !exists => {
            let created = restarting(service(name, 0, &[], &["back"]), after(Duration::from_millis(300)));
            simulation.command(vec![Action::create(in_mode(created, mode))]);
        }
        0 => simulation.command(vec![Action::Remove(Kind::Service, name.to_owned())]),
        _ => simulation.update(name, |spec| spec.task_template.force_update += 1),
    }
}

fn run(seed: u64) {
    let mut simulation = Simulation::new(NODES, seed);
    simulation.command(vec![Action::create(fixture::network("back", None))]);
    for _ in 0..60 {
        random_event(&mut simulation);
        let pause = simulation.rng.random_range(0..1500);
        simulation.run(Duration::from_millis(pause));
    }
    for i in 1..=NODES {
        simulation.reconnect(&node(i));
        simulation.availability(&node(i), Availability::Active);
    }
    simulation.concurrent_writes.clear();
    for unstable in ["crash", "flaky", "flaky-job"] {
        simulation.command(vec![Action::Remove(Kind::Service, unstable.to_owned())]);
    }
    for name in ["web", "db"] {
        if simulation.store.service(&name.into()).is_some() {
            simulation.update(name, |spec| "last".clone_into(&mut spec.task_template.container_spec.image));
        }
    }
    simulation.run(Duration::from_mins(2));
    check_other_modes(&simulation, seed);
    for name in ["web", "db"] {
        let Some(desired) = simulation.store.service(&name.into()).map(|s| s.spec.mode.replicas()) else {
            assert_eq!(simulation.tasks(name).len(), 0, "seed {seed}\n{}", simulation.dump());
            continue;
        };
        assert_eq!(simulation.running(name).len() as u64, desired, "seed {seed}: {name}\n{}", simulation.dump());
        let is_last = simulation.running(name).iter().all(|t| t.spec.container_spec.image == "last");
        assert!(is_last, "seed {seed}: {name}\n{}", simulation.dump());
        let is_active = simulation.update_state(name).is_some_and(UpdateState::is_open);
        assert!(!is_active, "seed {seed}: {name}\n{}", simulation.dump());
        assert_eq!(simulation.running_containers(name) as u64, desired, "seed {seed}: {name}\n{}", simulation.dump());
    }
    let gone: usize = ["flaky-job"].iter().map(|name| simulation.tasks(name).len()).sum();
    assert_eq!(gone, 0, "seed {seed}\n{}", simulation.dump());
    let unstable = simulation.tasks("crash").len() + simulation.tasks("flaky").len();
    let lingering =
        simulation.store.tasks().filter(|t| t.desired_state > TaskState::Running && !t.status.state.is_final()).count();
    assert_eq!((unstable, lingering), (0, 0), "seed {seed}\n{}", simulation.dump());
    simulation.check_listens();
    let wrong = check_settled(&simulation.store);
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}\n{}", simulation.dump());
}

/// Global services run everywhere, jobs have completed.
fn check_other_modes(simulation: &Simulation, seed: u64) {
    let completed = |name: &str| {
        let run = simulation.store.service(&name.into()).and_then(|s| s.job).map(|job| job.iteration);
        let done = |t: &&&Task| t.status.state == TaskState::Complete && t.job_iteration == run;
        simulation.tasks(name).iter().filter(done).map(|t| t.slot_key()).collect::<BTreeSet<_>>().len()
    };
    for (name, expected) in [("once-job", 5), ("once-everywhere", NODES)] {
        if simulation.store.service(&name.into()).is_some() {
            assert_eq!(completed(name), expected, "seed {seed}: {name}\n{}", simulation.dump());
        }
    }
    if simulation.store.service(&"all".into()).is_some() {
        assert_eq!(simulation.per_node("all").len(), NODES, "seed {seed}\n{}", simulation.dump());
        assert_eq!(simulation.running_containers("all"), NODES, "seed {seed}\n{}", simulation.dump());
    }
}

#[test]
fn the_invariants_hold_under_random_events_and_the_cluster_settles() {
    for seed in 0..24 {
        run(seed);
    }
}
