//! Drained nodes: tasks move in the order and the parallelism of their services' updates, are waited for as long as they are on their
//! way, and the drain comes to an end.

use super::fixture::{after, node, restarting, service, updating};
use super::simulated_agent::{PULLED, STOPPED};
use super::simulation::Simulation;
use skep::model::service::UpdateConfig;
use skep::model::{Availability, NodeState, ServiceSpec, TaskState, UpdateState};
use skep::store::Action;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn image(name: &str) -> impl FnOnce(&mut ServiceSpec) + use<'_> {
    move |spec| name.clone_into(&mut spec.task_template.container_spec.image)
}

/// A service whose tasks are all on the first of these nodes.
fn on_one_node(nodes: usize, replicas: u64, first: &str, order: &str, parallelism: u64) -> Simulation {
    let mut simulation = Simulation::new(nodes, replicas + parallelism);
    for other in 2..=nodes {
        simulation.availability(&node(other), Availability::Pause);
    }
    let mut web = restarting(service("web", replicas, &[(8080, 80)], &[]), after(Duration::from_millis(500)));
    image(first)(&mut web.spec);
    web.spec.update_config = Some(UpdateConfig { order: order.to_owned(), ..updating(parallelism, SECOND) });
    simulation.command(vec![Action::create(web)]);
    simulation.until("all listen", |s| serving(s) as u64 == replicas);
    for other in 2..=nodes {
        simulation.availability(&node(other), Availability::Active);
    }
    simulation
}

fn serving(simulation: &Simulation) -> usize {
    simulation.running("web").iter().filter(|t| !t.listens.is_empty()).count()
}

fn is_left(simulation: &Simulation, number: usize) -> bool {
    simulation.per_node("web").contains_key(node(number).as_str())
}

const LIMITS: [(&str, u64, usize); 5] =
    [("stop-first", 1, 3), ("stop-first", 2, 2), ("stop-first", 0, 0), ("start-first", 1, 4), ("start-first", 3, 4)];

#[test]
fn as_many_tasks_leave_a_drained_node_at_the_same_time_as_an_update_replaces() {
    for (order, parallelism, least) in LIMITS {
        let mut simulation = on_one_node(3, 4, "whoami", order, parallelism);
        simulation.availability(&node(1), Availability::Drain);
        simulation.run(Duration::from_millis(50));
        // Another leader goes on.
        simulation.change_leader();
        let took = simulation.until("moved", |s| {
            assert!(serving(s) >= least, "{order}: {} serve, at least {least} must\n{}", serving(s), s.dump());
            !is_left(s, 1) && serving(s) == 4
        });
        assert!(took < Duration::from_secs(10), "{order} {parallelism}: {took:?}");
        assert_eq!(simulation.update_state("web"), None, "no update was asked for");
    }
}

#[test]
fn a_drain_in_the_middle_of_an_update_keeps_to_the_limits_of_both() {
    for (order, parallelism, least) in LIMITS {
        for pause in [0, 200, 700, 1500] {
            let mut simulation = on_one_node(3, 4, "whoami", order, parallelism);
            simulation.update("web", image("v2"));
            simulation.run(Duration::from_millis(pause));
            simulation.availability(&node(1), Availability::Drain);
            simulation.until("updated and moved", |s| {
                assert!(serving(s) >= least, "{order}: {} serve, at least {least} must\n{}", serving(s), s.dump());
                s.update_state("web") == Some(UpdateState::Completed) && !is_left(s, 1) && serving(s) == 4
            });
            assert!(simulation.running("web").iter().all(|t| t.spec.container_spec.image == "v2"), "{}", simulation.dump());
        }
    }
}

#[test]
fn tasks_of_a_drained_node_that_goes_down_are_replaced_at_once() {
    let mut simulation = on_one_node(3, 4, "whoami", "stop-first", 1);
    simulation.availability(&node(1), Availability::Drain);
    simulation.disconnect(&node(1));
    simulation.until("down", |s| s.state_of(&node(1)) == NodeState::Down);
    let took = simulation.until("replaced", |s| serving(s) == 4);
    assert!(took < 2 * SECOND, "{took:?}");
}

#[test]
fn a_drain_ends_where_no_node_takes_its_tasks() {
    for order in ["start-first", "stop-first"] {
        let mut simulation = on_one_node(2, 3, "whoami", order, 1);
        for n in 1..=2 {
            simulation.availability(&node(n), Availability::Drain);
        }
        simulation.until("stopped", |s| s.running_containers("web") == 0);
        // And where they fail: each is tried a few times, with the delay of the restart policy between two attempts.
        let mut simulation = on_one_node(2, 3, "only-n1", order, 1);
        simulation.availability(&node(1), Availability::Drain);
        let mut made = std::collections::BTreeSet::new();
        let took = simulation.until("stopped", |s| {
            made.extend(s.tasks("web").iter().map(|t| t.id.clone()));
            s.running_containers("web") == 0
        });
        assert!(took < Duration::from_secs(20) && made.len() < 20, "{order}: {took:?}, {} tasks", made.len());
    }
}

#[test]
fn an_image_that_takes_minutes_to_pull_is_waited_for() {
    for order in ["start-first", "stop-first"] {
        let mut simulation = on_one_node(2, 1, "pulls", order, 1);
        let old = simulation.running("web")[0].id.clone();
        simulation.availability(&node(1), Availability::Drain);
        let took = simulation.until("moved", |s| {
            // Longer than an old task is waited for that does not stop.
            assert!(order == "start-first" || s.running_containers("web") <= 1, "two of the slot run\n{}", s.dump());
            let is_prepared = s.tasks("web").iter().any(|t| t.id != old && t.status.state >= TaskState::Ready);
            assert!(is_prepared || s.running("web").iter().any(|t| t.id == old), "{order}\n{}", s.dump());
            !is_left(s, 1) && serving(s) == 1
        });
        assert!(took > PULLED && took < PULLED + 5 * SECOND, "{order}: {took:?}");
    }
}

/// moby#36111.
#[test]
fn the_whole_grace_of_a_task_that_stops_slowly_is_waited_for() {
    let mut simulation = on_one_node(2, 1, "stops-slowly", "stop-first", 1);
    simulation.update("web", |spec| spec.task_template.container_spec.stop_grace_period = Some(STOPPED.into()));
    let is_updated = |s: &Simulation| {
        s.update_state("web") == Some(UpdateState::Completed) && serving(s) == 1 && s.running_containers("web") == 1
    };
    simulation.until("it has its grace", is_updated);
    simulation.update("web", image("v2"));
    let took = simulation.until("updated", |s| {
        assert!(s.running_containers("web") <= 1, "two of the slot run\n{}", s.dump());
        is_updated(s)
    });
    assert!(took > Duration::from_mins(1), "{took:?}");
}

#[test]
fn what_never_comes_is_waited_for_for_ten_minutes() {
    let mut simulation = on_one_node(2, 1, "stuck-on-n2", "start-first", 1);
    simulation.availability(&node(1), Availability::Drain);
    simulation.run(Duration::from_secs(595));
    assert!(is_left(&simulation, 1), "{}", simulation.dump());
    simulation.run(Duration::from_secs(10));
    assert_eq!(simulation.running_containers("web"), 0, "{}", simulation.dump());
}
