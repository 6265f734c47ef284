//! Golden plans of updates, rollbacks, global services, jobs and scaling by load.

use super::fixture::{self, global, in_mode, job, node, restarting, rolled_back, service, updated, updating};
use super::golden::Script;
use skep::model::service::UpdateConfig;
use skep::model::task::{RestartCondition, RestartPolicy};
use skep::model::{Availability, Demand, NodeState, ServiceDemand, ServiceSpec, Task, TaskState, TaskStatus};
use skep::store::Action;
use skep::store::SCALING_REASONS;
use std::time::Duration;

fn image(name: &'static str) -> impl FnOnce(&mut ServiceSpec) {
    move |spec| name.clone_into(&mut spec.task_template.container_spec.image)
}

impl Script {
    pub(super) fn update(&mut self, what: &str, change: impl FnOnce(&mut ServiceSpec)) {
        let action = updated(&self.store, "web", self.now, change);
        self.step(what, vec![action]);
    }

    /// Tasks that are to run have run up to a state, those that are to stop have stopped; then a second passes, after which a task
    /// that has no port counts as one that serves.
    pub(super) fn carry_out(&mut self, what: &str) {
        let applies = |t: &&Task| t.node_id.is_some() && !t.status.state.is_final();
        let next = |t: &Task| {
            let state = match t.desired_state {
                TaskState::Ready => TaskState::Ready,
                TaskState::Running | TaskState::Complete => TaskState::Running,
                _ => TaskState::Shutdown,
            };
            (t.status.state != state)
                .then(|| Task { status: TaskStatus { timestamp: self.now, state, ..t.status.clone() }, ..t.clone() })
        };
        let actions = self.store.tasks().filter(applies).filter_map(next).map(Action::update).collect();
        self.step(what, actions);
        self.seconds(1);
        self.settle();
    }

    /// What nodes report: clients that wait for a task, and connections of each task that runs.
    fn sees(&mut self, waiting: u64, connections: u32) {
        let running = self.store.tasks().filter(|task| task.status.state == TaskState::Running);
        let loads = running.map(|task| (task.id.clone(), connections)).collect();
        let of_web = ServiceDemand { waiting, request_tenths: 0 };
        self.planner.observe_loads(loads, Demand { services: [("web".into(), of_web)].into(), complete: true });
    }

    pub(super) fn seconds(&mut self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }
}

fn web(replicas: u64, config: UpdateConfig) -> Vec<Action> {
    let mut web = service("web", replicas, &[], &[]);
    web.spec.update_config = Some(config.clone());
    web.spec.rollback_config = Some(config);
    vec![Action::create(web)]
}

#[test]
fn stop_first_one_after_the_other() {
    let mut s = Script::new(2);
    s.step("web, 2 replicas", web(2, updating(1, Duration::from_secs(5))));
    s.carry_out("both run");
    s.seconds(1);
    s.update("image v2", image("v2"));
    s.carry_out("the first new one is prepared: the old one may stop");
    s.carry_out("it has stopped: the new one may start");
    s.carry_out("it runs: the second slot is taken");
    s.carry_out("prepared");
    s.carry_out("stopped");
    s.carry_out("runs");
    s.seconds(5);
    s.step("5 s later", Vec::new());
    s.update("a label", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
    s.compare("update_stop_first.txt");
}

#[test]
fn start_first_with_a_delay() {
    let mut s = Script::new(2);
    let delay = Some(Duration::from_secs(3).into());
    let config = UpdateConfig { order: "start-first".to_owned(), delay, ..updating(1, Duration::from_secs(1)) };
    s.step("web, 2 replicas", web(2, config));
    s.carry_out("both run");
    s.seconds(1);
    s.update("image v2", image("v2"));
    s.carry_out("the new one runs: the old one may stop");
    s.carry_out("it has stopped");
    s.seconds(3);
    s.step("the delay is over", Vec::new());
    s.carry_out("the new one runs");
    s.seconds(3);
    s.carry_out("the delay is over, and with it the time in which it is watched");
    s.compare("update_start_first.txt");
}

#[test]
fn failures_pause_an_update_and_a_rollback_goes_back() {
    let mut s = Script::new(2);
    s.step("web, 3 replicas", web(3, updating(1, Duration::from_secs(5))));
    s.carry_out("all run");
    s.seconds(1);
    s.update("image bad", image("bad"));
    s.observe_slots("web", TaskState::Rejected, |t| t.spec_version == 2);
    s.step("the first new one is rejected", Vec::new());
    s.seconds(60);
    s.step("a minute later", Vec::new());
    s.update("scaled to 4", |spec| spec.mode.replicated = Some(skep::model::service::Replicated { replicas: Some(4) }));
    let back = rolled_back(&s.store, "web", s.now);
    s.step("rolled back", vec![back]);
    s.compare("update_paused.txt");
}

#[test]
fn failures_roll_an_update_back_by_themselves() {
    let mut s = Script::new(2);
    let config = UpdateConfig { failure_action: "rollback".to_owned(), ..updating(1, Duration::from_secs(5)) };
    s.step("web, 2 replicas", web(2, config));
    s.carry_out("all run");
    s.seconds(1);
    s.update("image bad", image("bad"));
    s.carry_out("prepared");
    s.carry_out("the old one has stopped");
    s.carry_out("the new one runs");
    s.seconds(2);
    s.observe_slots("web", TaskState::Complete, |t| t.spec_version == 2);
    s.step("it ends after 2 s, with success, and so does the next one", Vec::new());
    s.carry_out("prepared");
    s.carry_out("runs");
    s.seconds(5);
    s.step("5 s later", Vec::new());
    s.compare("update_rolled_back.txt");
}

#[test]
fn what_cannot_be_placed_stops_nothing() {
    for order in ["stop-first", "start-first"] {
        let mut s = Script::new(2);
        s.step("web, 2 replicas", web(2, UpdateConfig { order: order.to_owned(), ..updating(0, Duration::from_secs(5)) }));
        s.carry_out("all run");
        s.seconds(1);
        for n in [1, 2] {
            s.node(n, |n| n.spec.availability = Availability::Pause);
        }
        s.update("image v2, no node takes tasks", image("v2"));
        s.seconds(4);
        s.step("4 s later", Vec::new());
        s.seconds(1);
        s.step("5 s later", Vec::new());
        s.compare(&format!("update_unplaceable_{order}.txt"));
    }
}

#[test]
fn global_service() {
    let mut s = Script::new(3);
    s.node(3, |n| n.status.state = NodeState::Down);
    s.step("web on every node", vec![Action::create(in_mode(service("web", 0, &[], &[]), global()))]);
    s.carry_out("runs");
    s.node(3, |n| n.status.state = NodeState::Ready);
    s.step("n3 is ready", Vec::new());
    s.carry_out("runs");
    s.node(1, |n| n.spec.availability = Availability::Pause);
    s.update("image v2, n1 is paused", image("v2"));
    for what in ["prepared", "stopped", "runs", "prepared", "stopped", "runs"] {
        s.carry_out(what);
    }
    s.seconds(5);
    s.step("5 s later", Vec::new());
    s.node(1, |n| n.spec.availability = Availability::Active);
    s.step("n1 is active", Vec::new());
    s.node(2, |n| n.spec.availability = Availability::Drain);
    s.step("n2 is drained", Vec::new());
    s.node(3, |n| n.status.state = NodeState::Down);
    s.step("n3 is down: its task waits there", Vec::new());
    s.compare("global.txt");
}

#[test]
fn replicated_job() {
    let mut s = Script::new(2);
    let policy = RestartPolicy { condition: Some(RestartCondition::OnFailure), ..fixture::after(Duration::from_secs(5)) };
    s.step(
        "web, 2 at a time, 3 in all",
        vec![Action::create(in_mode(restarting(service("web", 0, &[], &[]), policy), job(2, 3)))],
    );
    s.seconds(1);
    s.observe_slots("web", TaskState::Complete, |t| t.slot == 0);
    s.observe_slots("web", TaskState::Failed, |t| t.slot == 1);
    s.step("slot 0 completes, slot 1 fails", Vec::new());
    s.observe_slots("web", TaskState::Complete, |t| t.slot == 2);
    s.seconds(5);
    s.step("slot 2 completes, the delay of slot 1 is over", Vec::new());
    s.node(1, |n| n.spec.availability = Availability::Drain);
    s.node(2, |n| n.spec.availability = Availability::Drain);
    s.step("the nodes are drained", Vec::new());
    s.node(2, |n| n.spec.availability = Availability::Active);
    s.observe_slots("web", TaskState::Shutdown, |t| t.desired_state == TaskState::Shutdown);
    s.step("it has stopped, and n2 is active again", Vec::new());
    s.observe_slots("web", TaskState::Complete, |t| t.slot == 1);
    s.step("it completes", Vec::new());
    s.update("a label: it runs again", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
    let _ = node(1);
    s.compare("job.txt");
}

#[test]
fn from_0_with_the_first_client_and_back_without() {
    let mut s = Script::new(2);
    s.level(SCALING_REASONS);
    let mut web = service("web", 0, &[(8080, 80)], &[]);
    let labels = [("skep.autoscale", "0..2"), ("skep.autoscale.connections", "10"), ("skep.autoscale.idle", "2m")];
    web.spec.labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    s.step("web, without a task", vec![Action::create(web)]);
    s.sees(1, 0);
    s.step("a client waits", Vec::new());
    s.carry_out("its task is prepared and runs");
    s.sees(0, 11);
    s.step("more clients", Vec::new());
    s.carry_out("both run");
    s.sees(0, 4);
    s.seconds(1);
    s.step("few are left", Vec::new());
    s.seconds(61);
    s.step("one is enough", Vec::new());
    s.carry_out("the other has stopped");
    s.sees(0, 0);
    s.seconds(119);
    s.step("no client, for less than two minutes", Vec::new());
    s.seconds(1);
    s.step("for two minutes", Vec::new());
    s.sees(2, 0);
    s.step("two clients wait while the task stops", Vec::new());
    s.compare("autoscale.txt");
}
