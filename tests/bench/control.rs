//! The manager: what a change, a first view, a take-over, an entry, a restart, a task in memory and a scheduling decision cost.
//! `SKEP_BENCH_SCALE=50` divides the sizes, for a run of seconds.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/large.rs"]
mod large;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/leader_cores.rs"]
mod leader_cores;
mod scheduling;

use crate::report::{Report, median};
use leader_cores::LeaderCores;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings, SessionId};
use skep::model::{NodeState, Revision, Task, TaskStatus, Timestamp};
use skep::protocol::view_stream::ViewEncoder;
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::{Action, FieldUpdate, Store, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What commit b71afbd needs, as measured for issue 11 (release build, one core).
const BEFORE: &str = "b71afbd";

fn scaled(number: usize) -> usize {
    let scale = std::env::var("SKEP_BENCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (number / scale).max(1)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn hello(n: usize) -> Event {
    let description = fixture::description(&format!("n{n}"));
    let hello = ToManager::Hello { format: FORMAT, formats: None, description, endpoints: Vec::new(), have: Revision::default() };
    Event::Opened { node: fixture::node(n), session: SessionId(n as u64), hello }
}

/// A leader whose nodes all have their views.
struct Leader {
    store: Store,
    cores: LeaderCores,
    planner: RoundPlanner,
    encoders: Vec<ViewEncoder>,
    now: Timestamp,
    nodes: usize,
}

/// How long a take-over took, and what the nodes were sent.
struct TakeOver {
    answered: Duration,
    current: Duration,
    down: usize,
    bytes: usize,
}

impl Leader {
    fn take_over(store: Store, nodes: usize) -> (Self, TakeOver) {
        let mut now = fixture::START.plus(Duration::from_mins(1));
        let begin = Instant::now();
        let mut cores = LeaderCores::new(ManagerSettings::default(), Arc::new(store.clone()), now);
        let mut effects = Vec::new();
        for n in 1..=nodes {
            effects.extend(cores.hear(now, hello(n)));
        }
        let answered = begin.elapsed();
        effects.extend(cores.catch_up(now));
        let shared = Arc::default();
        let encoders = (0..=nodes).map(|_| ViewEncoder::new(Arc::clone(&shared), FORMAT)).collect();
        let planner = RoundPlanner::new(ManagerSettings::default(), 1);
        let mut leader = Self { store, cores, planner, encoders, now, nodes };
        let bytes = leader.encode(effects);
        let current = begin.elapsed();
        now = now.plus(current);
        leader.cores.handle(now, Event::Tick);
        leader.now = now;
        let is_down = |action: &Action| match action {
            Action::Set(FieldUpdate::NodeReport { status: Some(status), .. }) => status.state == NodeState::Down,
            _ => false,
        };
        let down = leader.cores.plan(&leader.store, now).iter().filter(|action| is_down(action)).count();
        (leader, TakeOver { answered, current, down, bytes })
    }

    fn encode(&mut self, effects: Vec<Effect>) -> usize {
        let mut bytes = 0;
        for effect in effects {
            if let Effect::Send { session, message: message @ ToNode::View { .. } } = effect {
                let documents = self.encoders[session.0 as usize].encode(message);
                bytes += documents.iter().map(|document| document.len()).sum::<usize>();
            }
        }
        bytes
    }

    /// One task becomes unhealthy or well: time of the dispatcher, time of a round, bytes of all nodes.
    fn change(&mut self) -> (Duration, Duration, usize) {
        self.now = self.now.plus(Duration::from_millis(10));
        let middle = self.store.tasks().count() / 2;
        let task: Task = self.store.tasks().nth(middle).unwrap().clone();
        let status = TaskStatus { unhealthy: !task.status.unhealthy, timestamp: self.now, ..task.status.clone() };
        let report = FieldUpdate::TaskReport {
            id: task.id.clone(),
            node: task.node_id.clone().unwrap(),
            status: Some(Box::new(status)),
            listens: None,
        };
        fixture::apply(&mut self.store, self.now, vec![Action::Set(report)]);
        let store = Arc::new(self.store.clone());
        let begin = Instant::now();
        let effects = self.cores.handle(self.now, Event::StoreChanged(store));
        let dispatched = begin.elapsed();
        let begin = Instant::now();
        let reports = self.cores.plan(&self.store, self.now);
        let applied = LowestApplied::by_all(self.store.revision());
        self.planner.round(&self.store, reports, applied, self.now);
        (dispatched, begin.elapsed(), self.encode(effects))
    }
}

/// Time that this thread has had a processor: other processes do not count.
fn processor_time() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(times.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap())
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

pub fn run(report: &mut Report) {
    report.section(
        "The manager",
        "The leader's cores and the store, on one thread. The column b71afbd has what that commit needs, as recorded when it was \
         reviewed on another run; its sizes are those of the row.",
        &["what", "size", BEFORE, "goal", "now"],
    );
    // First, while nothing was freed that its allocations would use again.
    memory(report);
    change(report);
    take_over(report);
    entry(report);
    restart(report);
    scheduling::decisions(report);
    scheduling::created(report);
}

fn row(report: &mut Report, what: &str, size: String, before: &str, goal: &str, now: String) {
    report.row(&[what.to_owned(), size, before.to_owned(), goal.to_owned(), now]);
}

fn change(report: &mut Report) {
    for tasks in [100, 1_000, 5_000, 10_000].map(scaled) {
        let nodes = scaled(100).max(2);
        let services = tasks.min(100) as u16;
        let store = large::running(nodes, services, (tasks / usize::from(services)) as u64);
        let (mut leader, TakeOver { bytes: first, .. }) = Leader::take_over(store, nodes);
        let runs: Vec<(Duration, Duration, usize)> = (0..15).map(|_| leader.change()).collect();
        let median_of =
            |part: fn(&(Duration, Duration, usize)) -> f64| median(&runs.iter().skip(3).map(part).collect::<Vec<_>>());
        let (dispatched, planned) = (median_of(|run| millis(run.0)), median_of(|run| millis(run.1)));
        let bytes = median_of(|run| run.2 as f64);
        let size = format!("{} nodes, {} published tasks", leader.nodes, leader.store.tasks().count());
        let known = tasks == scaled(5_000);
        let each = format!("{:.1} KiB", (first / nodes) as f64 / 1024.0);
        let before = if known { "2.2 MB (JSON)" } else { "" };
        row(report, "first view of a node", size.clone(), before, "", each);
        let (before, goal) = if known { ("181 MiB", "≤ 1/500 (371 KiB)") } else { ("", "") };
        row(report, "bytes sent for one task's change", size.clone(), before, goal, format!("{:.1} KiB", bytes / 1024.0));
        let (before, goal) = if known { ("93 ms", "≤ 1/50, flat in tasks") } else { ("", "") };
        let now = format!("{:.3} ms: {dispatched:.3} views, {planned:.3} a round", dispatched + planned);
        row(report, "time of that change on the leader's loop", size, before, goal, now);
    }
}

fn take_over(report: &mut Report) {
    let nodes = scaled(300).max(2);
    let replicas = scaled(150) as u64;
    let store = large::running(nodes, 100, replicas);
    let size = format!("{nodes} nodes, {} tasks", store.tasks().count());
    let (_, TakeOver { answered, current, down, .. }) = Leader::take_over(store, nodes);
    let now = format!("{down} down; hellos answered in {:.1} ms, all views in {:.1} ms", millis(answered), millis(current));
    row(report, "take-over", size, "44 s at 200 nodes, 10,000 tasks; all down", "0 down, ≤ 5 s", now);
}

/// The entry in which a task is reported.
fn entry_of(store: &Store, n: usize) -> Vec<u8> {
    let task = store.tasks().nth(n).unwrap();
    let status = TaskStatus { timestamp: fixture::START.plus(Duration::from_secs(1)), unhealthy: true, ..task.status.clone() };
    let report = FieldUpdate::TaskReport {
        id: task.id.clone(),
        node: task.node_id.clone().unwrap(),
        status: Some(Box::new(status)),
        listens: None,
    };
    serde_json::to_vec(&Transaction::new(fixture::START, vec![Action::Set(report)])).unwrap()
}

fn entry(report: &mut Report) {
    let mut store = large::running(scaled(300).max(2), 100, scaled(1_000) as u64);
    let size = format!("{} tasks", store.tasks().count());
    let count = store.tasks().count().min(500);
    let entries: Vec<Transaction> = (0..count).map(|n| serde_json::from_slice(&entry_of(&store, n)).unwrap()).collect();
    let begin = Instant::now();
    let mut published = Arc::new(store.clone());
    for entry in &entries {
        store.apply(store.index() + 1, entry).unwrap();
        published = Arc::new(store.clone());
    }
    let each = begin.elapsed() / entries.len() as u32;
    assert_eq!(published.index(), store.index());
    let now = format!("{:.1} µs", each.as_secs_f64() * 1e6);
    row(report, "entry applied and published", size, "72 ms at 100,000 tasks", "≤ 1/1,000", now);
}

fn restart(report: &mut Report) {
    let store = large::running(scaled(300).max(2), 100, scaled(500) as u64);
    let count = scaled(10_000).min(store.tasks().count());
    let entries: Vec<Vec<u8>> = (0..count).map(|n| entry_of(&store, n)).collect();
    let (snapshot, index) = (store.snapshot(), store.index());
    let size = format!("{} tasks, {count} entries after the snapshot", store.tasks().count());
    drop(store);
    let begin = Instant::now();
    let mut store = Store::restore(&snapshot).unwrap();
    for (index, entry) in (index + 1..).zip(&entries) {
        store.apply(index, &serde_json::from_slice(entry).unwrap()).unwrap();
    }
    let now = format!("{:.2} s, snapshot {:.1} MiB", begin.elapsed().as_secs_f64(), snapshot.len() as f64 / f64::from(1 << 20));
    row(report, "manager restarted", size, "298 s at 50,000 tasks", "≤ 3 s", now);
}

fn memory(report: &mut Report) {
    let (nodes, replicas) = (scaled(100).max(2), scaled(500) as u64);
    let before = resident();
    let store = large::running(nodes, 100, replicas);
    let tasks = store.tasks().count();
    let stored = resident().saturating_sub(before) / tasks;
    let (mut leader, _) = Leader::take_over(store, nodes);
    leader.change();
    let all = resident().saturating_sub(before) / tasks;
    drop(leader);
    let now = format!("{stored} bytes in the store, {all} with the leader's cores");
    row(report, "memory per task", format!("{tasks} tasks"), "", "≤ 2 kB", now);
}
