//! Input and output of the liveness core.

use crate::manager::session::{Effect, SessionId};
use crate::model::NodeId;
use crate::protocol::{ToManager, ToNode};
use crate::store::Store;
use std::sync::Arc;

/// Input of the core.
#[derive(Debug)]
pub enum Event {
    /// A node opened a session. `node` is the name in its certificate, `hello` its first message.
    Opened { node: NodeId, session: SessionId, hello: ToManager },
    /// A further message of a session.
    Message { session: SessionId, message: ToManager },
    /// The session's connection has ended.
    Closed { session: SessionId },
    /// The newest state of the store.
    StoreChanged(Arc<Store>),
    /// Time has passed. Expected every fifth of a heartbeat interval, after everything that nodes have sent until then.
    Tick,
}

/// Output of the core for one event.
#[derive(Default, Debug)]
pub struct Handled {
    pub effects: Vec<Effect>,
    /// What the dispatcher is to know, in order. Never a heartbeat: [`super::LivenessSnapshot`] has what those carry.
    pub notices: Vec<Notice>,
}

/// What the dispatcher is to know of a session.
#[derive(Debug)]
pub enum Notice {
    /// A member's session is open and was answered with `Welcome`.
    Opened { node: NodeId, session: SessionId, hello: ToManager },
    /// A member reports something.
    Report { node: NodeId, message: ToManager },
    /// The session has ended.
    Closed { node: NodeId, session: SessionId },
}

impl Handled {
    pub(super) fn send(&mut self, session: SessionId, message: ToNode) {
        self.effects.push(Effect::Send { session, message });
    }

    /// Ends the session of a node.
    pub(super) fn close(&mut self, node: NodeId, session: SessionId) {
        self.effects.push(Effect::Close { session });
        self.notices.push(Notice::Closed { node, session });
    }
}
