//! What every handler works with.

use super::control::NodeControl;
use super::encoded::EncodedServices;
use super::engine_http::EngineHttp;
use super::events::EventFeed;
use crate::clock::Clock;
use crate::model::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Time without a leader that an election takes.
const ELECTION: Duration = Duration::from_secs(1);

/// The node, its engine and its clock.
pub struct ApiContext {
    pub control: Arc<dyn NodeControl>,
    pub engine: EngineHttp,
    pub events: Arc<EventFeed>,
    /// For requests for logs: each holds connections to nodes and to engines.
    pub log_slots: Arc<Semaphore>,
    pub services: EncodedServices,
    /// Stamps what is written to the store.
    pub clock: Arc<dyn Clock>,
}

impl ApiContext {
    /// Since when this manager knows no leader, unless that is a moment ago.
    pub fn stale_since(&self) -> Option<Timestamp> {
        self.control.leaderless_since().filter(|since| self.clock.now().since(*since) >= ELECTION)
    }
}
