//! What the agent remembers of a task between two looks at the world. Only data.

use crate::model::{TaskStatus, Timestamp};
use std::time::Duration;

/// A step on a task's container, one call to the engine each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verb {
    /// Use the image that is there, or pull it.
    Fetch,
    /// Make its overlay networks on the engine.
    Connect,
    /// Make the container.
    Create,
    /// Start it.
    Start,
    /// Stop it, with its grace.
    Stop,
    /// Remove it.
    Remove,
    /// Look at what became of it.
    Look,
}

impl Verb {
    /// Such a step may be broken off at any point without a trace.
    #[must_use]
    pub fn may_be_cancelled(self) -> bool {
        matches!(self, Self::Fetch | Self::Connect)
    }
}

/// What is remembered of a task.
#[derive(Clone, Default, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, seen or not seen")]
pub struct TaskRecord {
    /// Last status: reported by this run, or found in the view.
    pub status: TaskStatus,
    /// When this run last reported it; `None`: not yet.
    pub reported: Option<Timestamp>,
    /// A view of this run had the task.
    pub known: bool,
    /// The step in flight, with its number.
    pub busy: Option<(Verb, u64)>,
    /// The image is there.
    pub fetched: bool,
    /// The networks are there.
    pub connected: bool,
    /// This run saw or made its container.
    pub made: bool,
    /// Its container is being stopped because it is unhealthy.
    pub unhealthy: bool,
    /// The engine refused a step, in these words.
    pub refused: Option<String>,
    /// No step before this time, after a failure that may pass.
    pub retry_at: Option<Timestamp>,
    /// Failures in a row.
    pub failures: u32,
}

/// First pause after a failure that may pass.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Pause after so many failures in a row (1 …): doubles up to a bound.
#[must_use]
pub fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE)
}

impl TaskRecord {
    /// A step came to nothing, but may succeed later.
    pub fn failed(&mut self, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now.plus(pause(self.failures)));
    }
    /// A step succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }
}
