//! What a decision of the scheduler costs, from 100 tasks to 100,000 on 1,000 nodes. Prints and asserts no time: run it with
//! `cargo test --release --test it -- --ignored --nocapture cost_of_scheduling`.

use super::fixture::{self, apply};
use skep::manager::scheduler::Scheduler;
use skep::model::fixture::task_with_resolvers;
use skep::model::task::{ContainerSpec, Placement, PlacementPreference, Reservations, Resources, SpreadOver};
use skep::model::{Cluster, Task, TaskSpec, TaskState, TaskStatus};
use skep::store::{Action, Store};
use std::time::{Duration, Instant};

fn cluster(nodes: usize) -> Store {
    fixture::ready_nodes(Cluster { subnet_size: 16, ..fixture::cluster() }, nodes, |node| {
        node.description.memory_bytes = 1 << 40;
        node.spec.labels = [("rack".to_owned(), format!("r{}", node.meta.version % 20))].into();
    })
}

/// Tasks of ten services that ask for much: a constraint, a reservation and a preference.
fn pending(number: usize) -> Task {
    let over = SpreadOver { spread_descriptor: "node.labels.rack".to_owned() };
    let placement = Placement {
        constraints: vec!["node.labels.rack!=r7".to_owned(), "node.role==worker".to_owned()],
        preferences: vec![PlacementPreference { spread: Some(over) }],
        ..Placement::default()
    };
    let reservations = Reservations { memory_bytes: 1 << 20, nano_cpus: 0, generic_resources: Vec::new() };
    let service = format!("service{}", number % 10);
    Task {
        spec: TaskSpec {
            container_spec: ContainerSpec { image: "whoami".to_owned(), ..ContainerSpec::default() },
            placement: Some(placement),
            resources: Some(Resources { reservations: Some(reservations), ..Resources::default() }),
            ..TaskSpec::default()
        }
        .into(),
        slot: number as u64 + 1,
        node_id: None,
        status: TaskStatus { state: TaskState::Pending, ..TaskStatus::default() },
        ..task_with_resolvers(&format!("task{number:08}"), &service, "", &[])
    }
}

#[test]
#[ignore = "a measurement: some minutes"]
fn cost_of_scheduling() {
    println!("{:>6} {:>8} {:>8} {:>12} {:>14} {:>12}", "nodes", "tasks", "plans", "planning", "decisions/s", "applying");
    for (nodes, tasks) in [(100, 100), (100, 1_000), (1_000, 1_000), (1_000, 10_000), (1_000, 30_000), (1_000, 100_000)] {
        let mut store = cluster(nodes);
        for first in (0..tasks).step_by(1000) {
            let some = (first..tasks.min(first + 1000)).map(|number| Action::create(pending(number))).collect();
            apply(&mut store, fixture::START, some);
        }
        let mut scheduler = Scheduler::default();
        let (mut planning, mut applying, mut plans) = (Duration::ZERO, Duration::ZERO, 0_u32);
        loop {
            let begin = Instant::now();
            let plan = scheduler.plan(&store, fixture::START);
            planning += begin.elapsed();
            if plan.is_empty() {
                break;
            }
            plans += 1;
            let begin = Instant::now();
            apply(&mut store, fixture::START, plan);
            applying += begin.elapsed();
        }
        assert_eq!(store.tasks().filter(|t| t.node_id.is_some()).count(), tasks);
        #[expect(clippy::cast_precision_loss, reason = "shown to people")]
        let rate = tasks as f64 / planning.as_secs_f64();
        println!("{nodes:>6} {tasks:>8} {plans:>8} {planning:>12.3?} {rate:>14.0} {applying:>12.3?}");
        let begin = Instant::now();
        assert_eq!(scheduler.plan(&store, fixture::START), Vec::new());
        println!("{:>49} while nothing is pending", format!("{:.3?}", begin.elapsed()));
    }
}
