//! Random events from a seed, every state and step checked, and peace at the end.

use super::build::{self, after, node, restarting, service};
use super::sim::Sim;
use rand::Rng;
use skep::manager::invariants::check_settled;
use skep::model::{Availability, TaskState};
use skep::store::{Action, Kind};
use std::time::Duration;

const NODES: usize = 4;

fn something(sim: &mut Sim) {
    let who = node(sim.rng.random_range(1..=NODES));
    let name = ["web", "db", "flaky", "crash"][sim.rng.random_range(0..4)];
    let exists = sim.store.service(&name.into()).is_some();
    match sim.rng.random_range(0..14) {
        0..=2 if !exists => {
            let replicas = sim.rng.random_range(0..8);
            let ports: &[(u16, u16)] = if name == "web" { &[(8080, 80), (0, 81)] } else { &[] };
            let made = restarting(service(name, replicas, ports, &["back"]), after(Duration::from_millis(300)));
            sim.command(vec![Action::create(made)]);
        }
        0..=3 if exists => {
            let replicas = sim.rng.random_range(0..10);
            sim.scale(name, replicas);
        }
        4 if exists => sim.command(vec![Action::Remove(Kind::Service, name.to_owned())]),
        5 => sim.availability(&who, Availability::Drain),
        6 => sim.availability(&who, Availability::Pause),
        7 | 8 => sim.availability(&who, Availability::Active),
        9 => sim.cut(&who),
        10 | 11 => sim.mend(&who),
        12 => sim.change_leader(),
        _ => {
            // Somebody writes between a plan and its commit: the plan must be refused or still hold.
            let node = sim.store.node(&who).unwrap().clone();
            sim.intruders.push(Action::update(node));
        }
    }
}

fn life(seed: u64) {
    let mut sim = Sim::new(NODES, seed);
    sim.command(vec![Action::create(build::network("back", None))]);
    for _ in 0..60 {
        something(&mut sim);
        let pause = sim.rng.random_range(0..1500);
        sim.run(Duration::from_millis(pause));
    }
    for i in 1..=NODES {
        sim.mend(&node(i));
        sim.availability(&node(i), Availability::Active);
    }
    sim.intruders.clear();
    for restless in ["crash", "flaky"] {
        sim.command(vec![Action::Remove(Kind::Service, restless.to_owned())]);
    }
    sim.run(Duration::from_secs(75));
    for name in ["web", "db"] {
        let Some(wanted) = sim.store.service(&name.into()).map(|s| s.spec.mode.replicas()) else {
            assert_eq!(sim.tasks(name).len(), 0, "seed {seed}\n{}", sim.picture());
            continue;
        };
        assert_eq!(sim.running(name).len() as u64, wanted, "seed {seed}: {name}\n{}", sim.picture());
        assert_eq!(sim.really_running(name) as u64, wanted, "seed {seed}: {name}\n{}", sim.picture());
    }
    let restless = sim.tasks("crash").len() + sim.tasks("flaky").len();
    let lingering = sim.store.tasks().filter(|t| t.desired_state > TaskState::Running && !t.status.state.is_final()).count();
    assert_eq!((restless, lingering), (0, 0), "seed {seed}\n{}", sim.picture());
    sim.check_listens();
    let wrong = check_settled(&sim.store);
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}\n{}", sim.picture());
}

#[test]
fn whatever_happens_the_invariants_hold_and_peace_returns() {
    for seed in 0..6 {
        life(seed);
    }
}
