//! The node's end of its session as data moves: views come in and go to the ledger and every loop, what the agent
//! observes goes out, and who listens. Both are kept, and told anew with each new session.

use crate::agent::ledger::Ledger;
use crate::model::ListeningPort;
use crate::model::{NodeView, Revision, TaskId, TaskStatus};
use crate::protocol::view_delta::{self, Delta};
use crate::protocol::{ToManager, ToNode};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Moves messages until the session's side is gone.
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
                    Some(ToNode::Welcome { .. }) => {
                        if let Some(all) = statuses.all() {
                            let _ = self.outgoing.send(ToManager::Status(all)).await;
                        }
                        if let Some(all) = listens.all() {
                            let _ = self.outgoing.send(ToManager::Listens(all)).await;
                        }
                    }
                    Some(message) => {
                        if let Some(delta) = Delta::of(&message) {
                            self.take(delta).await;
                            let view = self.view.borrow().clone();
                            let lives = |id: &TaskId| view.as_ref().is_some_and(|v| v.tasks.by_id.contains_key(id));
                            statuses.retain(lives);
                            listens.retain(lives);
                        }
                    }
                    None => return,
                },
                status = self.statuses.recv() => match status {
                    Some(first) => {
                        let news = statuses.news(first, &mut self.statuses);
                        let _ = self.outgoing.send(ToManager::Status(news)).await;
                    }
                    None => return,
                },
                Some(first) = self.listens.recv() => {
                    let news = listens.news(first, &mut self.listens);
                    let _ = self.outgoing.send(ToManager::Listens(news)).await;
                }
            }
        }
    }

    async fn take(&self, delta: Delta) {
        let current = self.view.borrow().clone();
        let next = match view_delta::apply(current.as_deref(), delta) {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "a view was not taken");
                return;
            }
        };
        let (ledger, next) = (self.ledger.clone(), Arc::new(next));
        let copy = next.clone();
        // On disk first: what a loop has acted on survives a restart without managers.
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

/// What was told of tasks.
struct UnacknowledgedReports<T>(BTreeMap<TaskId, T>);

impl<T> Default for UnacknowledgedReports<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Clone> UnacknowledgedReports<T> {
    /// The first one and what waits behind it, in order.
    fn news(&mut self, first: (TaskId, T), more: &mut mpsc::Receiver<(TaskId, T)>) -> Vec<(TaskId, T)> {
        let mut batch = vec![first];
        while let Ok(next) = more.try_recv() {
            batch.push(next);
        }
        self.0.extend(batch.iter().cloned());
        batch
    }
    /// All of it, if there is any.
    fn all(&self) -> Option<Vec<(TaskId, T)>> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|(id, told)| (id.clone(), told.clone())).collect())
    }
    fn retain(&mut self, lives: impl Fn(&TaskId) -> bool) {
        self.0.retain(|id, _| lives(id));
    }
}

/// The lowest of the loops' applied revisions, as it changes.
pub(super) async fn lowest(mut loops: Vec<watch::Receiver<Revision>>, out: watch::Sender<Revision>) {
    loop {
        let lowest = loops.iter_mut().map(|r| *r.borrow_and_update()).min().unwrap_or_default();
        out.send_if_modified(|r| std::mem::replace(r, lowest) != lowest);
        let changes = loops.iter_mut().map(|r| Box::pin(r.changed()));
        if futures_util::future::select_all(changes).await.0.is_err() {
            return;
        }
    }
}
