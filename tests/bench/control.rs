//! The manager: what a change, a first view, a take-over, an entry, a restart, a task in memory and a scheduling decision cost.
//! `SKEP_BENCH_SCALE=50` divides the sizes, for a run of seconds.

mod first_build;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/fixture.rs"]
mod fixture;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/large.rs"]
mod large;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/manager/leader_cores.rs"]
mod leader_cores;
mod loops;
mod scheduling;

use crate::report::{Report, median};
use first_build::{Change, FirstBuild};
use leader_cores::LeaderCores;
use skep::manager::dispatcher::Effect;
use skep::manager::liveness::Event;
use skep::manager::round::RoundPlanner;
use skep::manager::{LowestApplied, ManagerSettings, SessionId};
use skep::model::{NodeState, Revision, Task, TaskStatus, Timestamp};
use skep::protocol::view_stream::ViewEncoder;
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::raft::{Disk, Log, LogBatch, LogCipher, NoCipher};
use skep::store::{Action, FieldUpdate, Store, Transaction};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// Time that this thread has had a processor: other processes do not count. (`schedstat` counts at ticks of the kernel only, and says
/// nothing of what takes less.)
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

pub fn run(report: &mut Report) {
    report.section(
        "The manager",
        "The leader's cores and the store, on one thread. The column b71afbd has what the library of that commit, built beside \
         (`config/build-before`), needs in the same run, of the row's size if no other is named.",
        &["what", "size", "b71afbd", "goal", "now", "now ÷ b71afbd"],
    );
    let first = FirstBuild::measure();
    // First, while nothing was freed that its allocations would use again.
    memory(report, first.as_ref());
    change(report, first.as_ref());
    take_over(report, first.as_ref());
    loops::take_over(report);
    entry(report, first.as_ref());
    restart(report, first.as_ref());
    scheduling::decisions(report);
    scheduling::created(report);
}

/// `before` and `now` are in the same unit.
fn compared(report: &mut Report, what: &str, size: String, before: Option<(f64, String)>, goal: &str, now: (f64, String)) {
    let ratio = before.as_ref().map_or(String::new(), |before| {
        let times = before.0 / now.0;
        if times < 10.0 { format!("{:.2}", 1.0 / times) } else { format!("1/{times:.0}") }
    });
    row(report, what, size, before.map_or(String::new(), |before| before.1), goal, now.1, ratio);
}

fn row(report: &mut Report, what: &str, size: String, before: String, goal: &str, now: String, ratio: String) {
    report.row(&[what.to_owned(), size, before, goal.to_owned(), now, ratio]);
}

fn change(report: &mut Report, first_build: Option<&FirstBuild>) {
    for (row, tasks) in [100, 1_000, 5_000, 10_000].map(scaled).into_iter().enumerate() {
        let nodes = scaled(100).max(2);
        // More tasks in more services: those of one service are in one entry of a view, whose size the time follows.
        let services = (tasks / 50).max(1);
        let store = large::running(nodes, services as u16, (tasks / services) as u64);
        let (mut leader, TakeOver { bytes: first, .. }) = Leader::take_over(store, nodes);
        let runs: Vec<(Duration, Duration, usize)> = (0..15).map(|_| leader.change()).collect();
        let median_of =
            |part: fn(&(Duration, Duration, usize)) -> f64| median(&runs.iter().skip(3).map(part).collect::<Vec<_>>());
        let (dispatched, planned) = (median_of(|run| millis(run.0)), median_of(|run| millis(run.1)));
        let size = format!("{} nodes, {} published tasks, 50 a service", leader.nodes, leader.store.tasks().count());
        let before: Option<&Change> = first_build.map(|first| &first.changes[row]);
        let kibibytes = |bytes: f64| (bytes, format!("{:.1} KiB", bytes / 1024.0));
        let view = before.map(|change| kibibytes(change.first_view_bytes));
        compared(report, "first view of a node", size.clone(), view, "", kibibytes((first / nodes) as f64));
        let sent = before.map(|change| kibibytes(change.bytes));
        compared(
            report,
            "bytes sent for one task's change",
            size.clone(),
            sent,
            "≤ 1/500",
            kibibytes(median_of(|run| run.2 as f64)),
        );
        let time = before.map(|change| (change.micros / 1e3, format!("{:.1} ms", change.micros / 1e3)));
        let now = dispatched + planned;
        let now = (now, format!("{now:.3} ms: {dispatched:.3} views, {planned:.3} a round"));
        compared(report, "time of that change on the leader's loop", size, time, "≤ 1/50, flat in tasks", now);
    }
}

fn take_over(report: &mut Report, first: Option<&FirstBuild>) {
    let nodes = scaled(300).max(2);
    let replicas = scaled(150) as u64;
    let store = large::running(nodes, 100, replicas);
    let size = format!("{nodes} nodes, {} tasks", store.tasks().count());
    let (_, TakeOver { answered, current, down, .. }) = Leader::take_over(store, nodes);
    let now = format!("{down} down; hellos answered in {:.1} ms, all views in {:.1} ms", millis(answered), millis(current));
    let before = first.map(|first| {
        let seconds = first.take_over_micros / 1e6;
        format!("200 nodes, 10,000 tasks: hellos answered in {seconds:.1} s; a node is down after 2 s without an answer")
    });
    row(report, "take-over", size, before.unwrap_or_default(), "0 down, ≤ 5 s", now, String::new());
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

fn entry(report: &mut Report, first: Option<&FirstBuild>) {
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
    let each = begin.elapsed().as_secs_f64() * 1e6 / entries.len() as f64;
    assert_eq!(published.index(), store.index());
    let before = first.map(|first| (first.entry_nanos / 1e3, format!("{:.1} ms", first.entry_nanos / 1e6)));
    compared(report, "entry applied and published", size, before, "≤ 1/1,000", (each, format!("{each:.1} µs")));
}

/// What raft's thread does not answer for while it keeps a snapshot: the write to the disk of this machine, compressed and as it is.
fn kept_snapshot(report: &mut Report, tasks: usize, snapshot: &[u8]) {
    let dir = std::env::current_dir().unwrap().join(format!("target/bench-log-{}", std::process::id()));
    let begin = Instant::now();
    let compressed = skep::protocol::compression::compressed(snapshot.to_vec());
    let compressing = begin.elapsed();
    let written = |bytes: &[u8]| {
        let times: Vec<f64> = (0..5)
            .map(|_| {
                let _ = std::fs::remove_dir_all(&dir);
                let cipher: Arc<dyn LogCipher> = Arc::new(NoCipher);
                Disk::create(&dir, 1, &Log::bootstrap(1, Vec::new()), &cipher).unwrap();
                let (disk, _) = Disk::open(&dir, 1).unwrap();
                let mut snapshot = raft::eraftpb::Snapshot { data: bytes.to_vec().into(), ..Default::default() };
                snapshot.mut_metadata().index = 2;
                let begin = Instant::now();
                disk.write(&LogBatch { snapshot: Some(snapshot), ..LogBatch::default() }).unwrap();
                millis(begin.elapsed())
            })
            .collect();
        (bytes.len() as f64 / f64::from(1 << 20), median(&times), times.iter().copied().fold(0.0, f64::max))
    };
    let ((plain, plain_ms, plain_most), (small, small_ms, small_most)) = (written(snapshot), written(&compressed));
    let _ = std::fs::remove_dir_all(&dir);
    row(
        report,
        "snapshot kept: raft's thread writes it and answers no message",
        format!("{tasks} tasks"),
        format!("{plain:.1} MiB as they are: {plain_ms:.0} ms, {plain_most:.0} at most"),
        "below an election's 350 ms",
        format!(
            "{small:.1} MiB compressed (on another thread, {:.0} ms): {small_ms:.0} ms, {small_most:.0} at most",
            millis(compressing)
        ),
        format!("{:.2}", small_ms / plain_ms),
    );
}

fn restart(report: &mut Report, first: Option<&FirstBuild>) {
    let store = large::running(scaled(300).max(2), 100, scaled(500) as u64);
    let count = scaled(10_000).min(store.tasks().count());
    let entries: Vec<Vec<u8>> = (0..count).map(|n| entry_of(&store, n)).collect();
    let (snapshot, index) = (store.snapshot(), store.index());
    kept_snapshot(report, store.tasks().count(), &snapshot);
    let size = format!("{} tasks, {count} entries after the snapshot", store.tasks().count());
    drop(store);
    let begin = Instant::now();
    let mut store = Store::restore(&snapshot).unwrap();
    for (index, entry) in (index + 1..).zip(&entries) {
        store.apply(index, &serde_json::from_slice(entry).unwrap()).unwrap();
    }
    let seconds = begin.elapsed().as_secs_f64();
    let now = format!("{seconds:.2} s, snapshot {:.1} MiB", snapshot.len() as f64 / f64::from(1 << 20));
    // The entries of that build are the same work each: some are measured, in place of minutes.
    let before = first.map(|first| {
        let all = first.restart.restored_micros / 1e6 + first.restart.entry_nanos / 1e9 * count as f64;
        (all, format!("{all:.0} s: {count} times an entry's {:.1} ms", first.restart.entry_nanos / 1e6))
    });
    compared(report, "manager restarted", size, before, "≤ 3 s", (seconds, now));
}

fn memory(report: &mut Report, first: Option<&FirstBuild>) {
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
    let before = first.map(|first| {
        let memory = &first.memory;
        (memory.all_bytes, format!("{} bytes in the store, {} with the dispatcher", memory.store_bytes, memory.all_bytes))
    });
    compared(report, "memory per task", format!("{tasks} tasks"), before, "≤ 2 kB", (all as f64, now));
}
