//! What the store costs on a large manager, printed: `cargo test --release --test it -- --ignored --nocapture store::cost`.
//! Times are those of the processor, so that other processes do not count. Asserts none, for they depend on the machine: only how
//! one grows with the store.

use skep::model::task::{Attachment, ContainerSpec, ContainerStatus, Task, TaskSpec, TaskState, TaskStatus};
use skep::model::{Meta, NetworkId, NodeId, ServiceId, TaskId, Timestamp};
use skep::store::{Action, Store, StorePublisher, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// An id as skep draws them.
fn id(kind: char, number: usize) -> String {
    format!("{kind}{number:024}")
}

fn task(number: usize) -> Task {
    let labels = BTreeMap::from([("com.docker.stack.namespace".to_owned(), "shop".to_owned())]);
    let container = ContainerSpec {
        image: "registry.example.org/shop/web:1.27.3@sha256:0123456789abcdef0123456789abcdef".to_owned(),
        labels: labels.clone(),
        env: (0..8).map(|n| format!("SHOP_SETTING_{n}=a value of a usual length")).collect(),
        ..ContainerSpec::default()
    };
    Task {
        id: TaskId::from(id('t', number)),
        meta: Meta::default(),
        spec: TaskSpec { container_spec: container, ..TaskSpec::default() }.into(),
        spec_version: 1,
        service_id: ServiceId::from(id('s', number / 20)),
        service_name: format!("shop_web{}", number / 20),
        service_labels: labels.into(),
        slot: (number % 20) as u64 + 1,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(NodeId::from(id('n', number % 300))),
        desired_state: TaskState::Running,
        status: TaskStatus { timestamp: Timestamp(1), state: TaskState::Assigned, ..TaskStatus::default() },
        attachments: vec![Attachment {
            network_id: NetworkId::from(id('w', number % 40)),
            address: format!("10.{}.{}.{}/8", number >> 16, (number >> 8) & 255, number & 255).parse().expect("address"),
        }],
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: skep::model::task::EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    }
}

fn large(tasks: usize) -> Store {
    let mut store = Store::default();
    for (index, first) in (2..).zip((0..tasks).step_by(200)) {
        let actions = (first..tasks.min(first + 200)).map(|n| Action::create(task(n))).collect();
        store.apply(index, &transaction(actions)).expect("created");
    }
    store
}

fn transaction(actions: Vec<Action>) -> Transaction {
    Transaction::new(Timestamp(2), actions)
}

/// The entry in which a task is reported as running.
fn report(store: &Store, number: usize) -> Vec<u8> {
    let mut task = store.task(&TaskId::from(id('t', number))).expect("stored").clone();
    task.status = TaskStatus {
        timestamp: Timestamp(3),
        state: TaskState::Running,
        message: "started".to_owned(),
        container: Some(ContainerStatus { container_id: "0".repeat(64), pid: 4711, exit_code: 0 }),
        ..TaskStatus::default()
    };
    serde_json::to_vec(&transaction(vec![Action::update(task)])).expect("JSON")
}

/// Time that this thread has had a processor.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).expect("seconds"), u32::try_from(time.tv_nsec).expect("nanoseconds"))
}

/// What one task's report costs the thread that applies and publishes it, in time of the processor: the least of nine.
fn least_cost_of_an_entry(tasks: usize) -> Duration {
    let mut store = large(tasks);
    let entries: Vec<Transaction> =
        (0..9).map(|n| serde_json::from_slice(&report(&store, n * (tasks / 9))).expect("an entry")).collect();
    let mut publisher = StorePublisher::default();
    let reader = publisher.reader();
    publisher.publish(&store);
    let costs = entries.iter().map(|entry| {
        // As those that read the state before while the next one is made.
        let before = reader.read();
        let begin = processor_time();
        store.apply(store.index() + 1, entry).expect("applied");
        publisher.applied(&store, entry);
        publisher.publish(&store);
        let cost = processor_time().saturating_sub(begin);
        assert!(before.index() < reader.read().index());
        cost
    });
    costs.min().expect("nine")
}

#[test]
fn thirty_times_the_tasks_do_not_make_an_entry_dear() {
    let (few, many) = (least_cost_of_an_entry(1_000), least_cost_of_an_entry(30_000));
    // A copy of a table would cost thirty times as much, its deeper tree and the processor's caches less than three.
    assert!(many < few * 6, "{few:?} with 1,000 tasks, {many:?} with 30,000");
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|n| n.parse::<usize>().ok()).expect("pages") * 4096
}

#[test]
#[ignore = "prints figures"]
fn an_entry_applied_and_published() {
    for tasks in [1_000, 10_000, 100_000] {
        let before = resident();
        let mut store = large(tasks);
        let memory = resident().saturating_sub(before);
        let count = 500.min(tasks);
        let numbers = (0..count).map(|n| n * (tasks / count));
        let entries: Vec<Transaction> = numbers.map(|n| serde_json::from_slice(&report(&store, n)).expect("an entry")).collect();
        let mut published = Arc::new(store.clone());
        let started = processor_time();
        for entry in &entries {
            let index = store.index() + 1;
            store.apply(index, entry).expect("applied");
            published = Arc::new(store.clone());
        }
        let each = processor_time().saturating_sub(started) / u32::try_from(entries.len()).expect("few");
        assert_eq!(published.index(), store.index());
        println!("{tasks} tasks: {each:?} an entry; {} bytes a task", memory / tasks);
    }
}

#[test]
#[ignore = "prints figures"]
fn a_restart_with_10_000_entries_to_replay_at_50_000_tasks() {
    let store = large(50_000);
    let entries: Vec<Vec<u8>> = (0..10_000).map(|n| report(&store, n * 5)).collect();
    let snapshot = store.snapshot();
    let index = store.index();
    drop(store);
    let started = processor_time();
    let mut store = Store::restore(&snapshot).expect("restores");
    let restored = processor_time().saturating_sub(started);
    for (index, entry) in (index + 1..).zip(&entries) {
        store.apply(index, &serde_json::from_slice(entry).expect("an entry")).expect("applied");
    }
    let published = Arc::new(store.clone());
    println!("snapshot of {} MiB: {restored:?}; in all {:?}", snapshot.len() >> 20, processor_time().saturating_sub(started));
    assert_eq!(published.tasks().filter(|t| t.status.state == TaskState::Running).count(), 10_000);
}
