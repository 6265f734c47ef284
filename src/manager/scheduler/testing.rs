//! A store with nodes, services and tasks for tests of the scheduler.

use super::Scheduler;
use crate::model::service::{Replicated, ServiceMode};
use crate::model::task::{Placement, PlacementPreference, Reservations, Resources, SpreadOver};
use crate::model::{
    Meta, Node, NodeId, PortConfig, PublishMode, Service, ServiceSpec, Task, TaskId, TaskSpec, TaskState, Timestamp, fixture,
};
use crate::store::{Action, Kind, Store, Transaction};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The store, the scheduler that follows it, and the time.
pub(super) struct TestCluster {
    pub store: Store,
    pub scheduler: Scheduler,
    pub now: Timestamp,
    made: usize,
}

impl TestCluster {
    /// With nodes `n1`, `n2`, …: 4 CPUs and 1000 bytes of memory each.
    pub(super) fn new(nodes: usize) -> Self {
        let mut cluster =
            Self { store: Store::default(), scheduler: Scheduler::default(), now: Timestamp(1_767_225_600_000_000_000), made: 0 };
        for number in 1..=nodes {
            let mut node = fixture::node(&format!("n{number}"));
            (node.description.nano_cpus, node.description.memory_bytes) = (4_000_000_000, 1000);
            cluster.apply(vec![Action::create(node)]);
        }
        cluster
    }

    pub(super) fn apply(&mut self, actions: Vec<Action>) {
        let transaction = Transaction::new(self.now, actions);
        self.store.apply(self.store.index() + 1, &transaction).expect("applies");
    }

    pub(super) fn node(&mut self, id: &str, change: impl FnOnce(&mut Node)) {
        let mut node = self.store.node(&id.into()).expect("node").clone();
        change(&mut node);
        self.apply(vec![Action::update(node)]);
    }

    /// Creates or replaces a service of this spec.
    pub(super) fn service(&mut self, name: &str, labels: &[(&str, &str)], template: TaskSpec) {
        let spec = ServiceSpec {
            name: name.to_owned(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            task_template: template,
            mode: ServiceMode { replicated: Some(Replicated::default()), ..ServiceMode::default() },
            ..ServiceSpec::default()
        };
        let stored = self.store.service(&name.into()).map(|service| service.meta);
        let service = Service { meta: stored.unwrap_or_default(), ..fixture::service(name, spec) };
        self.apply(vec![if stored.is_some() { Action::update(service) } else { Action::create(service) }]);
    }

    /// Pending tasks of a service, as the allocator leaves them; returns their ids.
    pub(super) fn pending(&mut self, service: &str, count: usize) -> Vec<TaskId> {
        self.pending_with(service, count, |_| {})
    }

    pub(super) fn pending_with(&mut self, service: &str, count: usize, change: impl Fn(&mut Task)) -> Vec<TaskId> {
        let template = self.store.service(&service.into()).map(|s| s.spec.task_template.clone()).unwrap_or_default();
        let mut ids = Vec::new();
        for _ in 0..count {
            self.made += 1;
            let mut task = fixture::task_with_resolvers(&format!("t{:05}", self.made), service, "", &[]);
            task.meta = Meta::default();
            task.spec = Arc::new(template.clone());
            task.slot = self.made as u64;
            task.node_id = None;
            task.status.state = TaskState::Pending;
            "pending task scheduling".clone_into(&mut task.status.message);
            change(&mut task);
            ids.push(task.id.clone());
            self.apply(vec![Action::create(task)]);
        }
        ids
    }

    pub(super) fn task(&mut self, id: &TaskId, change: impl FnOnce(&mut Task)) {
        let mut task = self.store.task(id).expect("task").clone();
        change(&mut task);
        self.apply(vec![Action::update(task)]);
    }

    pub(super) fn observe(&mut self, id: &TaskId, state: TaskState) {
        let now = self.now;
        self.task(id, |task| (task.status.state, task.status.timestamp) = (state, now));
    }

    pub(super) fn remove(&mut self, id: &TaskId) {
        self.apply(vec![Action::Remove(Kind::Task, id.to_string())]);
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Plans until there is nothing left to do; returns the number of tasks that were written.
    pub(super) fn schedule(&mut self) -> usize {
        let mut written = 0;
        loop {
            let plan = self.scheduler.plan(&self.store, self.now);
            if plan.is_empty() {
                return written;
            }
            written += plan.len();
            self.apply(plan);
        }
    }

    pub(super) fn enforce(&mut self) -> usize {
        let plan = self.scheduler.enforce(&self.store, self.now);
        let count = plan.len();
        self.apply(plan);
        count
    }

    /// The node of a task, or why it has none.
    pub(super) fn fate(&self, id: &TaskId) -> String {
        let task = self.store.task(id).expect("task");
        match &task.node_id {
            Some(node) if task.status.state >= TaskState::Assigned => node.to_string(),
            _ => task.status.err.clone(),
        }
    }

    /// Wanted tasks of a service per node, nodes without any left out.
    pub(super) fn per_node(&self, service: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for task in self.store.tasks_of_service(&service.into()).filter(|t| t.is_wanted()) {
            if let Some(node) = task.node_id.as_ref().filter(|_| !task.status.state.is_final()) {
                *counts.entry(node.to_string()).or_default() += 1;
            }
        }
        counts
    }
}

pub(super) fn counts(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
    counts.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
}

pub(super) fn placed(placement: Placement) -> TaskSpec {
    TaskSpec { placement: Some(placement), ..TaskSpec::default() }
}

pub(super) fn constrained(constraints: &[&str]) -> TaskSpec {
    placed(Placement { constraints: constraints.iter().map(|c| (*c).to_owned()).collect(), ..Placement::default() })
}

pub(super) fn spread_over(labels: &[&str]) -> TaskSpec {
    let over = |label: &&str| PlacementPreference { spread: Some(SpreadOver { spread_descriptor: (*label).to_owned() }) };
    placed(Placement { preferences: labels.iter().map(over).collect(), ..Placement::default() })
}

pub(super) fn reserving(reservations: Reservations) -> TaskSpec {
    TaskSpec { resources: Some(Resources { reservations: Some(reservations), ..Resources::default() }), ..TaskSpec::default() }
}

pub(super) fn memory(bytes: i64) -> TaskSpec {
    reserving(Reservations { memory_bytes: bytes, ..Reservations::default() })
}

pub(super) fn host_port(number: u16) -> PortConfig {
    PortConfig { target_port: 80, published_port: number, publish_mode: PublishMode::Host, ..PortConfig::default() }
}

pub(super) fn node_of(task: &Task) -> Option<&NodeId> {
    task.node_id.as_ref().filter(|_| task.status.state >= TaskState::Assigned)
}
