//! Jobs on simulated nodes.

use super::fixture::{after, global_job, in_mode, job, node, restarting, service};
use super::simulation::Simulation;
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, NodeState, Task, TaskState};
use skep::store::Action;
use std::time::Duration;

fn completed(simulation: &Simulation, name: &str) -> usize {
    let run = simulation.store.service(&name.into()).unwrap().job.map(|job| job.iteration);
    let is_done = |t: &&&Task| t.status.state == TaskState::Complete && t.job_iteration == run;
    simulation.tasks(name).iter().filter(is_done).count()
}

#[test]
fn a_replicated_job_completes_so_many_tasks_and_never_runs_more_at_once() {
    for (concurrent, total, nodes) in [(1, 1, 1), (2, 5, 3), (3, 7, 2), (10, 4, 3), (2, 0, 1), (0, 2, 1)] {
        let mut simulation = Simulation::new(nodes, concurrent + total);
        simulation.command(vec![Action::create(in_mode(service("once", 0, &[], &[]), job(concurrent, total)))]);
        let reached = if concurrent == 0 { 0 } else { total };
        for run in 0..2 {
            simulation.until("complete", |s| {
                assert!(s.running_containers("once") as u64 <= concurrent, "{}", s.dump());
                completed(s, "once") as u64 >= reached
            });
            simulation.change_leader();
            simulation.run(Duration::from_secs(10));
            assert_eq!(completed(&simulation, "once") as u64, reached, "it never runs again\n{}", simulation.dump());
            let slots =
                simulation.tasks("once").iter().filter(|t| t.job_iteration == Some(run)).map(|t| t.slot).collect::<Vec<_>>();
            assert_eq!(slots.len() as u64, reached, "{slots:?}");
            simulation.update("once", |spec| drop(spec.labels.insert("run".to_owned(), "again".to_owned())));
        }
        simulation.until("complete", |s| completed(s, "once") as u64 >= reached);
    }
}

#[test]
fn a_job_that_fails_keeps_to_its_policy_however_many_run_at_once() {
    // A global job has a task on each of the three nodes.
    for (mode, slots) in [(job(1, 4), 1), (job(4, 4), 4), (global_job(), 3)] {
        for (condition, attempts, tasks_per_slot) in
            [(RestartCondition::None, 0, 1), (RestartCondition::OnFailure, 2, 3), (RestartCondition::Any, 1, 2)]
        {
            let mut simulation = Simulation::new(3, 7);
            let max_attempts = (attempts > 0).then_some(attempts);
            let policy = RestartPolicy { condition: Some(condition), max_attempts, ..after(Duration::from_millis(300)) };
            simulation.command(vec![Action::create(in_mode(restarting(service("crash", 0, &[], &[]), policy), mode.clone()))]);
            simulation.run(Duration::from_secs(40));
            let made = simulation.tasks("crash").len();
            assert_eq!(made, slots * tasks_per_slot, "{mode:?} {condition:?} {attempts}\n{}", simulation.dump());
        }
    }
}

#[test]
fn dead_tasks_of_a_failing_job_are_bounded() {
    let mut simulation = Simulation::new(2, 7);
    let policy = after(Duration::from_millis(200));
    simulation.command(vec![Action::create(in_mode(restarting(service("crash", 0, &[], &[]), policy), job(3, 3)))]);
    simulation.run(Duration::from_mins(4));
    let kept = simulation.tasks("crash").len();
    assert!((3..=18).contains(&kept), "{kept}\n{}", simulation.dump());
}

#[test]
fn a_global_job_runs_once_on_every_node_also_on_those_that_come_later() {
    let mut simulation = Simulation::new(4, 6);
    simulation.disconnect(&node(4));
    simulation.until("down", |s| s.state_of(&node(4)) == NodeState::Down);
    simulation.availability(&node(3), Availability::Drain);
    simulation.command(vec![Action::create(in_mode(service("once", 0, &[], &[]), global_job()))]);
    simulation.until("two", |s| completed(s, "once") == 2);
    simulation.availability(&node(3), Availability::Active);
    simulation.reconnect(&node(4));
    simulation.until("four", |s| completed(s, "once") == 4);
    for n in 1..=4 {
        simulation.availability(&node(n), Availability::Drain);
        simulation.run(Duration::from_secs(1));
        simulation.availability(&node(n), Availability::Active);
    }
    simulation.run(Duration::from_secs(10));
    assert_eq!(simulation.tasks("once").len(), 4, "once each\n{}", simulation.dump());
}

#[test]
fn a_drained_node_ends_the_tasks_of_jobs_and_they_run_elsewhere() {
    let mut simulation = Simulation::new(2, 6);
    simulation.command(vec![Action::create(in_mode(service("long", 0, &[], &[]), job(1, 1)))]);
    simulation.until("it runs", |s| s.running_containers("long") == 1);
    let at = simulation.tasks("long")[0].node_id.clone().unwrap();
    simulation.availability(&at, Availability::Drain);
    simulation.until("elsewhere", |s| {
        assert!(s.running_containers("long") <= 1, "two at once\n{}", s.dump());
        s.tasks("long").iter().any(|t| t.status.state == TaskState::Running && t.node_id.as_ref() != Some(&at))
    });
}
