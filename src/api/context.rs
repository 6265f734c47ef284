//! What every handler works with.

use super::control::NodeControl;
use super::engine_http::EngineHttp;
use super::events::EventFeed;
use crate::clock::Clock;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The node, its engine and its clock.
pub struct ApiContext {
    pub control: Arc<dyn NodeControl>,
    pub engine: EngineHttp,
    pub events: Arc<EventFeed>,
    /// For requests for logs: each holds connections to nodes and to engines.
    pub log_slots: Arc<Semaphore>,
    /// Stamps what is written to the store.
    pub clock: Arc<dyn Clock>,
}
