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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn alive(session: SessionId) -> Effect {
        Effect::Send { session, message: ToNode::Alive }
    }

    async fn next(incoming: &mut mpsc::Receiver<ToNode>) -> Option<ToNode> {
        tokio::time::timeout(Duration::from_secs(20), incoming.recv()).await.expect("in time")
    }

    #[tokio::test]
    async fn a_node_that_does_not_read_delays_no_other_and_its_session_ends_at_the_bound() {
        let (outboxes, slow, quick) = (Outboxes::default(), SessionId(1), SessionId(2));
        let (outgoing, mut unread) = mpsc::channel(1);
        outboxes.open(slow, outgoing);
        let (outgoing, mut read) = mpsc::channel(1);
        outboxes.open(quick, outgoing);
        let is_open = |session| lock(&outboxes.open).contains_key(&session);
        let mut sent = 0;
        while is_open(slow) {
            outboxes.carry_out(vec![alive(slow), alive(quick)]);
            sent += 1;
            assert!(matches!(next(&mut read).await, Some(ToNode::Alive)), "after {sent} that the other one has not read");
            assert!(sent < 10 * BACKLOG, "the outbox of a node that reads nothing grows without a bound");
        }
        // One waits in the channel, and one to get there.
        assert_eq!(sent, BACKLOG + 3);
        outboxes.carry_out(vec![alive(slow), alive(quick)]);
        assert!(matches!(next(&mut read).await, Some(ToNode::Alive)), "the end of a session is no other one's");
        let mut left = 0;
        while next(&mut unread).await.is_some() {
            left += 1;
        }
        assert_eq!(left, BACKLOG + 2, "and then its end");
        assert!(is_open(quick));
    }
}
