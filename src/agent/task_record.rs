//! What the agent remembers of a task between two events. Only data.

use super::local_restarts::LocalRestarts;
use crate::backoff::Backoff;
use crate::model::{TaskState, TaskStatus, Timestamp};
use std::time::Duration;

/// A step on a task's container; each is one call to the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StepKind {
    /// Pull the image unless the engine has it.
    Fetch,
    /// Create the task's overlay networks on the engine.
    Connect,
    /// Write its secrets and configs.
    Files,
    Create,
    Start,
    /// Stop the container, with its grace period.
    Stop,
    Remove,
    /// Read the container's state after another step.
    Inspect,
}

impl StepKind {
    /// The step may be cancelled at any point without side effects.
    #[must_use]
    pub fn may_be_cancelled(self) -> bool {
        matches!(self, Self::Fetch | Self::Connect)
    }
}

/// What is remembered of a task.
#[derive(Clone, Default, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each observed or not")]
pub struct TaskRecord {
    /// Last status: reported by this run, or found in the view.
    pub status: TaskStatus,
    /// When this run last reported it; `None`: not yet.
    pub reported: Option<Timestamp>,
    /// A view of this run had the task.
    pub assigned: bool,
    /// The step in flight, with its number.
    pub busy: Option<(StepKind, u64)>,
    /// The engine has the image.
    pub fetched: bool,
    /// The engine has the networks.
    pub connected: bool,
    /// Its secrets and configs are written.
    pub files: bool,
    /// The first of its secrets and configs that the view does not have.
    pub missing: Option<String>,
    /// This run has observed or created the container.
    pub created: bool,
    /// The container was seen to be unhealthy, and is stopped for that.
    pub unhealthy: bool,
    /// When this run first reported that.
    pub unhealthy_reported: Option<Timestamp>,
    /// That was reported within a session: a manager may replace the task.
    pub left_to_managers: bool,
    /// Highest desired state that a view had. A new leader holds back the stop of a task that may have its order already.
    pub desired: TaskState,
    /// The engine refused a step; its error text.
    pub refused: Option<String>,
    /// No step before this time, after a failure that is retried.
    pub retry_at: Option<Timestamp>,
    /// Failures in a row.
    pub failures: u32,
    /// What was started again without a manager.
    pub restarts: LocalRestarts,
}

/// Pauses between attempts after failures that are retried.
pub const RETRY: Backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));

impl TaskRecord {
    /// A step failed and is to be retried.
    pub fn failed(&mut self, now: Timestamp) {
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now.plus(RETRY.pause(self.failures)));
    }
    /// A step succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.retry_at = None;
    }
}
