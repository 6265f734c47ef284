//! What a decision of the scheduler costs, and a task from its creation to its node.

use super::{compared, fixture, large, processor_time, scaled};
use crate::report::Report;
use skep::manager::round::RoundPlanner;
use skep::manager::scheduler::Scheduler;
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::fixture::task_with_resolvers;
use skep::model::task::{ContainerSpec, Placement, PlacementPreference, Reservations, Resources, SpreadOver};
use skep::model::{Cluster, Task, TaskSpec, TaskState, TaskStatus};
use skep::store::{Action, Store};
use std::time::{Duration, Instant};

fn cluster(nodes: usize) -> Store {
    fixture::ready_nodes(Cluster { subnet_size: 14, ..fixture::cluster() }, nodes, |node| {
        node.description.memory_bytes = 1 << 40;
        node.spec.labels = [("rack".to_owned(), format!("r{}", node.meta.version % 20))].into();
    })
}

/// Tasks of ten services. Those that ask for much have two constraints, a reservation and a preference.
fn pending(number: usize, asks_for_much: bool) -> Task {
    let over = SpreadOver { spread_descriptor: "node.labels.rack".to_owned() };
    let placement = Placement {
        constraints: vec!["node.labels.rack!=r7".to_owned(), "node.role==worker".to_owned()],
        preferences: vec![PlacementPreference { spread: Some(over) }],
        ..Placement::default()
    };
    let reservations = Reservations { memory_bytes: 1 << 20, nano_cpus: 0, generic_resources: Vec::new() };
    let resources = Resources { reservations: Some(reservations), ..Resources::default() };
    let service = format!("service{}", number % 10);
    Task {
        spec: TaskSpec {
            container_spec: ContainerSpec { image: "whoami".to_owned(), ..ContainerSpec::default() },
            placement: asks_for_much.then_some(placement),
            resources: asks_for_much.then_some(resources),
            ..TaskSpec::default()
        }
        .into(),
        slot: number as u64 + 1,
        node_id: None,
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        ..task_with_resolvers(&format!("task{number:08}"), &service, "", &[])
    }
}

/// The scheduler alone, in time of the processor: tasks that wait for a node, until all have one.
pub fn decisions(report: &mut Report) {
    for asks_for_much in [false, true] {
        for tasks in [1_000, 10_000, 100_000].map(scaled) {
            let nodes = scaled(1_000).max(2);
            let mut store = cluster(nodes);
            for first in (0..tasks).step_by(1000) {
                let some = (first..tasks.min(first + 1000)).map(|number| Action::create(pending(number, asks_for_much)));
                let some = some.collect();
                fixture::apply(&mut store, fixture::START, some);
            }
            let (mut scheduler, mut planning) = (Scheduler::default(), Duration::ZERO);
            loop {
                let begin = processor_time();
                let plan = scheduler.plan(&store, fixture::START);
                planning += processor_time().saturating_sub(begin);
                if plan.is_empty() {
                    break;
                }
                fixture::apply(&mut store, fixture::START, plan);
            }
            assert_eq!(store.tasks().filter(|t| t.node_id.is_some()).count(), tasks);
            let what = if asks_for_much { "decisions: constraints, reservation, spread" } else { "decisions of the scheduler" };
            let rate = tasks as f64 / planning.as_secs_f64();
            let now = (rate, format!("{rate:.0} decisions/s"));
            compared(report, what, format!("{tasks} tasks, {nodes} nodes"), None, "≥ 10^5/s, near linear", now);
        }
    }
}

/// Services are created; their tasks get addresses and nodes, everything written to a store.
pub fn created(report: &mut Report) {
    for tasks in [1_000, 10_000, 100_000].map(scaled) {
        let nodes = scaled(1_000).max(2);
        let mut store = large::nodes(nodes);
        let services = 50.min(tasks);
        let create = |n: usize| Action::create(fixture::service(&format!("s{n}"), (tasks / services) as u64, &[], &[]));
        fixture::apply(&mut store, fixture::START, (0..services).map(create).collect());
        let mut planner = RoundPlanner::new(ManagerSettings::default(), 1);
        let (begin, started) = (Instant::now(), processor_time());
        // What takes longer is measured by what is done until then.
        while begin.elapsed() < Duration::from_mins(1) {
            let actions = planner.round(&store, Vec::new(), LowestApplied::by_all(store.revision()), fixture::START);
            if actions.is_empty() {
                break;
            }
            fixture::apply(&mut store, fixture::START, actions);
            planner.written();
        }
        let time = processor_time().saturating_sub(started).as_secs_f64();
        let done = store.tasks().filter(|task| task.node_id.is_some()).count();
        let size = format!("{done} of {tasks} tasks on {nodes} nodes");
        let rate = done as f64 / time;
        compared(report, "tasks created, scheduled and written", size, None, "near linear", (rate, format!("{rate:.0} tasks/s")));
    }
}
