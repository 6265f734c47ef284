//! The walks: random writes and faults from a seed, everything checked at each step, and at the end what is wanted is reached.

use super::mutants::Mutant;
use super::nodes::SimulatedNode;
use super::world::World;
use skep::manager::invariants::check_settled;
use skep::model::{NodeState, Role, TaskId, TaskState};
use skep::store::Store;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Seconds of faults in a walk.
const SECONDS: u64 = 30;
/// Seeds that have found a fault of skep: a learner that was cut off knew its leader for ever, and so did a demoted leader, as long as it
/// asked others to lead; what both showed looked fresh. A leader whose own log removed it ended its raft.
const FOUND: [u64; 3] = [100_067, 100_081, 200_111];

fn walk(seed: u64, mutant: Option<Mutant>) -> World {
    let managers = [3, 3, 5][usize::try_from(seed % 3).unwrap()];
    let mut world = World::new(seed, managers, 3);
    world.mutant = mutant;
    world.faults.changes_members = seed % 2 == 1;
    world.start_clients();
    world.run(Duration::from_secs(3));
    world.start_faults();
    world.run(Duration::from_secs(SECONDS));
    world.end_faults();
    world.run(Duration::from_secs(2));
    world.clients.active = false;
    world.until("a leader, and one state", Duration::from_mins(1), |world| world.leader().is_some() && world.is_quiet());
    world.open_all_nodes();
    world.run(Duration::from_secs(2));
    if seed % 2 == 1 {
        world.until("a leader, and one state", Duration::from_mins(1), |world| world.leader().is_some() && world.is_quiet());
        world.demote_leader();
        world.run(Duration::from_secs(2));
    }
    world.until("all that is wanted", Duration::from_mins(5), is_reached);
    world.history.check();
    world
}

/// Every service has its replicas, all of its present spec, and the containers that run are those.
fn is_reached(world: &World) -> bool {
    let Some(store) = world.leader().and_then(|id| world.managers[&id].running.as_ref()).map(|running| &running.store) else {
        return false;
    };
    if !world.is_quiet() || !check_settled(store).is_empty() || store.nodes().any(|node| node.status.state != NodeState::Ready) {
        return false;
    }
    if raft_members(world) != Some(wanted_members(store)) || !world.nodes.values().all(|node| has_tables(node, store)) {
        return false;
    }
    store.services().all(|service| {
        let wanted = service.spec.mode.replicas();
        if service.update.as_ref().is_some_and(|update| update.state.is_active()) {
            return false;
        }
        let running = store.tasks_of_service(&service.id).filter(|t| t.is_wanted() && t.status.state == TaskState::Running);
        let containers = world.nodes.values().flat_map(|node| node.agent.containers.values());
        let containers = containers.filter(|c| c.runs() && c.task.service_id == service.id);
        running.count() as u64 == wanted && containers.count() as u64 == wanted
    })
}

/// Voters and learners as the leader's raft has them.
fn raft_members(world: &World) -> Option<BTreeSet<u64>> {
    let status = world.managers[&world.leader()?].status()?;
    Some(status.voters.into_iter().chain(status.learners).collect())
}

/// Raft ids of the nodes that are to be managers.
fn wanted_members(store: &Store) -> BTreeSet<u64> {
    let managers = store.nodes().filter(|node| node.spec.role == Role::Manager);
    managers.filter_map(|node| Some(node.manager.as_ref()?.raft_id)).collect()
}

/// A node sends what comes to a published port to the tasks that run, and to all of them.
fn has_tables(node: &SimulatedNode, store: &Store) -> bool {
    let published: BTreeMap<u16, BTreeSet<&TaskId>> = store
        .services()
        .flat_map(|service| {
            let tasks = || store.tasks_of_service(&service.id).filter(|task| task.is_backend()).map(|task| &task.id).collect();
            service.ingress_ports().map(move |port| (port.published_port, tasks()))
        })
        .collect();
    let ports = node.agent.cluster.iter().flat_map(|cluster| &cluster.ports);
    let known = ports.map(|port| (port.published, port.backends.iter().map(|backend| &backend.task_id).collect()));
    known.collect::<BTreeMap<u16, BTreeSet<&TaskId>>>() == published
}

#[test]
fn a_cluster_survives_what_goes_wrong() {
    let (mut terms, mut acknowledged, mut transfers) = (0, 0, 0);
    for seed in (0..6).chain(FOUND) {
        let world = walk(seed, None);
        terms += world.history.terms();
        acknowledged += world.history.acknowledged();
        transfers += world.history.transfers;
    }
    // Otherwise the test exercised too little.
    assert!(terms > 18 && acknowledged > 150 && transfers > 10, "{terms} terms, {acknowledged} writes, {transfers} snapshots");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::new(seed, 3, 2);
        world.start_clients();
        world.start_faults();
        world.run(Duration::from_secs(10));
        world.trace
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn a_failover_restarts_no_task_and_judges_no_node() {
    failovers(11, None);
}

/// A leader's end is no matter of the nodes.
fn failovers(seed: u64, mutant: Option<Mutant>) {
    let mut world = World::new(seed, 3, 3);
    world.mutant = mutant;
    world.start_clients();
    world.run(Duration::from_secs(8));
    world.clients.active = false;
    world.until("all that is wanted", Duration::from_mins(2), is_reached);
    let tasks = |world: &World| -> Vec<String> {
        let store = &world.managers[&world.leader().unwrap()].running.as_ref().unwrap().store;
        // After a change of the leader they are unknown until they have opened a session.
        assert!(store.nodes().all(|node| matches!(node.status.state, NodeState::Ready | NodeState::Unknown)));
        store.tasks().filter(|task| task.is_wanted()).map(|task| task.id.to_string()).collect()
    };
    let before = tasks(&world);
    assert!(!before.is_empty());
    for _ in 0..5 {
        let leader = world.leader().unwrap();
        let at = world.now;
        world.crash_for(leader, 3000);
        world.until("another leader", Duration::from_secs(5), |world| world.leader().is_some());
        assert!(world.now.since(at) < Duration::from_secs(2), "{:?}", world.now.since(at));
        for _ in 0..200 {
            world.run(Duration::from_millis(100));
            assert_eq!(tasks(&world), before);
        }
    }
}

fn found(mutant: Mutant, seed: u64) -> Option<String> {
    let run = || {
        failovers(seed, Some(mutant));
        walk(seed, Some(mutant))
    };
    let failed = catch_unwind(AssertUnwindSafe(|| drop(run()))).err()?;
    let text = failed.downcast_ref::<String>().cloned().or(failed.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(text.unwrap_or_default())
}

#[test]
#[ignore = "minutes: `make soak`"]
#[allow(clippy::print_stderr, reason = "what found each")]
fn every_mutant_is_found() {
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        match (0..20).find_map(|seed| Some((seed, found(mutant, seed)?))) {
            Some((seed, text)) => eprintln!("{mutant:?}: seed {seed}: {}", text.lines().next().unwrap_or_default()),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
}

/// `SKEP_CLUSTER_SEEDS` seeds from `SKEP_CLUSTER_FIRST` on, on two threads.
#[test]
#[ignore = "minutes: `make soak`"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "options of the soak, and its clock")]
fn ten_thousand_clusters() {
    let option = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (from, seeds) = (option("SKEP_CLUSTER_FIRST").unwrap_or(1_000), option("SKEP_CLUSTER_SEEDS").unwrap_or(10_000));
    let begin = std::time::Instant::now();
    let is_wrong = |seed: &u64| {
        let is_wrong = catch_unwind(|| drop(walk(*seed, None))).is_err();
        is_wrong.then(|| eprintln!("seed {seed} is wrong")).is_some()
    };
    let walks = |first: u64| (from + first..from + seeds).step_by(2).filter(is_wrong).collect::<Vec<u64>>();
    let wrong = std::thread::scope(|scope| {
        let other = scope.spawn(|| walks(1));
        [walks(0), other.join().expect("no panic")].concat()
    });
    eprintln!("{seeds} clusters in {:.0?}", begin.elapsed());
    assert!(wrong.is_empty(), "seeds {wrong:?}");
}
