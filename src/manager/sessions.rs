//! The door that rpc's server hands sessions to: it only passes on what nodes say. Who may come in, mutual TLS has
//! decided before.

use super::dispatcher::Event;
use crate::model::NodeId;
use crate::protocol::{ToManager, ToNode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Number of a session on this manager.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// What arrives at the leader's loop.
pub(super) struct Arrival {
    pub event: Event,
    /// Where a new session is answered.
    pub outgoing: Option<mpsc::Sender<ToNode>>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    inbox: mpsc::UnboundedSender<Arrival>,
    next: Arc<AtomicU64>,
}

pub(super) fn channel() -> (Sessions, mpsc::UnboundedReceiver<Arrival>) {
    let (inbox, receiver) = mpsc::unbounded_channel();
    (Sessions { inbox, next: Arc::new(AtomicU64::new(1)) }, receiver)
}

impl Sessions {
    /// A node opens a session with its first message. Answers come through `outgoing`, a refusal too; the session is
    /// over when the manager drops its end of it. Call [`Sessions::close`] in any case.
    #[expect(clippy::unused_async, reason = "callers await; a bounded inbox would too")]
    pub async fn open(&self, node: NodeId, hello: ToManager, outgoing: mpsc::Sender<ToNode>) -> SessionId {
        let session = SessionId(self.next.fetch_add(1, Ordering::Relaxed));
        self.pass(Event::Opened { node, session, hello }, Some(outgoing));
        session
    }

    /// A node said something.
    #[expect(clippy::unused_async, reason = "callers await; a bounded inbox would too")]
    pub async fn message(&self, session: SessionId, message: ToManager) {
        self.pass(Event::Message { session, message }, None);
    }

    /// The session is over. Not asynchronous, so that a guard can call it when dropped.
    pub fn close(&self, session: SessionId) {
        self.pass(Event::Closed { session }, None);
    }

    /// If the loop has ended, `outgoing` is dropped with the arrival and the session ends by itself.
    fn pass(&self, event: Event, outgoing: Option<mpsc::Sender<ToNode>>) {
        drop(self.inbox.send(Arrival { event, outgoing }));
    }
}
