//! Input and output of the dispatcher.

use crate::model::NodeId;
use crate::protocol::{ToManager, ToNode};
use crate::store::Store;
use std::sync::Arc;

/// Number of a session on this manager. Never used again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

/// Input of the dispatcher.
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
    /// Time has passed. Expected every fifth of a heartbeat interval.
    Tick,
}

/// Output of the dispatcher, to be carried out in order.
#[derive(Debug)]
pub enum Effect {
    /// Sends a message in a session.
    Send { session: SessionId, message: ToNode },
    /// Ends a session after the messages before this.
    Close { session: SessionId },
}
