//! Has the number of replicas of services with the label `skep.autoscale` follow their connections and requests. Nodes report how many
//! connections each task has (`ingress::load`), and what they see of clients (`ingress::demand`); the leader keeps that in memory, and
//! decides with [`LoadWindow`]. A decision is a write like a scale by a user, with its reason.

mod window;

pub use window::{LoadWindow, ScalingDecision, ServiceLoad, WINDOW};

use crate::model::autoscale::{AutoscaleLabels, Scaling};
use crate::model::{Demand, Service, ServiceId, TaskId, TaskState, Timestamp};
use crate::store::{Action, FieldUpdate, SCALING_REASONS, Store};
use std::collections::BTreeMap;

/// First feature level at which managers keep what was scaled, and why.
const LEVEL: u32 = 2;

/// Established connections by task, as nodes reported them last.
pub type TaskLoads = BTreeMap<TaskId, u32>;

/// The state of the leader's autoscaling: what was reported, and the needs of the last time. A new leader begins without, and scales
/// down only after a whole window.
#[derive(Default)]
pub struct Autoscaler {
    loads: TaskLoads,
    demand: Demand,
    windows: BTreeMap<ServiceId, LoadWindow>,
}

impl Autoscaler {
    /// Takes the newest reports.
    pub fn observe(&mut self, loads: TaskLoads, demand: Demand) {
        self.loads = loads;
        self.demand = demand;
    }

    /// True if time alone may lead to a decision.
    pub fn is_waiting(&self) -> bool {
        !self.windows.is_empty()
    }

    /// Changes of replicas to write now.
    pub fn plan(&mut self, store: &Store, now: Timestamp) -> Vec<Action> {
        self.windows.retain(|id, _| store.service(id).is_some_and(|service| labels_of(service).is_some()));
        if store.feature_level() < LEVEL {
            return Vec::new();
        }
        let mut actions = Vec::new();
        for service in store.autoscaled_services() {
            let Some(labels) = labels_of(service) else { continue };
            let load = load_of(service, store, &self.loads, &self.demand);
            let window = self.windows.entry(service.id.clone()).or_insert_with(|| LoadWindow::new(now));
            let Some(ScalingDecision { to, reason }) = window.decide(&load, labels, now) else { continue };
            let connections = load.connections.saturating_add(load.waiting);
            let per_replica = labels.connections.unwrap_or(0);
            let reason = reason.filter(|_| store.feature_level() >= SCALING_REASONS);
            let scaling = Scaling { at: now, from: load.replicas, to, connections, per_replica, reason };
            actions.push(Action::Set(FieldUpdate::ServiceReplicas { id: service.id.clone(), scaling: Box::new(scaling) }));
        }
        actions
    }
}

/// The labels of a service that is scaled.
fn labels_of(service: &Service) -> Option<AutoscaleLabels> {
    let is_replicated = !service.spec.mode.is_global() && !service.spec.mode.is_job();
    AutoscaleLabels::read(&service.spec.labels).ok().flatten().filter(|_| is_replicated)
}

/// What the tasks of a service have. Those on their way out are not counted: their clients come back to the others.
fn load_of(service: &Service, store: &Store, loads: &TaskLoads, demand: &Demand) -> ServiceLoad {
    let wanted = || store.tasks_of_service(&service.id).filter(|task| task.is_wanted());
    let running = wanted().filter(|task| task.status.state == TaskState::Running);
    let counts: Vec<Option<u32>> = running.map(|task| loads.get(&task.id).copied()).collect();
    let is_updating = service.update.as_ref().is_some_and(|update| update.state.is_active());
    let of_clients = demand.of(&service.id);
    ServiceLoad {
        replicas: service.spec.mode.replicas(),
        connections: counts.iter().flatten().map(|count| u64::from(*count)).sum(),
        request_tenths: of_clients.request_tenths,
        waiting: of_clients.waiting,
        tasks_known: !counts.is_empty() && !is_updating && counts.iter().all(Option::is_some),
        // One that starts for the first time may take long, as a large image does.
        none_runs: counts.is_empty() && !is_updating && wanted().all(|task| task.node_id.is_none() || task.failures.count > 0),
        demand_known: demand.complete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::autoscale::{CONNECTIONS, RANGE};
    use crate::model::service_mode::{Replicated, ServiceMode};
    use crate::model::{Cluster, ServiceSpec, Task, fixture};
    use crate::store::Transaction;

    fn write(store: &mut Store, actions: Vec<Action>) {
        store.apply(store.index() + 1, &Transaction::new(Timestamp(1), actions)).expect("applied");
    }

    /// A service with these labels and one task, which runs.
    fn store(labels: &[(&str, &str)]) -> Store {
        let mode = ServiceMode { replicated: Some(Replicated { replicas: Some(1) }), ..ServiceMode::default() };
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let spec = ServiceSpec { name: "web".to_owned(), mode, labels, ..ServiceSpec::default() };
        let mut task = fixture::task_with_resolvers("t1", "web", "node1", &[]);
        task.status.state = TaskState::Running;
        let (mut store, cluster) = (Store::default(), Cluster { feature_level: SCALING_REASONS, ..fixture::cluster() });
        write(&mut store, vec![Action::create(cluster), Action::create(fixture::service("web", spec)), Action::create(task)]);
        store
    }

    fn replicas(store: &Store) -> u64 {
        store.service(&"web".into()).expect("web").spec.mode.replicas()
    }

    #[test]
    fn what_nodes_report_becomes_replicas_with_the_reason_unless_a_user_was_first() {
        let mut store = store(&[(RANGE, "1..5"), (CONNECTIONS, "10")]);
        let mut scaler = Autoscaler::default();
        assert_eq!(scaler.plan(&store, Timestamp(5)), Vec::new());
        scaler.observe([("t1".into(), 25), ("other".into(), 900)].into(), Demand::default());
        let planned = scaler.plan(&store, Timestamp(6));
        let mut by_hand = store.clone();
        write(&mut store, planned.clone());
        assert_eq!(replicas(&store), 3);
        let scaling = Scaling { at: Timestamp(6), from: 1, to: 3, connections: 25, per_replica: 10, reason: None };
        assert_eq!(store.service(&"web".into()).expect("web").scalings, [scaling]);
        assert_eq!(scaler.plan(&store, Timestamp(7)), Vec::new(), "it is as it should be");

        let mut scaled = by_hand.service(&"web".into()).expect("web").clone();
        scaled.spec.mode.replicated = Some(Replicated { replicas: Some(4) });
        write(&mut by_hand, vec![Action::update(scaled)]);
        write(&mut by_hand, planned);
        assert_eq!(replicas(&by_hand), 4, "the plan was made of another number");
    }

    #[test]
    fn a_service_without_the_label_or_in_a_cluster_of_level_1_is_left_alone() {
        let labels = [(RANGE, "1..5"), (CONNECTIONS, "10")];
        for (labels, level) in [(&labels[..0], LEVEL), (&labels[..], LEVEL - 1)] {
            let mut store = store(labels);
            let cluster = store.cluster().expect("a cluster").clone();
            write(&mut store, vec![Action::update(Cluster { feature_level: level, ..cluster })]);
            let mut scaler = Autoscaler::default();
            scaler.observe([("t1".into(), 90)].into(), Demand::default());
            assert_eq!(scaler.plan(&store, Timestamp(6)), Vec::new());
        }
    }

    #[test]
    fn a_task_that_was_not_counted_keeps_what_there_is() {
        let store = store(&[(RANGE, "1..5"), (CONNECTIONS, "10")]);
        let service = store.service(&"web".into()).expect("web");
        let load = |loads: &[(&str, u32)]| {
            let loads = loads.iter().map(|(id, load)| ((*id).into(), *load)).collect();
            load_of(service, &store, &loads, &Demand::default()).tasks_known
        };
        assert!(load(&[("t1", 0)]) && !load(&[("t2", 5)]));
        let mut stopping = store.clone();
        let task = Task { desired_state: TaskState::Shutdown, ..store.task(&"t1".into()).expect("t1").clone() };
        write(&mut stopping, vec![Action::update(task)]);
        let load = load_of(service, &stopping, &[("t1".into(), 7)].into(), &Demand::default());
        assert_eq!(load.connections, 0, "it is on its way out");
    }
}
