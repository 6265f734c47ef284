//! What is kept of a request while it is served.

use super::routes::ServedRoute;
use crate::model::TaskId;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::time::Instant;

/// From an answer to the first byte of the next head, in seconds.
pub(super) const IDLE_S: u64 = 60;

/// Set once the head of a request has been read; see [`super::app`].
#[derive(Clone, Default, Debug)]
pub(super) struct HeadSeen(Arc<AtomicBool>);

impl HeadSeen {
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A request.
pub(super) struct RequestContext {
    pub started: Instant,
    pub route: Option<Arc<ServedRoute>>,
    /// Task of the sticky cookie.
    pub stays_with: Option<String>,
    /// Task that is asked now.
    pub task: Option<TaskId>,
    /// Tasks that could not be connected to.
    pub tried: Vec<TaskId>,
    /// It was sent again after a connection ended without an answer.
    pub repeated: bool,
    /// Bytes of the body so far.
    pub body: u64,
    pub request_id: String,
}

impl RequestContext {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            route: None,
            stays_with: None,
            task: None,
            tried: Vec::new(),
            repeated: false,
            body: 0,
            request_id: String::new(),
        }
    }
}
