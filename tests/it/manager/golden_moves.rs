//! Golden plans of moves (rebalance, drain), global jobs and of what is kept of tasks that have ended.

use super::fixture::{after, global_job, in_mode, restarting, service, updating};
use super::golden::Script;
use skep::manager::scheduler::rebalance;
use skep::model::service::UpdateConfig;
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, NodeState, Task, TaskState};
use skep::store::{Action, FieldUpdate};
use std::time::Duration;

#[test]
fn a_rebalance_and_a_drain_move_tasks_in_the_order_of_the_update() {
    let mut s = Script::new(2);
    let mut web = service("web", 4, &[], &[]);
    let config = UpdateConfig { order: "start-first".to_owned(), ..updating(1, Duration::from_secs(5)) };
    web.spec.update_config = Some(config);
    s.node(2, |n| n.spec.availability = Availability::Pause);
    s.step("web, 4 replicas, n2 is paused", vec![Action::create(web)]);
    s.carry_out("all run");
    s.node(2, |n| n.spec.availability = Availability::Active);
    s.step("n2 is active: nothing moves by itself", Vec::new());
    s.seconds(1);
    let moves = rebalance::plan(&s.store, None, s.now).moves;
    let set = |one: rebalance::Move| Action::Set(FieldUpdate::MoveTask { id: one.task, from: one.from, to: one.to });
    s.step("skep rebalance", moves.into_iter().map(set).collect());
    for what in ["the first runs on n2: its predecessor stops, and the second is made", "the second runs on n2", "stopped"] {
        s.carry_out(what);
    }
    s.seconds(1);
    s.node(1, |n| n.spec.availability = Availability::Drain);
    s.step("n1 is drained", Vec::new());
    for what in ["the first runs on n2: its predecessor stops, and the second is made", "the second runs on n2", "stopped"] {
        s.carry_out(what);
    }
    s.compare("moves.txt");
}

#[test]
fn a_global_job_on_nodes_that_fail_come_later_and_are_drained() {
    let mut s = Script::new(3);
    s.node(3, |n| n.status.state = NodeState::Down);
    let policy = RestartPolicy { condition: Some(RestartCondition::OnFailure), ..after(Duration::from_secs(5)) };
    s.step("web on every node", vec![Action::create(in_mode(restarting(service("web", 0, &[], &[]), policy), global_job()))]);
    s.seconds(1);
    let of = |node: usize| move |t: &skep::model::Task| t.node_id == Some(super::fixture::node(node));
    s.observe_slots("web", TaskState::Complete, of(1));
    s.observe_slots("web", TaskState::Failed, of(2));
    s.step("n1 completes, n2 fails", Vec::new());
    s.node(3, |n| n.status.state = NodeState::Ready);
    s.step("n3 is ready", Vec::new());
    s.seconds(5);
    s.step("the delay of n2 is over", Vec::new());
    s.observe_slots("web", TaskState::Complete, of(2));
    s.observe_slots("web", TaskState::Running, of(3));
    s.node(3, |n| n.spec.availability = Availability::Drain);
    s.step("n2 completes, n3 is drained", Vec::new());
    s.observe_slots("web", TaskState::Shutdown, of(3));
    s.step("n3 has stopped", Vec::new());
    s.node(3, |n| n.spec.availability = Availability::Active);
    s.step("n3 is active again", Vec::new());
    s.observe_slots("web", TaskState::Complete, of(3));
    s.step("it completes", Vec::new());
    s.update("a label: it runs again, once on each node", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
    s.compare("global_job.txt");
}

impl Script {
    fn history_limit(&mut self, limit: i64) {
        let mut cluster = self.store.cluster().unwrap().clone();
        cluster.spec.orchestration.task_history_retention_limit = Some(limit);
        super::fixture::apply(&mut self.store, self.now, vec![Action::update(cluster)]);
    }

    /// What is wanted fails, and its successor is started.
    fn fails(&mut self, times: usize) {
        for _ in 0..times {
            self.observe_slots("web", TaskState::Failed, Task::is_wanted);
            self.step("it fails", Vec::new());
            self.seconds(61);
            self.step("a minute later", Vec::new());
        }
    }

    fn kept(&self) -> usize {
        self.store.tasks().filter(|task| task.service_name == "web").count()
    }
}

#[test]
fn history_is_kept_up_to_the_limit_with_the_newest_task() {
    let mut s = Script::new(1);
    s.step("web", vec![Action::create(restarting(service("web", 1, &[], &[]), after(Duration::from_secs(1))))]);
    for (limit, failures, kept) in [(5, 6, 5), (1, 1, 1), (0, 1, 1), (-1, 3, 4), (2, 0, 2)] {
        s.history_limit(limit);
        s.step(&format!("a limit of {limit}"), vec![Action::update(s.store.cluster().unwrap().clone())]);
        s.fails(failures);
        assert_eq!(s.kept(), kept, "limit {limit}");
    }
    // A policy of so many attempts needs them to count, whatever the limit is.
    s.step("web is removed", vec![Action::Remove(skep::store::Kind::Service, "web".to_owned())]);
    s.observe_slots("web", TaskState::Shutdown, |t| !t.is_wanted());
    s.step("it has stopped", Vec::new());
    assert_eq!(s.kept(), 0);
    s.history_limit(1);
    let policy = RestartPolicy { max_attempts: Some(3), ..after(Duration::from_secs(1)) };
    s.step("web, with 3 attempts and a limit of 1", vec![Action::create(restarting(service("web", 1, &[], &[]), policy))]);
    s.fails(4);
    assert_eq!(s.kept(), 4, "the first one and three attempts");
    s.fails(1);
    assert_eq!(s.kept(), 4, "no further one is made");
    s.compare("history.txt");
}
