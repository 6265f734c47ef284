//! The walks: random events from a seed, every plan held against the rules, and at the end what is wanted is reached.

use super::mutants::{MUTANTS, Mutant, whole_objects};
use super::rules::{Rules, Running};
use crate::manager::fixture::{
    self, after, global, global_job, in_mode, job, node, restarting, rolled_back, service, updated, updating,
};
use crate::manager::simulation::{Simulation, Witness};
use rand::Rng;
use skep::manager::invariants::check_settled;
use skep::manager::scheduler::rebalance;
use skep::model::service::{Replicated, UpdateConfig};
use skep::model::task::{Placement, Reservations, Resources, RestartPolicy};
use skep::model::{Availability, NodeState, PublishMode, Service, ServiceSpec, Task, TaskState, Timestamp, UpdateState};
use skep::store::{Action, FieldUpdate, Kind, Store};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// The rules, and a fault of the planners if there is to be one.
struct Proof {
    rules: Rules,
    mutant: Option<&'static Mutant>,
}

impl Witness for Proof {
    fn planned(&mut self, store: &Store, actions: Vec<Action>, now: Timestamp) -> Result<Vec<Action>, Vec<String>> {
        let actions = match self.mutant {
            Some(mutant) => (mutant.change)(store, whole_objects(store, &actions, now)),
            None => actions,
        };
        let wrong = self.rules.check(store, &actions, now);
        if wrong.is_empty() { Ok(actions) } else { Err(wrong) }
    }
    fn running(&mut self, running: &[Running], store: &Store) -> Vec<String> {
        self.rules.check_running(running, store)
    }
}

/// Services that are updated and scaled, with the most replicas that have room.
const UPDATED: [(&str, u64); 4] = [("web", 5), ("host", 2), ("zone", 3), ("inner", 6)];

fn random_config(rng: &mut impl Rng, order: &str, parallelism: u64) -> UpdateConfig {
    UpdateConfig {
        delay: rng.random_bool(0.2).then(|| Duration::from_millis(rng.random_range(1..400)).into()),
        failure_action: ["pause", "continue", "rollback"][rng.random_range(0..3)].to_owned(),
        order: order.to_owned(),
        ..updating(parallelism, Duration::from_millis(rng.random_range(200..900)))
    }
}

fn reserve(service: &mut Service, memory_bytes: i64) {
    let reservations = Some(Reservations { memory_bytes, ..Reservations::default() });
    service.spec.task_template.resources = Some(Resources { reservations, ..Resources::default() });
}

/// Every kind of service: published, reached by its virtual address alone, with a host port, bound to labelled nodes, global, jobs, one that fails, and one that falls ill.
fn services(simulation: &mut Simulation) -> Vec<Action> {
    let soon = || after(Duration::from_millis(300));
    let rng = &mut simulation.rng;
    let [order, inner_order] = if rng.random_bool(0.5) { ["stop-first", "start-first"] } else { ["start-first", "stop-first"] };
    let configs = [
        random_config(rng, order, rng.clone().random_range(0..4)),
        random_config(rng, "stop-first", 2),
        random_config(rng, "stop-first", 1),
        random_config(rng, inner_order, 1),
    ];
    let mut web = restarting(service("web", 3, &[(8080, 80), (0, 80)], &["back"]), soon());
    let mut host = restarting(service("host", 2, &[(9000, 80)], &[]), soon());
    for port in host.spec.endpoint_spec.iter_mut().flat_map(|endpoint| &mut endpoint.ports) {
        port.publish_mode = PublishMode::Host;
    }
    reserve(&mut host, 300);
    let mut zone = restarting(service("zone", 2, &[(0, 80)], &["back"]), soon());
    zone.spec.task_template.placement =
        Some(Placement { constraints: vec!["node.labels.zone==a".to_owned()], max_replicas: 2, ..Placement::default() });
    reserve(&mut zone, 200);
    let mut inner = restarting(service("inner", 4, &[], &["back"]), soon());
    for (service, config) in [&mut web, &mut host, &mut zone, &mut inner].into_iter().zip(configs) {
        (service.spec.update_config, service.spec.rollback_config) = (Some(config.clone()), Some(config));
    }
    let limited = RestartPolicy { max_attempts: Some(2), ..after(Duration::from_millis(400)) };
    let all = vec![
        web,
        host,
        zone,
        inner,
        in_mode(restarting(service("all", 0, &[], &["back"]), soon()), global()),
        in_mode(restarting(service("once-job", 0, &[], &[]), soon()), job(2, 4)),
        in_mode(restarting(service("once-everywhere", 0, &[], &[]), soon()), global_job()),
        restarting(service("crash", 2, &[], &[]), limited.clone()),
        restarting(service("sick", 1, &[(0, 80)], &[]), limited),
    ];
    all.into_iter().map(Action::create).collect()
}

type SpecEdit = Box<dyn FnOnce(&mut ServiceSpec)>;

/// A change that a user makes of a service.
fn user_change(rng: &mut impl Rng) -> (&'static str, SpecEdit) {
    let (name, most) = UPDATED[rng.random_range(0..UPDATED.len())];
    match rng.random_range(0..8) {
        0..=3 => {
            let image = ["v2", "v3", "v4", "whoami", "crash", "reject", "once"][rng.random_range(0..7)];
            (name, Box::new(|spec| image.clone_into(&mut spec.task_template.container_spec.image)))
        }
        4 | 5 => {
            let replicas = Some(rng.random_range(1..=most));
            (name, Box::new(move |spec| spec.mode.replicated = Some(Replicated { replicas })))
        }
        6 => (
            ["once-job", "all", "once-everywhere", "sick"][rng.random_range(0..4)],
            Box::new(|spec| spec.task_template.force_update += 1),
        ),
        _ => ("crash", Box::new(|spec| spec.task_template.force_update += 1)),
    }
}

fn event(simulation: &mut Simulation, nodes: usize) {
    let id = node(simulation.rng.random_range(1..=nodes));
    match simulation.rng.random_range(0..28) {
        0..=5 => {
            let (name, change) = user_change(&mut simulation.rng);
            simulation.update(name, change);
        }
        7 => {
            let (name, _) = UPDATED[simulation.rng.random_range(0..UPDATED.len())];
            if simulation.store.service(&name.into()).is_some_and(|service| service.previous_spec.is_some()) {
                simulation.rollback(name);
            }
        }
        6 | 8 => simulation.availability(&id, Availability::Drain),
        9 => simulation.availability(&id, Availability::Pause),
        10..=12 => simulation.availability(&id, Availability::Active),
        13 => simulation.disconnect(&id),
        14 | 15 => simulation.reconnect(&id),
        16 => simulation.change_leader(),
        17 => drop(simulation.faults.slow.insert(id)),
        18 => simulation.faults.slow.clear(),
        24 => rebalance(simulation),
        25 | 26 => remove_or_create(simulation),
        27 => {
            if simulation.store.node(&node(nodes + 1)).is_some() {
                simulation.command(vec![Action::Remove(Kind::Node, node(nodes + 1).to_string())]);
            }
        }
        19 => label(simulation, &id, ["a", "b"][usize::from(simulation.now.0 % 2 == 0)]),
        // Somebody else writes between a plan and its commit.
        20 | 21 => {
            let (name, change) = user_change(&mut simulation.rng);
            simulation.concurrent_writes.push(Box::new(move |store, now| updated(store, name, now, change)));
        }
        22 => simulation.concurrent_writes.push(Box::new(move |store, _| {
            let mut node = store.node(&id).expect("a node").clone();
            node.spec.availability = Availability::Drain;
            Action::update(node)
        })),
        _ => simulation.concurrent_writes.push(Box::new(move |store, now| {
            let web = store.service(&"web".into()).expect("web");
            if web.previous_spec.is_some() { rolled_back(store, "web", now) } else { Action::update(web.clone()) }
        })),
    }
}

/// A service that comes and goes.
fn remove_or_create(simulation: &mut Simulation) {
    let action = match simulation.store.service(&"short".into()) {
        Some(service) => Action::Remove(Kind::Service, service.id.to_string()),
        None => Action::create(restarting(service("short", 2, &[(0, 80)], &["back"]), after(Duration::from_millis(300)))),
    };
    simulation.command(vec![action]);
}

/// What `skep rebalance` writes.
fn rebalance(simulation: &mut Simulation) {
    let plan = rebalance::plan(&simulation.store, None, simulation.now);
    let set = |one: rebalance::Move| Action::Set(FieldUpdate::MoveTask { id: one.task, from: one.from, to: one.to });
    let actions: Vec<Action> = plan.moves.into_iter().map(set).collect();
    if !actions.is_empty() {
        simulation.command(actions);
    }
}

fn label(simulation: &mut Simulation, id: &skep::model::NodeId, zone: &str) {
    let mut node = simulation.store.node(id).expect("a node").clone();
    node.spec.labels.insert("zone".to_owned(), zone.to_owned());
    simulation.command(vec![Action::update(node)]);
}

/// A walk from a seed.
fn walk(seed: u64, events: usize, mutant: Option<&'static Mutant>) {
    let nodes = 3 + usize::from(seed % 2 == 1);
    // The last one may be removed; nothing else happens to it.
    let mut simulation = Simulation::new(nodes + 1, seed);
    for n in 1..=nodes + 1 {
        simulation.describe(&node(n), |description| description.memory_bytes = 1000);
        label(&mut simulation, &node(n), if n == 1 { "b" } else { "a" });
    }
    simulation.command(vec![Action::create(fixture::network("back", None))]);
    simulation.run(Duration::from_millis(400));
    simulation.witness = Some(Box::new(Proof { rules: Rules::default(), mutant }));
    let created = services(&mut simulation);
    simulation.command(created);
    simulation.run(Duration::from_secs(2));
    (simulation.faults.lose, simulation.faults.repeat) = (0.01, 0.05);
    for _ in 0..events {
        event(&mut simulation, nodes);
        let pause = simulation.rng.random_range(0..900);
        simulation.run(Duration::from_millis(pause));
    }
    settle(&mut simulation, nodes);
}

/// Faults stop, and what is wanted is reached.
fn settle(simulation: &mut Simulation, nodes: usize) {
    simulation.faults = crate::manager::simulation::Faults::default();
    simulation.concurrent_writes.clear();
    for n in 1..=nodes {
        simulation.reconnect(&node(n));
        simulation.availability(&node(n), Availability::Active);
        label(simulation, &node(n), if n == 1 { "b" } else { "a" });
    }
    simulation.until("all nodes are ready", |s| (1..=nodes).all(|n| s.state_of(&node(n)) == NodeState::Ready));
    for (name, _) in UPDATED {
        simulation.update(name, |spec| {
            "last".clone_into(&mut spec.task_template.container_spec.image);
            // What waits for a place that is still being freed has not failed.
            spec.update_config = Some(updating(1, Duration::from_secs(10)));
        });
    }
    let mut left = Vec::new();
    for _ in 0..240 {
        simulation.run(Duration::from_millis(500));
        left = not_reached(simulation, nodes);
        if left.is_empty() {
            return;
        }
    }
    panic!("settled: {left:#?}\n{}", simulation.dump());
}

/// What is wanted and is not there.
fn not_reached(simulation: &Simulation, nodes: usize) -> Vec<String> {
    let mut left = check_settled(&simulation.store);
    let mut expect = |what: &str, is: usize, wanted: u64| {
        if is as u64 != wanted {
            left.push(format!("{what}: {is} instead of {wanted}"));
        }
    };
    for (name, _) in UPDATED {
        let wanted = simulation.store.service(&name.into()).map_or(0, |service| service.spec.mode.replicas());
        let running = simulation.running(name);
        expect(name, running.iter().filter(|t| t.spec.container_spec.image == "last").count(), wanted);
        expect("containers", simulation.running_containers(name), wanted);
        let under_way = simulation.update_state(name).is_some_and(UpdateState::is_open);
        expect("updates under way", usize::from(under_way), 0);
    }
    let all = nodes as u64 + u64::from(simulation.store.node(&node(nodes + 1)).is_some());
    expect("all", simulation.per_node("all").len(), all);
    expect("containers of all", simulation.running_containers("all"), all);
    for (job, slots) in [("once-job", 4), ("once-everywhere", all)] {
        let run = simulation.store.service(&job.into()).and_then(|service| service.job).map(|job| job.iteration);
        let is_here = |t: &Task| t.slot_node.as_ref().is_none_or(|id| simulation.store.node(id).is_some());
        let done = |t: &&&Task| t.job_iteration == run && t.status.state == TaskState::Complete && is_here(t);
        let done: BTreeSet<_> = simulation.tasks(job).iter().filter(done).map(|t| t.slot_key()).collect();
        expect(job, done.len(), slots);
    }
    if simulation.store.service(&"short".into()).is_some() {
        expect("short", simulation.running("short").len(), 2);
        expect("containers of short", simulation.running_containers("short"), 2);
    }
    let stopping = simulation.store.tasks().filter(|t| !t.is_wanted() && !t.status.state.is_final()).count();
    expect("tasks that are being stopped", stopping, 0);
    left
}

#[test]
fn every_plan_keeps_the_rules_and_what_is_wanted_is_reached() {
    for seed in 0..12 {
        eprintln!("seed {seed}");
        walk(seed, 25, None);
    }
}

/// What a walk with a faulty planner says; `None` if nothing.
fn found(mutant: &'static Mutant, seed: u64) -> Option<String> {
    let walked = catch_unwind(AssertUnwindSafe(|| walk(seed, 25, Some(mutant))));
    let said = walked.err()?;
    Some(said.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic without a text".to_owned()))
}

#[test]
fn each_fault_of_the_planners_is_found_by_the_rule_that_it_breaks() {
    let mut missed = Vec::new();
    for mutant in MUTANTS {
        let says = (0..16).find_map(|seed| found(mutant, seed));
        let first = says.as_deref().and_then(|said| said.lines().nth(1).or(said.lines().next())).unwrap_or("nothing").to_owned();
        eprintln!("{}: {first}", mutant.name);
        if !says.is_some_and(|said| said.contains(mutant.rule)) {
            missed.push(format!("{}: not found as {:?}, but {first}", mutant.name, mutant.rule));
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// `SKEP_PROOF_SEEDS` seeds from `SKEP_PROOF_FIRST` on, on two threads.
#[test]
#[ignore = "minutes: `make soak`"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "an option of the soak, and its clock")]
fn ten_thousand_walks() {
    let option = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (from, seeds) = (option("SKEP_PROOF_FIRST").unwrap_or(1_000_000), option("SKEP_PROOF_SEEDS").unwrap_or(10_000));
    let begin = std::time::Instant::now();
    let is_wrong = |seed: &u64| {
        let is_wrong = catch_unwind(|| walk(*seed, 25, None)).is_err();
        is_wrong.then(|| eprintln!("seed {seed} is wrong")).is_some()
    };
    let walks = |first: u64| (from + first..from + seeds).step_by(2).filter(is_wrong).collect::<Vec<u64>>();
    let wrong = std::thread::scope(|scope| {
        let other = scope.spawn(|| walks(1));
        [walks(0), other.join().expect("no panic")].concat()
    });
    eprintln!("{seeds} walks in {:.0?}", begin.elapsed());
    assert!(wrong.is_empty(), "seeds {wrong:?}");
}
