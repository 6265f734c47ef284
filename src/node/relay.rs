//! Moves data between the session and the node's loops: received views are published; observed
//! statuses and listening ports are reported, and all of them again at the start of each session.

use super::troubles::Troubles;
use crate::model::{ContainerAttachment, Demand, ListeningPort, NodeView, TaskId, TaskStatus};
use crate::protocol::view_delta::{self, ViewDelta};
use crate::protocol::{ToManager, ToNode};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Relays messages until the session has ended.
pub(super) struct SessionRelay {
    pub view: watch::Sender<Option<Arc<NodeView>>>,
    /// True from the first view on that was applied.
    pub delivered: watch::Sender<bool>,
    pub incoming: mpsc::Receiver<ToNode>,
    pub outgoing: mpsc::Sender<ToManager>,
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    pub listens: mpsc::Receiver<(TaskId, Vec<ListeningPort>)>,
    pub loads: watch::Receiver<BTreeMap<TaskId, u32>>,
    pub demand: watch::Receiver<Demand>,
    pub troubles: watch::Receiver<Troubles>,
    pub attachments: watch::Receiver<Vec<ContainerAttachment>>,
}

impl SessionRelay {
    pub(super) async fn run(mut self) {
        let mut statuses = UnacknowledgedReports::default();
        let mut listens = UnacknowledgedReports::default();
        loop {
            tokio::select! {
                message = self.incoming.recv() => match message {
                    Some(ToNode::Welcome { .. }) => self.report_all(&statuses, &listens).await,
                    Some(ToNode::Removed(_)) => self.fence(),
                    Some(message) => if let Some(delta) = ViewDelta::from_message(&message) {
                        if !self.apply(delta) {
                            let have = self.view.borrow().as_ref().map(|view| view.revision).unwrap_or_default();
                            let _ = self.outgoing.send(ToManager::Behind { have }).await;
                        }
                        let view = self.view.borrow().clone();
                        let assigned = |id: &TaskId| view.as_ref().is_some_and(|v| v.tasks.by_id.contains_key(id));
                        statuses.retain(assigned);
                        listens.retain(assigned);
                    },
                    None => return,
                },
                status = self.statuses.recv() => match status {
                    Some(first) => {
                        let batch = statuses.record(first, &mut self.statuses);
                        let _ = self.outgoing.send(ToManager::Status(batch)).await;
                    }
                    None => return,
                },
                Ok(()) = self.troubles.changed() => self.report_troubles().await,
                Ok(()) = self.attachments.changed() => self.report_attachments().await,
                Ok(()) = self.loads.changed() => self.report_loads().await,
                Ok(()) = self.demand.changed() => self.report_demand().await,
                Some(first) = self.listens.recv() => {
                    let batch = listens.record(first, &mut self.listens);
                    let _ = self.outgoing.send(ToManager::Listens(batch)).await;
                }
            }
        }
    }

    /// Reports everything: the leader of a new session may have received none of it.
    async fn report_all(
        &self,
        statuses: &UnacknowledgedReports<TaskStatus>,
        listens: &UnacknowledgedReports<Vec<ListeningPort>>,
    ) {
        if let Some(all) = statuses.all() {
            let _ = self.outgoing.send(ToManager::Status(all)).await;
        }
        if let Some(all) = listens.all() {
            let _ = self.outgoing.send(ToManager::Listens(all)).await;
        }
        self.report_troubles().await;
        self.report_attachments().await;
        self.report_loads().await;
        self.report_demand().await;
    }

    async fn report_demand(&self) {
        let demand = self.demand.borrow().clone();
        let _ = self.outgoing.send(ToManager::Demand(demand)).await;
    }

    async fn report_loads(&self) {
        let loads = self.loads.borrow().iter().map(|(id, load)| (id.clone(), *load)).collect();
        let _ = self.outgoing.send(ToManager::Load(loads)).await;
    }

    async fn report_attachments(&self) {
        let attachments = self.attachments.borrow().clone();
        let _ = self.outgoing.send(ToManager::Attachments(attachments)).await;
    }

    async fn report_troubles(&self) {
        let troubles = self.troubles.borrow().clone();
        let _ = self.outgoing.send(ToManager::Troubles(troubles)).await;
    }

    /// Applies a delta to the view and publishes it; false if it does not fit the view that the node has.
    fn apply(&self, delta: ViewDelta) -> bool {
        let current = self.view.borrow().clone();
        let next = match view_delta::apply(current.as_deref(), delta) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "a view was not applied");
                return false;
            }
        };
        self.view.send_replace(Some(Arc::new(next)));
        self.delivered.send_replace(true);
        true
    }

    /// The node is no longer a member: it publishes a view without tasks and ports, so that every loop stops its part. Its tasks
    /// run on other nodes by now, and no manager will correct its tables.
    fn fence(&self) {
        self.view.send_modify(|view| {
            if let Some(view) = view {
                *view = Arc::new(fenced(view));
            }
        });
    }
}

/// The view of a node that is no longer a member.
fn fenced(view: &NodeView) -> NodeView {
    let mut fenced = view.clone();
    fenced.tasks = Arc::default();
    let cluster = Arc::make_mut(&mut fenced.cluster);
    cluster.ports.clear();
    cluster.http.clear();
    cluster.acme = Arc::default();
    for network in Arc::make_mut(&mut fenced.networks).by_id.values_mut() {
        network.services.clear();
        network.members.clear();
    }
    fenced
}

/// The last report of each assigned task.
struct UnacknowledgedReports<T>(BTreeMap<TaskId, T>);

impl<T> Default for UnacknowledgedReports<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone> UnacknowledgedReports<T> {
    /// Records a report and those queued behind it; returns them in order.
    fn record(&mut self, first: (TaskId, T), queue: &mut mpsc::Receiver<(TaskId, T)>) -> Vec<(TaskId, T)> {
        let mut batch = vec![first];
        while let Ok(next) = queue.try_recv() {
            batch.push(next);
        }
        self.0.extend(batch.iter().cloned());
        batch
    }
    /// All reports; `None` if there are none.
    fn all(&self) -> Option<Vec<(TaskId, T)>> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|(id, report)| (id.clone(), report.clone())).collect())
    }
    fn retain(&mut self, assigned: impl Fn(&TaskId) -> bool) {
        self.0.retain(|id, _| assigned(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[tokio::test]
    async fn a_view_that_does_not_fit_is_answered_with_the_revision_that_the_node_has() {
        let full = fixture::node_view(7, Vec::new(), fixture::cluster_part(vec![fixture::peer(1)]));
        let have = full.revision;
        for (current, index, expected) in [(Some(full.clone()), 6, have), (None, 9, crate::model::Revision::default())] {
            let (view, seen) = watch::channel(current.map(Arc::new));
            let (to_relay, incoming) = mpsc::channel(4);
            let (outgoing, mut answers) = mpsc::channel(4);
            let ((_statuses, statuses), (_listens, listens)) = (mpsc::channel(1), mpsc::channel(1));
            let (_troubles, troubles) = watch::channel(Troubles::new());
            let (_attachments, attachments) = watch::channel(Vec::new());
            let (_loads, loads) = watch::channel(BTreeMap::new());
            let (_demand, demand) = watch::channel(Demand::default());
            let (delivered, is_delivered) = watch::channel(false);
            let relay = tokio::spawn(
                SessionRelay { view, delivered, incoming, outgoing, statuses, listens, loads, demand, troubles, attachments }
                    .run(),
            );
            let before = seen.borrow().clone();
            let revision = crate::model::Revision { index, ..have };
            // Older than what it has, or without the parts that it does not have.
            to_relay.send(ToNode::View { revision, tasks: Some(Arc::default()), networks: None, cluster: None }).await.unwrap();
            let answer = answers.recv().await;
            assert!(matches!(answer, Some(ToManager::Behind { have }) if have == expected), "{answer:?}");
            assert_eq!(*seen.borrow(), before);
            assert!(!*is_delivered.borrow(), "the ledger's view is not a session's");
            drop(to_relay);
            relay.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_removed_node_is_fenced_no_task_no_port_no_name_is_left() {
        let address = "10.0.1.2".parse().unwrap();
        let network = fixture::network_part(
            "back",
            "10.0.1.0/24".parse().unwrap(),
            vec![fixture::task_endpoint("web", 1, "node1", address)],
        );
        let mut full = fixture::node_view(7, vec![network], fixture::cluster_part(vec![fixture::peer(1)]));
        Arc::make_mut(&mut full.cluster).ports.push(Arc::new(fixture::published_port(8080, 80, &[address])));
        let task = fixture::task_with_resolvers("t1", "web", "node1", &[]);
        Arc::make_mut(&mut full.tasks).by_id.insert(task.id.clone(), Arc::new(task));
        let (view, mut seen) = watch::channel(Some(Arc::new(full)));
        let (to_relay, incoming) = mpsc::channel(4);
        let (outgoing, _outgoing) = mpsc::channel(4);
        let ((_statuses, statuses), (_listens, listens)) = (mpsc::channel(1), mpsc::channel(1));
        seen.mark_unchanged();
        let (_troubles, troubles) = watch::channel(Troubles::new());
        let (_attachments, attachments) = watch::channel(Vec::new());
        let (_loads, loads) = watch::channel(BTreeMap::new());
        let (_demand, demand) = watch::channel(Demand::default());
        let (delivered, mut is_delivered) = watch::channel(false);
        let revision = seen.borrow().as_ref().unwrap().revision;
        let relay = tokio::spawn(
            SessionRelay { view, delivered, incoming, outgoing, statuses, listens, loads, demand, troubles, attachments }.run(),
        );
        to_relay.send(ToNode::View { revision, tasks: None, networks: None, cluster: None }).await.unwrap();
        is_delivered.wait_for(|is| *is).await.unwrap();
        seen.mark_unchanged();
        to_relay.send(ToNode::Removed("removed".to_owned())).await.unwrap();
        seen.changed().await.unwrap();
        let now = seen.borrow_and_update().clone().unwrap();
        assert!(now.tasks.by_id.is_empty() && now.cluster.ports.is_empty());
        let back = now.networks.by_id.values().next().unwrap();
        assert!(back.members.is_empty() && back.services.is_empty());
        drop(to_relay);
        relay.await.unwrap();
    }
}
