//! What a server logs of connections that it refuses: unauthenticated hosts open as many as they like, and must not fill the log.

use crate::sync::lock;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Between two lines of the log.
const PERIOD: Duration = Duration::from_secs(10);

/// Refused connections of one server: the first is logged at once, those that follow within [`PERIOD`] are counted in the next line.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<LogPace>);

#[derive(Debug, Default)]
struct LogPace {
    said: Option<Instant>,
    unsaid: u64,
}

impl LogPace {
    /// Whether this one is logged, with the number of those before that were not.
    fn refused(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now.duration_since(said) < PERIOD) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

impl Refusals {
    pub fn refused(&self, from: SocketAddr, server: &str, why: impl std::fmt::Display) {
        if let Some(others) = lock(&self.0).refused(Instant::now()) {
            tracing::info!(%from, others_before = others, "{server} closed a connection: {why}");
        }
    }
}

#[test]
fn a_flood_of_refusals_is_a_line_in_ten_seconds() {
    let (mut pace, start) = (LogPace::default(), Instant::now());
    assert_eq!(pace.refused(start), Some(0), "the first at once");
    for second in 1..10 {
        assert_eq!(pace.refused(start + Duration::from_secs(second)), None);
    }
    assert_eq!(pace.refused(start + PERIOD), Some(9), "with the number of the others");
    assert_eq!(pace.refused(start + PERIOD), None);
    assert_eq!(pace.refused(start + 3 * PERIOD), Some(1));
}
