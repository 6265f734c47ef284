//! The manager's side of the nodes' sessions: queues what nodes send for the liveness loop. Knows no sockets; mutual TLS has
//! authenticated a node before its session is opened.
//!
//! A node's rate is not trusted: at most [`NODE_QUEUE`] events of each node are queued. A session that has to wait for that
//! reads no further message, so that further messages wait in its socket. The queue is shared and first in, first out: a
//! flooding node delays another node's heartbeat by that many events at most.

use super::liveness::Event;
use super::session::SessionId;
use crate::model::NodeId;
use crate::protocol::{ToManager, ToNode};
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Events of one node that may wait for the liveness loop, over all sessions of the node.
pub const NODE_QUEUE: usize = 16;

/// An event for the liveness loop.
pub(super) struct SessionEvent {
    pub event: Event,
    /// Where a session that was opened is answered.
    pub outgoing: Option<mpsc::Sender<ToNode>>,
    /// Released when the loop has processed the event. `None` for the end of a session, which is limited by the opening: one
    /// for each.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    // Bounded by the permits.
    queue: mpsc::UnboundedSender<SessionEvent>,
    registry: Arc<Mutex<Registry>>,
}

#[derive(Default)]
struct Registry {
    last: u64,
    open: BTreeMap<SessionId, Arc<Semaphore>>,
    /// Permits by node. They exist as long as events of the node wait, so that a node gains none by reconnecting.
    nodes: BTreeMap<NodeId, Weak<Semaphore>>,
}

impl Registry {
    fn permits(&mut self, node: &NodeId) -> Arc<Semaphore> {
        if let Some(permits) = self.nodes.get(node).and_then(Weak::upgrade) {
            return permits;
        }
        self.nodes.retain(|_, permits| permits.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(NODE_QUEUE));
        self.nodes.insert(node.clone(), Arc::downgrade(&permits));
        permits
    }

    fn open(&mut self, permits: Arc<Semaphore>) -> SessionId {
        self.last += 1;
        let session = SessionId(self.last);
        self.open.insert(session, permits);
        session
    }
}

pub(super) fn channel() -> (Sessions, mpsc::UnboundedReceiver<SessionEvent>) {
    let (queue, receiver) = mpsc::unbounded_channel();
    (Sessions { queue, registry: Arc::default() }, receiver)
}

impl Sessions {
    /// A node opens a session with its first message. Answers are sent to `outgoing`, a refusal too; the session has ended
    /// when the manager drops its sender. Call [`Sessions::close`] in any case. Waits while too many events of the node
    /// are queued.
    pub async fn open(&self, node: NodeId, hello: ToManager, outgoing: mpsc::Sender<ToNode>) -> SessionId {
        let permits = lock(&self.registry).permits(&node);
        let permit = acquire(&permits).await;
        let session = lock(&self.registry).open(permits);
        self.send(SessionEvent { event: Event::Opened { node, session, hello }, outgoing: Some(outgoing), permit });
        session
    }

    /// A node sent a further message. Waits while too many events of the node are queued; cancel safe, the message is lost
    /// then.
    pub async fn message(&self, session: SessionId, message: ToManager) {
        let permits = lock(&self.registry).open.get(&session).cloned();
        let Some(permits) = permits else { return };
        let permit = acquire(&permits).await;
        self.send(SessionEvent { event: Event::Message { session, message }, outgoing: None, permit });
    }

    /// The session has ended. Never waits, so that a guard can call it when dropped.
    pub fn close(&self, session: SessionId) {
        if lock(&self.registry).open.remove(&session).is_some() {
            self.send(SessionEvent { event: Event::Closed { session }, outgoing: None, permit: None });
        }
    }

    /// If the loop has ended, `outgoing` is dropped with the event, which ends the session.
    fn send(&self, event: SessionEvent) {
        drop(self.queue.send(event));
    }
}

async fn acquire(permits: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    // An error would mean a closed semaphore; these are never closed.
    permits.clone().acquire_owned().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;
    use crate::model::node::NodeDescription;
    use crate::protocol::FORMAT;
    use futures_util::FutureExt as _;

    fn hello() -> ToManager {
        let (description, endpoints, have) = (NodeDescription::default(), Vec::new(), Revision::default());
        ToManager::Hello { format: FORMAT, formats: None, description, endpoints, have }
    }

    fn heartbeat() -> ToManager {
        ToManager::Heartbeat { applied: Revision::default() }
    }

    /// Opens a session, if that does not have to wait.
    fn open(sessions: &Sessions, node: &str) -> Option<SessionId> {
        sessions.open(node.into(), hello(), mpsc::channel(1).0).now_or_never()
    }

    /// Sends until a message has to wait; returns how many were queued.
    fn flood(sessions: &Sessions, session: SessionId) -> usize {
        (0..100_000).take_while(|_| sessions.message(session, heartbeat()).now_or_never().is_some()).count()
    }

    #[test]
    fn a_flooding_node_fills_only_its_own_share() {
        let (sessions, mut queue) = channel();
        let flooding = open(&sessions, "flooding").expect("the queue is empty");
        assert_eq!(flood(&sessions, flooding), NODE_QUEUE - 1, "the opening has a permit too");
        assert_eq!(queue.len(), NODE_QUEUE, "the leader's memory does not grow further");

        let quiet = open(&sessions, "quiet").expect("another node's session does not wait");
        sessions.message(quiet, heartbeat()).now_or_never().expect("nor does its heartbeat");
        let before = std::iter::from_fn(|| queue.try_recv().ok())
            .position(|e| matches!(e.event, Event::Message { session, .. } if session == quiet));
        assert_eq!(before, Some(NODE_QUEUE + 1), "events before the heartbeat: the flood and its own opening");
        assert_eq!(flood(&sessions, flooding), NODE_QUEUE, "the flood continues once its events are processed");
    }

    #[test]
    fn a_node_gains_no_permits_by_reconnecting() {
        let (sessions, mut queue) = channel();
        let first = open(&sessions, "flooding").expect("the queue is empty");
        flood(&sessions, first);
        assert_eq!(open(&sessions, "flooding"), None, "a second session of the node waits");
        sessions.close(first);
        sessions.close(first);
        assert_eq!(open(&sessions, "flooding"), None, "also after the first has ended");
        assert_eq!(queue.len(), NODE_QUEUE + 1, "the end is queued, once");
        while queue.try_recv().is_ok() {}
        assert!(open(&sessions, "flooding").is_some());
    }

    #[test]
    fn a_waiting_session_continues_when_the_loop_has_ended() {
        let (sessions, queue) = channel();
        let session = open(&sessions, "n1").expect("the queue is empty");
        flood(&sessions, session);
        drop(queue);
        assert!(sessions.message(session, heartbeat()).now_or_never().is_some());
    }
}
