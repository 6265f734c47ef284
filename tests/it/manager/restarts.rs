//! How often and where tasks are tried again that fail, or that no node can prepare.

use super::fixture::{after, node, restarting, service};
use super::simulation::Simulation;
use skep::model::{Service, TaskId, TaskState};
use skep::store::Action;
use std::collections::BTreeSet;
use std::time::Duration;

/// Most commits for one task that is made and fails: what the planners write of it, and each of its states.
const COMMITS: usize = 10;

/// Runs for so long and returns how many tasks the service had in all, those of before included. A loop that makes few tasks and
/// writes about them all the time is hot as well.
fn tasks_made(simulation: &mut Simulation, name: &str, time: Duration) -> usize {
    let (mut seen, end) = (BTreeSet::<TaskId>::new(), simulation.now.plus(time));
    let before = simulation.commits;
    while simulation.now < end {
        seen.extend(simulation.tasks(name).iter().map(|t| t.id.clone()));
        simulation.run(Duration::from_millis(20));
    }
    let commits = usize::try_from(simulation.commits - before).unwrap();
    assert!(commits <= COMMITS * seen.len(), "{commits} commits for {} tasks\n{}", seen.len(), simulation.dump());
    seen.len()
}

fn simulation(service: Service) -> Simulation {
    let mut simulation = Simulation::new(3, 11);
    simulation.command(vec![Action::create(service)]);
    simulation
}

#[test]
fn a_task_that_no_node_can_prepare_is_tried_once_per_restart_delay() {
    // (restart delay, time, tasks): the first one, and one per delay.
    for (delay, time, most) in [(5, 14, 4), (3, 8, 4)] {
        let delay = Duration::from_secs(delay);
        let mut simulation = simulation(restarting(service("reject", 1, &[], &[]), after(delay)));
        let made = tasks_made(&mut simulation, "reject", Duration::from_secs(time));
        assert!((3..=most).contains(&made), "{made} tasks in {time} s\n{}", simulation.dump());
        // The newest one waits, so `docker service ps` shows why.
        let live: Vec<_> = simulation.tasks("reject").into_iter().filter(|t| t.desired_state <= TaskState::Running).collect();
        assert_eq!(live.len(), 1);
        assert_eq!((live[0].status.state, live[0].desired_state), (TaskState::Rejected, TaskState::Ready));
        assert!(live[0].not_before.is_some_and(|start| start > simulation.now), "{}", simulation.dump());
        // A new leader neither hurries nor forgets.
        simulation.change_leader();
        let again = tasks_made(&mut simulation, "reject", delay.mul_f64(0.9));
        assert!(again <= made + 1, "{again} after {made}\n{}", simulation.dump());
    }
}

#[test]
fn a_service_without_a_restart_delay_that_no_node_can_prepare_does_not_run_hot() {
    for name in ["reject", "crash"] {
        let mut simulation = simulation(restarting(service(name, 1, &[], &[]), after(Duration::ZERO)));
        let made = tasks_made(&mut simulation, name, Duration::from_secs(30));
        assert!((5..=10).contains(&made), "{name}: {made} tasks in 30 s\n{}", simulation.dump());
    }
}

#[test]
fn the_delays_of_a_crash_loop_grow_up_to_a_minute() {
    let mut simulation = simulation(service("crash", 1, &[], &[]));
    // Delays of 5, 5, 5, 10, 20, 40, 60 … s.
    let made = tasks_made(&mut simulation, "crash", Duration::from_secs(17));
    assert_eq!(made, 5, "the first one, three after 5 s each, and one that waits\n{}", simulation.dump());
    simulation.run(Duration::from_mins(5));
    let made = tasks_made(&mut simulation, "crash", Duration::from_mins(5));
    let kept = 5;
    assert!((kept + 4..=kept + 6).contains(&made), "one per minute, not {made}\n{}", simulation.dump());
    let newest = simulation.tasks("crash").into_iter().max_by_key(|t| t.meta.created_at).unwrap();
    let delay = newest.not_before.unwrap().since(newest.meta.created_at);
    assert_eq!(delay, Duration::from_mins(1));
    // A longer delay of the user's stays as it is.
    let mut simulation = self::simulation(restarting(service("crash", 1, &[], &[]), after(Duration::from_mins(2))));
    assert_eq!(tasks_made(&mut simulation, "crash", Duration::from_mins(19)), 11, "{}", simulation.dump());
}

#[test]
fn a_task_that_ran_well_is_restarted_after_the_delay_of_its_policy() {
    let mut simulation = simulation(service("minutes", 1, &[], &[]));
    for _ in 0..6 {
        simulation.until("it runs", |s| s.running("minutes").len() == 1);
        // Longer than `until` waits.
        while simulation.running("minutes").len() == 1 {
            simulation.run(Duration::from_millis(100));
        }
    }
    simulation.until("the next one waits", |s| s.tasks("minutes").iter().any(|t| t.desired_state == TaskState::Ready));
    let waits = simulation.tasks("minutes").into_iter().find(|t| t.desired_state == TaskState::Ready).unwrap();
    assert_eq!(waits.failures.count, 1, "{}", simulation.dump());
    assert_eq!(waits.not_before.unwrap().since(waits.meta.created_at), Duration::from_secs(5));
}

#[test]
fn a_task_that_one_node_cannot_prepare_is_tried_on_another_one_next() {
    // The image is on one node only, whichever it is, and that node has more to do than the others.
    for number in 1..=3 {
        let name = format!("only-n{number}");
        for replicas in [1, 3] {
            let mut simulation = Simulation::new(3, 11);
            simulation.command(vec![Action::create(service("others", 6, &[], &[]))]);
            simulation.until("the others run", |s| s.running("others").len() == 6);
            simulation.command(vec![Action::create(service(&name, replicas, &[], &[]))]);
            simulation.run(Duration::from_secs(16));
            let running = simulation.per_node(&name);
            let expected = (node(number).to_string(), usize::try_from(replicas).unwrap());
            assert_eq!(running.into_iter().collect::<Vec<_>>(), [expected], "{}", simulation.dump());
        }
    }
}

#[test]
fn every_node_is_tried_however_short_the_history_is() {
    let mut simulation = Simulation::new(9, 3);
    let mut cluster = simulation.store.cluster().unwrap().clone();
    cluster.spec.orchestration.task_history_retention_limit = Some(1);
    simulation.command(vec![Action::update(cluster)]);
    simulation.command(vec![Action::create(restarting(service("only-n9", 1, &[], &[]), after(Duration::from_millis(200))))]);
    simulation.until("it runs where it can", |s| s.running("only-n9").len() == 1);
}

#[test]
fn a_new_version_of_the_spec_is_neither_delayed_nor_kept_from_nodes() {
    let mut simulation = simulation(service("reject", 3, &[], &[]));
    simulation.run(Duration::from_secs(7));
    let mut fixed = simulation.store.service(&"reject".into()).unwrap().clone();
    (fixed.spec_version, fixed.spec.task_template.force_update) = (2, 1);
    simulation.command(vec![Action::update(fixed)]);
    simulation.run(Duration::from_secs(1));
    let newer: Vec<_> = simulation.tasks("reject").into_iter().filter(|t| t.spec_version == 2).collect();
    assert!(newer.len() >= 3 && newer.iter().any(|t| t.failures.is_none() && t.not_before.is_none()), "{}", simulation.dump());
    let nodes: BTreeSet<_> = newer.iter().filter(|t| t.failures.is_none()).map(|t| t.node_id.clone()).collect();
    assert_eq!(nodes.len(), 3, "{}", simulation.dump());
}
