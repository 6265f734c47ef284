//! Random events from a seed; invariants are checked in every state and step, and at the end the cluster must settle.

use super::fixture::{self, after, node, restarting, service};
use super::simulation::Simulation;
use rand::Rng;
use skep::manager::invariants::check_settled;
use skep::model::{Availability, TaskState};
use skep::store::{Action, Kind};
use std::time::Duration;

const NODES: usize = 4;

fn random_event(simulation: &mut Simulation) {
    let node_id = node(simulation.rng.random_range(1..=NODES));
    let name = ["web", "db", "flaky", "crash"][simulation.rng.random_range(0..4)];
    let exists = simulation.store.service(&name.into()).is_some();
    match simulation.rng.random_range(0..14) {
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
        _ => {
            // Another writer commits between a plan and its commit: the plan must be refused or still be valid.
            let node = simulation.store.node(&node_id).unwrap().clone();
            simulation.concurrent_writes.push(Action::update(node));
        }
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
    for unstable in ["crash", "flaky"] {
        simulation.command(vec![Action::Remove(Kind::Service, unstable.to_owned())]);
    }
    simulation.run(Duration::from_secs(75));
    for name in ["web", "db"] {
        let Some(desired) = simulation.store.service(&name.into()).map(|s| s.spec.mode.replicas()) else {
            assert_eq!(simulation.tasks(name).len(), 0, "seed {seed}\n{}", simulation.dump());
            continue;
        };
        assert_eq!(simulation.running(name).len() as u64, desired, "seed {seed}: {name}\n{}", simulation.dump());
        assert_eq!(simulation.running_containers(name) as u64, desired, "seed {seed}: {name}\n{}", simulation.dump());
    }
    let unstable = simulation.tasks("crash").len() + simulation.tasks("flaky").len();
    let lingering =
        simulation.store.tasks().filter(|t| t.desired_state > TaskState::Running && !t.status.state.is_final()).count();
    assert_eq!((unstable, lingering), (0, 0), "seed {seed}\n{}", simulation.dump());
    simulation.check_listens();
    let wrong = check_settled(&simulation.store);
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}\n{}", simulation.dump());
}

#[test]
fn the_invariants_hold_under_random_events_and_the_cluster_settles() {
    for seed in 0..6 {
        run(seed);
    }
}
