//! What a change costs the leader with 100 nodes and up to 10,000 published tasks, and what a take-over costs with 5,000. Prints,
//! and asserts no time: run it with `cargo test --test it -- --ignored --nocapture cost_of`.

use super::fixture::{self, apply, node};
use super::large;
use super::leader_cores::LeaderCores as Cores;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::orchestrator::Orchestrator;
use skep::manager::round::RoundPlanner;
use skep::manager::round_scope::RoundScope;
use skep::manager::{LowestApplied, ManagerSettings, SessionId, allocator, reaper, scheduler};
use skep::model::{NodeState, Revision, TaskStatus, Timestamp};
use skep::protocol::view_stream::ViewEncoder;
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, FieldUpdate, Store};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NODES: usize = 100;

fn hello(n: usize) -> Event {
    let description = fixture::description(node(n).as_str());
    let hello = ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
    Event::Opened { node: node(n), session: SessionId(n as u64), hello }
}

#[test]
#[ignore = "measures"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "measures")]
fn cost_of_a_take_over_and_of_a_change() {
    let mut store = large::running(NODES, 100, 50);
    let mut now = fixture::START.plus(Duration::from_mins(1));
    let begin = Instant::now();
    let mut cores = Cores::new(ManagerSettings::default(), Arc::new(store.clone()), now);
    eprintln!("new leader: {:?}", begin.elapsed());

    // All hellos wait at the moment of the take-over; heartbeats cannot be sent before they are answered.
    let begin = Instant::now();
    let mut effects = Vec::new();
    let mut longest = Duration::ZERO;
    for n in 1..=NODES {
        let one = Instant::now();
        effects.extend(cores.hear(now, hello(n)));
        longest = longest.max(one.elapsed());
    }
    let answered = begin.elapsed();
    effects.extend(cores.catch_up(now));
    eprintln!("100 hellos: answered after {answered:?}, with all views after {:?}, {} messages", begin.elapsed(), effects.len());
    now = now.plus(begin.elapsed());
    cores.handle(now, Event::Tick);
    let down = |cores: &Cores, store: &Store, now| {
        let is_down =
            |a: &Action| matches!(a, Action::Set(FieldUpdate::NodeReport { status: Some(s), .. }) if s.state == NodeState::Down);
        cores.plan(store, now).iter().filter(|a| is_down(a)).count()
    };
    eprintln!("nodes down: {}", down(&cores, &store, now));
    assert_eq!(down(&cores, &store, now), 0);

    let shared = Arc::default();
    let mut encoders: Vec<ViewEncoder> = (0..=NODES).map(|_| ViewEncoder::new(Arc::clone(&shared), FORMAT)).collect();
    let mut send = |effects: Vec<Effect>| -> (usize, usize, Duration) {
        let begin = Instant::now();
        let (mut messages, mut bytes) = (0, 0);
        for effect in effects {
            if let Effect::Send { session, message: message @ ToNode::View { .. } } = effect {
                messages += 1;
                bytes += encoders[usize::try_from(session.0).unwrap()].encode(message).iter().map(|d| d.len()).sum::<usize>();
            }
        }
        (messages, bytes, begin.elapsed())
    };
    let (messages, bytes, time) = send(effects);
    eprintln!("first views: {messages} views, {bytes} bytes, encoded in {time:?}");

    for _ in 0..3 {
        now = now.plus(Duration::from_millis(10));
        let effects = change(&mut store, &mut cores, now).1;
        let (messages, bytes, encoded) = send(effects);
        eprintln!("one task's change: {messages} views, {bytes} bytes, encoded in {encoded:?}");
    }
}

/// One task becomes unhealthy, or well again. Returns the times of the store and of the dispatcher, and what is sent.
#[allow(clippy::disallowed_methods, reason = "measures")]
fn change(store: &mut Store, cores: &mut Cores, now: Timestamp) -> ((Duration, Duration), Vec<Effect>) {
    let middle = store.tasks().count() / 2;
    let mut task = store.tasks().nth(middle).unwrap().clone();
    task.status = TaskStatus { unhealthy: !task.status.unhealthy, ..task.status };
    let begin = Instant::now();
    apply(store, now, vec![Action::update(task)]);
    let applied = begin.elapsed();
    let next = Arc::new(store.clone());
    let begin = Instant::now();
    let effects = cores.handle(now, Event::StoreChanged(next));
    ((applied, begin.elapsed()), effects)
}

/// Time that this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

/// What the store and the loop that answers heartbeats do for one task's change, in time of the processor: the least of nine.
fn least_cost_of_a_change(replicas: u64) -> Duration {
    let mut store = large::running(NODES, 100, replicas);
    let mut now = fixture::START.plus(Duration::from_mins(1));
    let mut cores = Cores::new(ManagerSettings::default(), Arc::new(store.clone()), now);
    for n in 1..=NODES {
        cores.hear(now, hello(n));
    }
    cores.catch_up(now);
    let costs = (0..9).map(|_| {
        now = now.plus(Duration::from_millis(10));
        let mut task = store.tasks().next().unwrap().clone();
        task.status = TaskStatus { unhealthy: !task.status.unhealthy, ..task.status };
        let begin = processor_time();
        apply(&mut store, now, vec![Action::update(task)]);
        cores.handle(now, Event::StoreChanged(Arc::new(store.clone())));
        processor_time().saturating_sub(begin)
    });
    costs.min().unwrap()
}

#[test]
fn a_change_costs_no_multiple_with_fifty_times_the_tasks() {
    let (few, many) = (least_cost_of_a_change(1), least_cost_of_a_change(50));
    // Its service has fifty tasks then, and each node's view one more backend for each.
    assert!(many < few * 12, "{few:?} with 100 tasks, {many:?} with 5,000");
}

#[test]
#[ignore = "measures"]
#[allow(clippy::disallowed_methods, clippy::print_stderr, reason = "measures")]
fn cost_of_a_change_by_the_number_of_tasks() {
    for replicas in [1, 10, 50, 100] {
        let mut store = large::running(NODES, 100, replicas);
        let mut now = fixture::START.plus(Duration::from_mins(1));
        let settings = ManagerSettings::default();
        let mut cores = Cores::new(settings.clone(), Arc::new(store.clone()), now);
        for n in 1..=NODES {
            cores.hear(now, hello(n));
        }
        cores.catch_up(now);
        let mut planner = RoundPlanner::new(settings.clone(), 1);
        let mut least = [Duration::MAX; 7];
        for _ in 0..9 {
            now = now.plus(Duration::from_millis(10));
            let before = store.clone();
            let ((applied, looped), _) = change(&mut store, &mut cores, now);
            let mut at = 0;
            let mut note = |time: Duration| {
                least[at] = least[at].min(time);
                at += 1;
            };
            note(applied);
            note(looped);
            let timed = |work: &mut dyn FnMut()| {
                let begin = Instant::now();
                work();
                begin.elapsed()
            };
            let reports = cores.plan(&store, now);
            let applied = LowestApplied::by_all(store.revision());
            note(timed(&mut || drop(planner.round(&store, reports.clone(), applied, now))));
            let scope = RoundScope::between(&before, &store);
            let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(1);
            note(timed(&mut || drop(Orchestrator::default().plan(&store, now, &mut rng, &settings, &scope))));
            note(timed(&mut || drop(allocator::plan(&store, now, &mut allocator::QuarantinedAddresses::default(), &scope))));
            note(timed(&mut || drop(scheduler::Scheduler::default().plan(&store, now))));
            note(timed(&mut || drop(reaper::plan(&store, now, &settings, &scope))));
        }
        let [applied, looped, round, orchestrator, allocator, scheduler, reaper] = least;
        eprintln!(
            "{} tasks: applied {applied:?}, dispatcher {looped:?}, round {round:?} (orchestrator {orchestrator:?}, allocator \
             {allocator:?}, scheduler {scheduler:?}, reaper {reaper:?})",
            store.tasks().count()
        );
    }
}

#[test]
#[ignore = "measures"]
#[allow(clippy::print_stderr, reason = "measures")]
fn cost_in_memory_of_a_task() {
    let resident = || -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let (services, replicas) = (100, 200);
    let nodes = large::nodes(NODES);
    let before = resident();
    let store = large::running(NODES, services, replicas);
    let stored = resident() - before;
    let now = fixture::START.plus(Duration::from_mins(1));
    let mut cores = Cores::new(ManagerSettings::default(), Arc::new(store.clone()), now);
    for n in 1..=NODES {
        cores.hear(now, hello(n));
    }
    let views = cores.catch_up(now);
    let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
    planner.round(&store, Vec::new(), LowestApplied::by_all(store.revision()), now);
    let all = resident() - before;
    let tasks = store.tasks().count();
    eprintln!("{tasks} tasks: {} bytes each in the store, {} with the leader's cores", stored / tasks, all / tasks);
    drop((nodes, views));
}
