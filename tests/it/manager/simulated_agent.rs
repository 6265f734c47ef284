//! A simulated node: its containers are entries of a map, and its reports are delayed.

use rand::Rng;
use rand::rngs::StdRng;
use skep::manager::SessionId;
use skep::model::Listens;
use skep::model::Protocol;
use skep::model::node::NodeDescription;
use skep::model::view::{ClusterPart, Networks, Tasks};
use skep::model::{ListeningPort, NodeId, Revision, Task, TaskId, TaskState, TaskStatus, Timestamp, task::ContainerStatus};
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::FEATURE_LEVELS;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Time that containers of services named `slow…` run before they listen, and that images named `pulls…` take to be prepared.
pub const SLOW: Duration = Duration::from_secs(25);
pub const PULLED: Duration = Duration::from_secs(100);
/// Time that containers with the image `stops-slowly` take to stop at most.
pub const STOPPED: Duration = Duration::from_secs(150);

#[derive(Clone, Debug)]
pub struct SimulatedContainer {
    pub task: Task,
    pub status: TaskStatus,
    pub listens: Vec<ListeningPort>,
    /// Steps until it exits on its own.
    pub life: Option<u32>,
    /// Steps until it is unhealthy.
    pub health: Option<u32>,
    /// Steps until it has stopped after it was stop_began to.
    pub stopping: Option<u32>,
}

impl SimulatedContainer {
    pub fn runs(&self) -> bool {
        (TaskState::Starting..=TaskState::Running).contains(&self.status.state)
    }
}

pub struct SimulatedAgent {
    pub id: NodeId,
    pub description: NodeDescription,
    pub session: Option<SessionId>,
    /// Messages are delivered.
    pub connected: bool,
    pub removed: bool,
    /// It keeps its session, and neither applies nor reports anything: its loops hang.
    pub hangs: bool,
    pub revision: Revision,
    pub tasks: Arc<Tasks>,
    pub networks: Arc<Networks>,
    pub cluster: Option<Arc<ClusterPart>>,
    pub containers: BTreeMap<TaskId, SimulatedContainer>,
    unsent_statuses: BTreeMap<TaskId, TaskStatus>,
    unsent_ports: BTreeMap<TaskId, Vec<ListeningPort>>,
}

impl SimulatedAgent {
    pub fn new(id: NodeId) -> Self {
        Self {
            description: NodeDescription { feature_levels: Some(FEATURE_LEVELS), ..super::fixture::description(id.as_str()) },
            id,
            session: None,
            connected: true,
            removed: false,
            hangs: false,
            revision: Revision::default(),
            tasks: Arc::default(),
            networks: Arc::default(),
            cluster: None,
            containers: BTreeMap::new(),
            unsent_statuses: BTreeMap::new(),
            unsent_ports: BTreeMap::new(),
        }
    }

    pub fn hello(&mut self) -> ToManager {
        // A new session starts with reports of everything.
        self.unsent_statuses = self.containers.iter().map(|(id, c)| (id.clone(), c.status.clone())).collect();
        self.unsent_ports = self.containers.iter().map(|(id, c)| (id.clone(), c.listens.clone())).collect();
        ToManager::Hello {
            format: FORMAT,
            formats: None,
            description: self.description.clone(),
            endpoints: Vec::new(),
            have: self.revision,
        }
    }

    /// Processes a message and returns the answer.
    pub fn receive(&mut self, message: ToNode) -> Option<ToManager> {
        match message {
            ToNode::View { .. } if self.hangs => return None,
            ToNode::View { revision, tasks, networks, cluster } => {
                assert!(revision >= self.revision, "{} was sent an older view", self.id);
                self.revision = revision;
                self.tasks = tasks.unwrap_or_else(|| self.tasks.clone());
                self.networks = networks.unwrap_or_else(|| self.networks.clone());
                self.cluster = cluster.or_else(|| self.cluster.take());
                for task in self.tasks.by_id.values() {
                    for attachment in &task.attachments {
                        assert!(self.networks.by_id.contains_key(&attachment.network_id), "a task was sent without its network");
                    }
                }
                return Some(ToManager::Heartbeat { applied: revision });
            }
            ToNode::Removed(_) => self.removed = true,
            ToNode::Welcome { .. } | ToNode::Alive | ToNode::NotLeader { .. } => {}
            ToNode::Piece(_) => panic!("pieces are made by the transport"),
            ToNode::Refused(why) => panic!("{} was refused: {why}", self.id),
        }
        None
    }

    /// One step of every container; returns the tasks whose stop began in this step.
    pub fn step(&mut self, now: Timestamp, rng: &mut StdRng) -> Vec<TaskId> {
        let mut stop_began = Vec::new();
        if self.hangs {
            return stop_began;
        }
        let (tasks, unsent) = (self.tasks.clone(), &mut self.unsent_statuses);
        self.containers.retain(|id, c| tasks.by_id.contains_key(id) || c.runs());
        for task in tasks.by_id.values() {
            self.containers.entry(task.id.clone()).or_insert_with(|| SimulatedContainer {
                task: Task::clone(task),
                status: TaskStatus { container: None, ..task.status.clone() },
                listens: Vec::new(),
                life: life(task, rng),
                health: behaviour(task).starts_with("sick").then(|| rng.random_range(5..60)),
                stopping: None,
            });
        }
        for (id, container) in &mut self.containers {
            let desired = tasks.by_id.get(id).map_or(TaskState::Remove, |t| t.desired_state);
            let not_before = tasks.by_id.get(id).and_then(|t| t.not_before);
            let before = container.status.state;
            let is_pulled = now.since(container.status.timestamp) >= PULLED;
            let due = not_before.is_none_or(|t| t <= now);
            let next = container.next(desired, (due, is_pulled), rng, &mut stop_began);
            if next > before {
                container.status = TaskStatus {
                    timestamp: now,
                    state: next,
                    message: next.as_str().to_owned(),
                    err: String::new(),
                    container: Some(ContainerStatus { container_id: format!("c-{id}"), pid: 1, exit_code: 0 }),
                    ..TaskStatus::default()
                };
                unsent.insert(id.clone(), container.status.clone());
            }
            if container.falls_ill() {
                container.status.unhealthy = true;
                unsent.insert(id.clone(), container.status.clone());
            }
            if let Some(now) = container.listening(now, rng) {
                container.listens.clone_from(&now);
                self.unsent_ports.insert(id.clone(), now);
            }
        }
        stop_began
    }

    pub fn reports(&mut self) -> Vec<ToManager> {
        let mut all = Vec::new();
        if !self.unsent_statuses.is_empty() {
            all.push(ToManager::Status(std::mem::take(&mut self.unsent_statuses).into_iter().collect()));
        }
        if !self.unsent_ports.is_empty() {
            all.push(ToManager::Listens(std::mem::take(&mut self.unsent_ports).into_iter().collect()));
        }
        all
    }
}

impl SimulatedContainer {
    /// It runs, and from now on it is unhealthy: its stop is ordered by managers, after no node sends to it any more.
    fn falls_ill(&mut self) -> bool {
        let is_well = self.status.state == TaskState::Running && !self.status.unhealthy;
        match self.health.as_mut().filter(|_| is_well) {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    /// Starts to listen some time after the container runs; those of flaky services stop again, those of `deaf…` never do, of
    /// `deaf-on-NODE` not there, and of `single…` in the first slot alone.
    fn listening(&self, now: Timestamp, rng: &mut StdRng) -> Option<Vec<ListeningPort>> {
        let is_deaf = match behaviour(&self.task).strip_prefix("deaf-on-") {
            Some(node) => self.task.node_id.as_ref().is_some_and(|id| id.as_str() == node),
            None => {
                behaviour(&self.task).starts_with("deaf") || (behaviour(&self.task).starts_with("single") && self.task.slot > 1)
            }
        };
        if is_deaf || (behaviour(&self.task).starts_with("slow") && now.since(self.status.timestamp) < SLOW) {
            return None;
        }
        let stops = if behaviour(&self.task).starts_with("flaky") { 0.02 } else { 0.0 };
        let flips = self.status.state == TaskState::Running && rng.random_bool(if self.listens.is_empty() { 0.5 } else { stops });
        let port = ListeningPort { protocol: Protocol::Tcp, port: 80, listens: Listens { v4: true, v6: rng.random_bool(0.5) } };
        flips.then(|| if self.listens.is_empty() { vec![port] } else { Vec::new() })
    }

    /// Tasks of services named `reject…` cannot be prepared; those of `only-NODE` only on that node, of `not-on-NODE` not there.
    fn is_rejected(&self) -> bool {
        let (name, node) = (behaviour(&self.task), self.task.node_id.as_ref().map_or("", |id| id.as_str()));
        let is_on_other = name.strip_prefix("only-").is_some_and(|only| only != node);
        name.starts_with("reject") || is_on_other || name.strip_prefix("not-on-") == Some(node)
    }

    fn next(
        &mut self,
        desired: TaskState,
        (due, is_pulled): (bool, bool),
        rng: &mut StdRng,
        stop_began: &mut Vec<TaskId>,
    ) -> TaskState {
        let state = self.status.state;
        if state.is_final() {
            return state;
        }
        let node = self.task.node_id.as_ref().map(NodeId::as_str);
        if desired > TaskState::Running {
            let left = self.stopping.get_or_insert_with(|| {
                stop_began.push(self.task.id.clone());
                // A step takes 45 ms on average.
                if behaviour(&self.task) == "stops-slowly" { rng.random_range(2200..2600) } else { rng.random_range(0..4) }
            });
            if *left == 0 || !(TaskState::Starting..=TaskState::Running).contains(&state) {
                return if self.status.unhealthy { TaskState::Failed } else { TaskState::Shutdown };
            }
            *left -= 1;
            return state;
        }
        match state {
            TaskState::Assigned => TaskState::Accepted,
            TaskState::Accepted => TaskState::Preparing,
            TaskState::Preparing if self.is_rejected() => TaskState::Rejected,
            // Its image is pulled for seconds.
            TaskState::Preparing if behaviour(&self.task).starts_with("late") && !rng.random_bool(0.01) => state,
            TaskState::Preparing if behaviour(&self.task).starts_with("pulls") && !is_pulled => state,
            // Its pull never ends.
            TaskState::Preparing if behaviour(&self.task).strip_prefix("stuck-on-") == node => state,
            TaskState::Preparing => TaskState::Ready,
            TaskState::Ready if desired == TaskState::Running && due => TaskState::Starting,
            TaskState::Starting => TaskState::Running,
            TaskState::Running => match &mut self.life {
                Some(0) if behaviour(&self.task).starts_with("once") => TaskState::Complete,
                Some(0) => TaskState::Failed,
                Some(n) => {
                    *n -= 1;
                    state
                }
                None => state,
            },
            other => other,
        }
    }
}

/// How the container behaves: by its image, or by the name of its service.
fn behaviour(task: &Task) -> &str {
    match task.spec.container_spec.image.as_str() {
        "whoami" => &task.service_name,
        image => image,
    }
}

/// Those of services named `sick…` are unhealthy after some time. Containers of services named `crash…`, `deaf-crash…`
/// and `once…` exit on their own, some of `flaky…` too, those of `minutes…` after two
/// minutes or more, of `seconds…` after a few seconds.
fn life(task: &Task, rng: &mut StdRng) -> Option<u32> {
    let short = rng.random_range(0..5);
    match behaviour(task) {
        name if name.trim_start_matches("deaf-").starts_with("crash") || name.starts_with("once") => Some(short),
        // A step takes 10 ms to 80 ms.
        name if name.starts_with("minutes") => Some(12_000),
        name if name.starts_with("seconds") => Some(60),
        name if name.starts_with("flaky") && rng.random_bool(0.5) => Some(short * 10),
        _ => None,
    }
}
