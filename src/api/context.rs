//! What every handler works with.

use super::control::NodeControl;
use super::engine_http::EngineHttp;
use super::events::EventFeed;
use crate::clock::Clock;
use std::sync::Arc;

/// The node, its engine and its clock.
pub struct ApiContext {
    pub control: Arc<dyn NodeControl>,
    pub engine: EngineHttp,
    pub events: Arc<EventFeed>,
    /// Stamps what is written to the store.
    pub clock: Arc<dyn Clock>,
}
