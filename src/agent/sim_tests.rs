//! The agent's core against an engine that answers late, out of order or not at all, with a virtual clock and a seed. Once
//! the engine works again the node reaches its desired state, and no reported state ever decreases.

use super::core::{Core, CoreConfig, Effect, Event, Job};
use super::testing::{ME, network, on_network, task, view};
use crate::model::container_spec::{FileTarget, SecretReference};
use crate::model::task::RestartPolicy;
use crate::model::{NodeId, Payload, PayloadId, Task, TaskId, TaskState, TaskStatus, Timestamp};
use crate::runtime::{Container, ContainerState, EngineError, LocalNetwork};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

struct Simulation {
    rng: StdRng,
    now: Timestamp,
    core: Core,
    /// The engine's containers, by its id.
    containers: BTreeMap<String, Container>,
    networks: BTreeMap<String, LocalNetwork>,
    made: u64,
    up: bool,
    /// Calls that the engine has not executed yet; answers that have not arrived yet.
    calls: Vec<Effect>,
    answers: Vec<Event>,
    desired: BTreeMap<TaskId, Task>,
    reported: BTreeMap<TaskId, TaskStatus>,
    /// Tasks whose files may be there, and those whose files are.
    kept: BTreeSet<TaskId>,
    written: BTreeSet<TaskId>,
    /// Views have the secrets that tasks name.
    has_secrets: bool,
    /// The core has a session with a manager.
    session: bool,
    revision: u64,
    /// Containers started again.
    restarted: usize,
    log: Vec<String>,
}

fn secret_reference() -> SecretReference {
    let file = Some(FileTarget { name: "tok".into(), ..FileTarget::default() });
    SecretReference { id: "s".into(), name: "token".into(), file }
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let config = CoreConfig {
            me: NodeId::from(ME),
            engine_socket: "/run/docker.sock".into(),
            skep_socket: None,
            files: "/run/skep/files".into(),
            unassigned_grace: Duration::from_secs(10),
        };
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: Timestamp(0),
            core: Core::new(config),
            containers: BTreeMap::new(),
            networks: BTreeMap::new(),
            made: 0,
            up: false,
            calls: Vec::new(),
            answers: Vec::new(),
            desired: BTreeMap::new(),
            reported: BTreeMap::new(),
            kept: BTreeSet::new(),
            written: BTreeSet::new(),
            has_secrets: false,
            session: true,
            revision: 0,
            restarted: 0,
            log: Vec::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        let text: String = format!("{event:?}").chars().take(160).collect();
        self.log.push(format!("{:>6} ms  {text}", self.now.0 / 1_000_000));
        for effect in self.core.handle(self.now, event) {
            match effect {
                Effect::Report(id, status) => {
                    let before = self.reported.get(&id).map_or(TaskState::New, |s| s.state);
                    assert!(
                        status.state >= before,
                        "{id} changed from {before:?} to {:?}\n{}",
                        status.state,
                        self.log.join("\n")
                    );
                    self.log.push(format!("           {id} is {:?} {}", status.state, status.err));
                    self.reported.insert(id, status);
                }
                Effect::Cancel(id, number) => {
                    self.calls.retain(|c| !matches!(c, Effect::Run(i, n, _) if *i == id && *n == number));
                }
                Effect::LogLocalRestart(id) => {
                    assert!(!self.session, "{id} is started again beside the managers\n{}", self.log.join("\n"));
                }
                Effect::Run(..) | Effect::List(_) | Effect::Inspect(..) | Effect::ListNetworks(_) | Effect::RemoveNetwork(_) => {
                    self.log.push(format!("           {}", format!("{effect:?}").chars().take(60).collect::<String>()));
                    self.calls.push(effect);
                }
                Effect::KeepFiles(tasks) => {
                    self.written.retain(|task| tasks.contains(task));
                    self.kept = tasks;
                }
                _ => {}
            }
        }
    }

    fn lost() -> EngineError {
        EngineError::Unavailable { engine: "sim".into(), reason: "down".into() }
    }

    /// Executes a call and queues its answer. Unless `reliable`, the call or its answer may be lost.
    fn execute(&mut self, call: Effect, reliable: bool) {
        let executed = self.up && (reliable || self.rng.random_ratio(9, 10));
        let arrives = executed && (reliable || self.rng.random_ratio(9, 10));
        let answer = match call {
            Effect::Run(task, number, job) => {
                let result = if executed { self.job(&task, job) } else { Err(Self::lost()) };
                Event::Done(task, number, if arrives { result } else { Err(Self::lost()) })
            }
            Effect::List(number) => {
                let all = (self.containers.values().cloned().collect(), self.networks.values().cloned().collect());
                Event::Listed(number, if arrives { Ok(all) } else { Err(Self::lost()) })
            }
            Effect::Inspect(number, id) => {
                let found = self.containers.get(&id).cloned();
                Event::Inspected(number, id, if arrives { Ok(found) } else { Err(Self::lost()) })
            }
            Effect::ListNetworks(number) => {
                let all = self.networks.values().cloned().collect();
                Event::NetworksListed(number, if arrives { Ok(all) } else { Err(Self::lost()) })
            }
            Effect::RemoveNetwork(id) => {
                if executed {
                    self.networks.remove(&id);
                }
                Event::NetworkRemoved(id, if arrives { Ok(()) } else { Err(Self::lost()) })
            }
            _ => return,
        };
        self.answers.push(answer);
    }

    fn job(&mut self, task: &TaskId, job: Job) -> Result<Option<String>, EngineError> {
        match job {
            Job::Fetch(..) => {}
            Job::Files(plan) => {
                assert_eq!(plan.payloads.len(), 1, "{task} gets a file without its content\n{}", self.log.join("\n"));
                if !self.kept.contains(task) {
                    return Err(EngineError::Busy("not kept".into()));
                }
                self.written.insert(task.clone());
            }
            Job::Connect(plans) => {
                for plan in plans {
                    let id = format!("e-{}", plan.id);
                    self.networks.insert(id.clone(), LocalNetwork { id, name: plan.name, network_id: plan.id });
                }
            }
            Job::Create(plan) => {
                if let Some(c) = self.containers.values().find(|c| c.task_id.as_ref() == Some(task)) {
                    return Ok(Some(c.id.clone()));
                }
                self.needs_networks(&plan)?;
                let has_files = plan.files.is_empty() || self.written.contains(task);
                assert!(has_files, "{task} is created without its files\n{}", self.log.join("\n"));
                self.made += 1;
                let id = format!("c{}", self.made);
                let container = Container {
                    id: id.clone(),
                    task_id: Some(task.clone()),
                    state: ContainerState::Created,
                    health: None,
                    pid: 0,
                    exit_code: 0,
                    oom_killed: false,
                    error: String::new(),
                    ports: Vec::new(),
                };
                self.containers.insert(id.clone(), container);
                return Ok(Some(id));
            }
            Job::Start(id, plan) => {
                self.needs_networks(&plan)?;
                let c = self.containers.get_mut(&id).ok_or_else(|| EngineError::NotFound("No such container".into()))?;
                let is_final = self.reported.get(task).is_some_and(|status| status.state.is_final());
                let again = c.state == ContainerState::Exited;
                assert!(!again || !is_final, "{task} was started after its end was reported\n{}", self.log.join("\n"));
                self.restarted += usize::from(again);
                (c.state, c.pid) = (ContainerState::Running, 7);
                self.answers.push(Event::Changed(id));
            }
            Job::Stop(id, _) => self.end(&id, 143),
            Job::Remove(id) => {
                self.containers.remove(&id);
                self.answers.push(Event::Changed(id));
            }
        }
        Ok(None)
    }

    fn needs_networks(&self, plan: &crate::runtime::ContainerPlan) -> Result<(), EngineError> {
        match plan.networks.iter().find(|(n, _)| !self.networks.contains_key(&format!("e-{}", n.id))) {
            Some((n, _)) => Err(EngineError::NotFound(format!("network {} not found", n.name))),
            None => Ok(()),
        }
    }

    fn end(&mut self, id: &str, exit_code: i64) {
        if let Some(c) = self.containers.get_mut(id).filter(|c| c.state == ContainerState::Running) {
            (c.state, c.exit_code, c.pid) = (ContainerState::Exited, exit_code, 0);
            self.answers.push(Event::Changed(id.to_owned()));
        }
    }

    fn change_desired(&mut self) {
        match self.rng.random_range(0..4) {
            0 | 1 => {
                let number = self.rng.random_range(0..100_u32);
                let mut t = task(&format!("t{}-{number}", self.revision));
                if number % 2 == 0 {
                    t = on_network(t, &format!("n{}", number % 3), &format!("10.0.{}.{}/24", number % 3, number + 2));
                }
                let delay = Some(Duration::from_millis(500).into());
                Arc::make_mut(&mut t.spec).restart_policy = Some(RestartPolicy { delay, ..RestartPolicy::default() });
                if number % 3 == 0 {
                    Arc::make_mut(&mut t.spec).container_spec.secrets = vec![secret_reference()];
                }
                self.desired.insert(t.id.clone(), t);
            }
            n => {
                let ids: Vec<TaskId> = self.desired.keys().cloned().collect();
                if let Some(id) = (!ids.is_empty()).then(|| ids[self.rng.random_range(0..ids.len())].clone()) {
                    if n == 2 {
                        self.desired.remove(&id);
                    } else if let Some(t) = self.desired.get_mut(&id) {
                        t.desired_state = if self.rng.random() { TaskState::Shutdown } else { TaskState::Remove };
                    }
                }
            }
        }
        self.publish_view();
    }

    /// Sends a view with the statuses reported so far.
    fn publish_view(&mut self) {
        self.revision += 1;
        for (id, t) in &mut self.desired {
            if let Some(status) = self.reported.get(id) {
                t.status = status.clone();
            }
        }
        let tasks: Vec<Task> = self.desired.values().cloned().collect();
        let networks: Vec<_> = (0..3).map(|n| network(&format!("n{n}"), n)).collect();
        let mut view = view(self.revision, &tasks, &networks);
        if self.has_secrets || self.rng.random() {
            let payload = Payload { data: "eA==".into(), templating: None };
            let view = Arc::make_mut(&mut view);
            Arc::make_mut(&mut view.tasks).payloads.insert(PayloadId::Secret("s".into()), Arc::new(payload));
        }
        self.handle(Event::View(view));
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.rng.random_range(0..200)));
        match self.rng.random_range(0..20) {
            0..=6 if !self.calls.is_empty() => {
                let at = self.rng.random_range(0..self.calls.len());
                let call = self.calls.swap_remove(at);
                self.execute(call, false);
            }
            7..=13 if !self.answers.is_empty() => {
                let at = self.rng.random_range(0..self.answers.len());
                let answer = self.answers.swap_remove(at);
                self.handle(answer);
            }
            14 | 15 => self.change_desired(),
            16 => {
                let ids: Vec<String> = self.containers.keys().cloned().collect();
                if let Some(id) = (!ids.is_empty()).then(|| ids[self.rng.random_range(0..ids.len())].clone()) {
                    match self.rng.random_range(0..3) {
                        0 => self.end(&id, 0),
                        1 => self.end(&id, 1),
                        _ => {
                            self.containers.remove(&id);
                            self.answers.push(Event::Changed(id));
                        }
                    }
                }
            }
            17 if self.up && self.rng.random_ratio(1, 5) => {
                self.up = false;
                self.answers.retain(|a| !matches!(a, Event::Changed(_)));
                self.handle(Event::EngineLost("gone".into()));
            }
            // Gone for longer than a node waits for the managers.
            17 if self.rng.random_ratio(1, if self.session { 2 } else { 8 }) => {
                self.session = !self.session;
                self.handle(Event::Session(self.session));
            }
            18 if !self.up => {
                self.up = true;
                self.handle(Event::EngineBack);
            }
            _ => self.handle(Event::Tick),
        }
    }

    /// The engine works from now on; advances the clock until nothing more happens.
    fn settle(&mut self) {
        self.up = true;
        self.has_secrets = true;
        self.session = true;
        self.handle(Event::Session(true));
        self.publish_view();
        self.handle(Event::EngineBack);
        for round in 0..400 {
            self.now = self.now.plus(Duration::from_millis(500));
            // The shell lists everything every 15 s, which finds what a cancelled call has left.
            if round % 30 == 0 {
                self.handle(Event::EngineBack);
            }
            while !self.calls.is_empty() || !self.answers.is_empty() {
                for call in std::mem::take(&mut self.calls) {
                    self.execute(call, true);
                }
                for answer in std::mem::take(&mut self.answers) {
                    self.handle(answer);
                }
            }
            self.handle(Event::Tick);
        }
        self.publish_view();
    }

    fn check(&self, seed: u64) {
        let log = || format!("seed {seed}\n{}", self.log[self.log.len().saturating_sub(4000)..].join("\n"));
        let mut owners = std::collections::BTreeSet::new();
        for c in self.containers.values() {
            let id = c.task_id.clone().unwrap_or_default();
            assert!(owners.insert(id.clone()), "two containers for {id}\n{}", log());
            let t = self.desired.get(&id).unwrap_or_else(|| panic!("{id} has a container and no task\n{}", log()));
            let status = self.reported[&id].state;
            let runs = c.state == ContainerState::Running;
            assert_eq!(runs, status == TaskState::Running, "{id} is {status:?} and its container {:?}\n{}", c.state, log());
            assert!(t.desired_state == TaskState::Running || !runs, "{id} is not to run\n{}", log());
            assert!(t.desired_state != TaskState::Remove, "{id} is to be removed\n{}", log());
        }
        for (id, t) in &self.desired {
            let status = &self.reported.get(id).unwrap_or_else(|| panic!("{id} was never reported\n{}", log()));
            assert!(status.state == TaskState::Running || status.state.is_final(), "{id} is {status:?}\n{}", log());
            assert!(t.desired_state == TaskState::Running || status.state.is_final(), "{id} is {status:?}\n{}", log());
        }
        let may_start = |id: &TaskId| self.reported.get(id).is_some_and(|status| !status.state.is_final());
        assert!(self.written.iter().all(may_start), "files are left: {:?}\n{}", self.written, log());
        for n in self.networks.values() {
            let needed = self.desired.values().any(|t| {
                self.reported[&t.id].state == TaskState::Running && t.attachments.iter().any(|a| a.network_id == n.network_id)
            });
            assert!(needed, "network {} is left\n{}", n.name, log());
        }
    }
}

#[test]
fn the_node_converges_to_its_desired_state_after_any_sequence_of_faults() {
    let mut restarted = 0;
    for seed in 0..100 {
        let mut simulation = Simulation::new(seed);
        for _ in 0..300 {
            simulation.step();
        }
        simulation.settle();
        simulation.check(seed);
        restarted += simulation.restarted;
    }
    assert!(restarted > 5, "{restarted} containers were started again without a manager");
}
