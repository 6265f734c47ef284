//! Moves data between the session and the node's loops: received views are stored in the ledger and published; observed
//! statuses and listening ports are reported, and all of them again at the start of each session.

use crate::agent::ledger::Ledger;
use crate::model::ListeningPort;
use crate::model::{NodeView, TaskId, TaskStatus};
use crate::protocol::view_delta::{self, ViewDelta};
use crate::protocol::{ToManager, ToNode};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Relays messages until the session has ended.
pub(super) struct SessionRelay {
    pub ledger: Ledger,
    pub view: watch::Sender<Option<Arc<NodeView>>>,
    pub incoming: mpsc::Receiver<ToNode>,
    pub outgoing: mpsc::Sender<ToManager>,
    pub statuses: mpsc::Receiver<(TaskId, TaskStatus)>,
    pub listens: mpsc::Receiver<(TaskId, Vec<ListeningPort>)>,
}

impl SessionRelay {
    pub(super) async fn run(mut self) {
        let mut statuses = UnacknowledgedReports::default();
        let mut listens = UnacknowledgedReports::default();
        loop {
            tokio::select! {
                message = self.incoming.recv() => match message {
                    Some(ToNode::Welcome { .. }) => self.report_all(&statuses, &listens).await,
                    Some(message) => if let Some(delta) = ViewDelta::from_message(&message) {
                        self.apply(delta).await;
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
    }

    /// Applies a delta to the view, stores the result, then publishes it.
    async fn apply(&self, delta: ViewDelta) {
        let current = self.view.borrow().clone();
        let next = match view_delta::apply(current.as_deref(), delta) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "a view was not applied");
                return;
            }
        };
        let (ledger, next) = (self.ledger.clone(), Arc::new(next));
        let copy = next.clone();
        // On disk first: a view that a loop has acted on must survive a restart without managers.
        let stored = tokio::task::spawn_blocking(move || ledger.store(&copy)).await;
        if let Ok(Err(error)) = stored {
            tracing::warn!(
                error = format!("{error:#}"),
                "the ledger was not written: a restart without managers would start from an older one"
            );
        }
        self.view.send_replace(Some(next));
    }
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
