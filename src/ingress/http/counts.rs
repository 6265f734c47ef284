//! The counts of a route at a moment.

use serde::{Deserialize, Serialize};

/// Upper bounds of the classes of durations, in milliseconds; one more class has the rest.
pub const LATENCY_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000];

/// Classes of durations.
pub(super) const CLASSES: usize = LATENCY_BOUNDS_MS.len() + 1;

/// The counts of a moment.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteCounts {
    /// By the first digit of the status, from 1 to 5.
    pub by_class: [u64; 5],
    /// Requests whose client went away before there was an answer.
    pub gone: u64,
    /// Attempts that another task was asked after.
    pub retries: u64,
    /// By [`LATENCY_BOUNDS_MS`].
    pub durations: [u64; CLASSES],
    /// Sum of all durations, in microseconds.
    pub micros: u64,
}

impl RouteCounts {
    /// All requests.
    pub fn requests(&self) -> u64 {
        self.by_class.iter().sum::<u64>() + self.gone
    }
}
