//! `skep rebalance` on simulated nodes: tasks move within the limits of updates, and what serves goes on serving.

use super::fixture::{after, node, restarting, service, updating};
use super::simulation::Simulation;
use skep::manager::scheduler::rebalance;
use skep::model::service::UpdateConfig;
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, TaskCause, TaskEnd};
use skep::store::{Action, FieldUpdate};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Six tasks on two of three nodes, because the third one was away. They may not be restarted: a move is no restart.
fn uneven(config: UpdateConfig, image: &str) -> Simulation {
    let mut simulation = Simulation::new(3, 7);
    simulation.availability(&node(3), Availability::Drain);
    let never = RestartPolicy { condition: Some(RestartCondition::None), ..after(Duration::from_secs(30)) };
    let mut web = restarting(service("web", 6, &[(8080, 80)], &[]), never);
    web.spec.update_config = Some(config);
    image.clone_into(&mut web.spec.task_template.container_spec.image);
    simulation.command(vec![Action::create(web)]);
    simulation.until("all listen", |s| serving(s) == 6);
    simulation.availability(&node(3), Availability::Active);
    simulation
}

fn serving(simulation: &Simulation) -> usize {
    simulation.running("web").iter().filter(|t| !t.listens.is_empty()).count()
}

/// What the request of `skep rebalance` writes; returns the number of moves.
fn rebalance(simulation: &mut Simulation) -> usize {
    let plan = rebalance::plan(&simulation.store, None, simulation.now);
    let set = |one: rebalance::Move| Action::Set(FieldUpdate::MoveTask { id: one.task, from: one.from, to: one.to });
    let actions: Vec<Action> = plan.moves.into_iter().map(set).collect();
    let count = actions.len();
    if count > 0 {
        simulation.command(actions);
    }
    count
}

#[test]
fn tasks_move_one_after_the_other_to_the_node_that_the_plan_has_named() {
    for (order, parallelism, least) in [("stop-first", 1, 5), ("stop-first", 2, 4), ("start-first", 1, 6), ("start-first", 0, 6)]
    {
        let config = UpdateConfig { order: order.to_owned(), ..updating(parallelism, SECOND) };
        let mut simulation = uneven(config, "whoami");
        assert_eq!(rebalance(&mut simulation), 2);
        simulation.run(Duration::from_millis(50));
        // Another leader goes on.
        simulation.change_leader();
        simulation.until("even", |s| {
            assert!(serving(s) >= least, "{order}: {} serve, at least {least} must\n{}", serving(s), s.dump());
            s.per_node("web").values().copied().collect::<Vec<_>>() == [2, 2, 2] && serving(s) == 6
        });
        simulation.run(5 * SECOND);
        let tasks = simulation.tasks("web");
        let moved = tasks.iter().filter(|t| t.end == Some(TaskEnd::Rebalanced)).count();
        let made = tasks.iter().filter(|t| t.cause == Some(TaskCause::Rebalance)).count();
        assert_eq!((moved, made, tasks.len()), (2, 2, 8), "{order}\n{}", simulation.dump());
        assert!(tasks.iter().filter(|t| t.is_wanted()).all(|t| t.move_to.is_none()), "{}", simulation.dump());
        assert_eq!(rebalance(&mut simulation), 0, "it is even");
    }
}

#[test]
fn the_first_task_that_does_not_do_well_elsewhere_ends_it() {
    let mut simulation = uneven(updating(1, SECOND), "not-on-n3");
    assert_eq!(rebalance(&mut simulation), 2);
    simulation.run(10 * SECOND);
    assert_eq!(simulation.running("web").len(), 6, "nothing was stopped for it\n{}", simulation.dump());
    let made = simulation.tasks("web").iter().filter(|t| t.cause == Some(TaskCause::Rebalance)).count();
    assert_eq!(made, 1, "one attempt\n{}", simulation.dump());
    assert!(simulation.tasks("web").iter().all(|t| t.move_to.is_none()), "{}", simulation.dump());
}

#[test]
fn a_task_that_does_not_listen_elsewhere_ends_it() {
    let config = UpdateConfig { order: "start-first".to_owned(), ..updating(1, SECOND) };
    let mut simulation = uneven(config, "deaf-on-n3");
    assert_eq!(rebalance(&mut simulation), 2);
    simulation.until("given up", |s| {
        assert_eq!(serving(s), 6, "{}", s.dump());
        s.tasks("web").iter().all(|t| t.move_to.is_none())
    });
    simulation.until("withdrawn", |s| s.running_containers("web") == 6);
    let made = simulation.tasks("web").iter().filter(|t| t.cause == Some(TaskCause::Rebalance)).count();
    assert_eq!((made, serving(&simulation)), (1, 6), "one attempt\n{}", simulation.dump());
    // What had to stop first is not brought back, and nothing follows it.
    let mut simulation = uneven(updating(1, SECOND), "deaf-on-n3");
    assert_eq!(rebalance(&mut simulation), 2);
    simulation.until("given up", |s| {
        assert!(serving(s) >= 5, "{}", s.dump());
        s.tasks("web").iter().all(|t| !t.is_wanted() || t.node_id.is_none() || t.move_to.is_none())
    });
    simulation.run(10 * SECOND);
    assert_eq!(serving(&simulation), 5, "{}", simulation.dump());
}

#[test]
fn a_node_that_takes_no_tasks_any_more_ends_it_and_an_update_comes_first() {
    let mut simulation = uneven(updating(1, SECOND), "whoami");
    let plan = rebalance::plan(&simulation.store, None, simulation.now);
    for n in 1..=3 {
        simulation.availability(&node(n), Availability::Pause);
    }
    let set = |one: rebalance::Move| Action::Set(FieldUpdate::MoveTask { id: one.task, from: one.from, to: one.to });
    let before: Vec<_> = simulation.running("web").iter().map(|t| t.id.clone()).collect();
    simulation.command(plan.moves.into_iter().map(set).collect());
    simulation.run(20 * SECOND);
    let after: Vec<_> = simulation.running("web").iter().map(|t| t.id.clone()).collect();
    assert_eq!(after, before, "{}", simulation.dump());
    assert!(simulation.running("web").iter().all(|t| t.move_to.is_none()), "{}", simulation.dump());

    let mut simulation = uneven(updating(2, SECOND), "whoami");
    rebalance(&mut simulation);
    simulation.update("web", |spec| spec.task_template.force_update = 1);
    simulation.until("updated", |s| s.update_state("web") == Some(skep::model::UpdateState::Completed));
    simulation.until("all serve", |s| serving(s) == 6);
    assert!(simulation.tasks("web").iter().all(|t| !t.is_wanted() || t.spec_version == 2), "{}", simulation.dump());
    let spread: Vec<usize> = simulation.per_node("web").into_values().collect();
    assert_eq!(spread, [2, 2, 2], "{}", simulation.dump());
}
