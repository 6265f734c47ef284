//! Queues of messages to the nodes, by session. Both loops of the leader send through them. Cheap to clone.

use super::session::{Effect, SessionId};
use crate::protocol::ToNode;
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Messages that may wait for a slow node before its session is ended. In its next session the node gets its whole view.
const BACKLOG: usize = 1024;

/// The outboxes of the open sessions.
#[derive(Clone, Default)]
pub(super) struct Outboxes {
    open: Arc<Mutex<BTreeMap<SessionId, mpsc::Sender<ToNode>>>>,
}

impl Outboxes {
    /// Adds the outbox of a session that was opened.
    pub(super) fn open(&self, session: SessionId, outgoing: mpsc::Sender<ToNode>) {
        lock(&self.open).insert(session, forward(outgoing));
    }

    /// The session has ended.
    pub(super) fn close(&self, session: SessionId) {
        lock(&self.open).remove(&session);
    }

    /// Sends and closes. A session that does not keep up is ended.
    pub(super) fn carry_out(&self, effects: Vec<Effect>) {
        if effects.is_empty() {
            return;
        }
        let mut open = lock(&self.open);
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    if open.get(&session).is_some_and(|outbox| outbox.try_send(message).is_err()) {
                        tracing::debug!(session = session.0, "the session has ended or does not keep up");
                        open.remove(&session);
                    }
                }
                Effect::Close { session } => drop(open.remove(&session)),
            }
        }
    }

    /// Ends all sessions; `last` is sent before.
    pub(super) fn close_all(&self, last: Option<&ToNode>) {
        for outbox in std::mem::take(&mut *lock(&self.open)).into_values() {
            last.map(|message| outbox.try_send(message.clone()).ok());
        }
    }
}

/// A queue in front of a session, so that no loop waits for a node.
fn forward(outgoing: mpsc::Sender<ToNode>) -> mpsc::Sender<ToNode> {
    let (sender, mut queue) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if outgoing.send(message).await.is_err() {
                return;
            }
        }
    });
    sender
}
