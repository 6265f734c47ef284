//! The rolling update of a service and the runs of a job: what a new leader needs to go on.

use super::time::{Nanos, Timestamp};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The last update or rollback of a service. In the service object, so that any leader goes on with it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceUpdate {
    pub state: UpdateState,
    /// When the orchestrator began it; `None`: not looked at yet, or it replaces no task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Swarm's text.
    pub message: String,
    /// Slots whose task had to be replaced when it began.
    pub dirty: u64,
    /// How many of them failed.
    pub failed: u64,
}

/// State of an update, named as in the API.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

impl UpdateState {
    /// Name in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Updating => "updating",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::RollbackStarted => "rollback_started",
            Self::RollbackPaused => "rollback_paused",
            Self::RollbackCompleted => "rollback_completed",
        }
    }
    /// Tasks are being replaced.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Updating | Self::RollbackStarted)
    }
    /// It stopped because of failures.
    #[must_use]
    pub fn is_paused(self) -> bool {
        matches!(self, Self::Paused | Self::RollbackPaused)
    }
    /// It goes on, or waits for its user's word.
    #[must_use]
    pub fn is_open(self) -> bool {
        self.is_active() || self.is_paused()
    }
    /// To the spec before.
    #[must_use]
    pub fn is_rollback(self) -> bool {
        matches!(self, Self::RollbackStarted | Self::RollbackPaused | Self::RollbackCompleted)
    }
}

impl ServiceUpdate {
    /// Users see it: it has begun, or they have asked for the rollback themselves.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        self.started_at.is_some() || self.state.is_rollback()
    }
    /// An update that the orchestrator has not begun yet.
    #[must_use]
    pub fn requested(rollback: bool) -> Self {
        let (state, message) = if rollback {
            (UpdateState::RollbackStarted, "manually requested rollback")
        } else {
            (UpdateState::Updating, "update in progress")
        };
        Self { state, started_at: None, completed_at: None, message: message.to_owned(), dirty: 0, failed: 0 }
    }
}

/// What a user's update is to the orchestrator: found by the manager that takes it, with the spec that it replaces at hand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct SpecChange {
    /// Tasks of the spec before do not do for the new one.
    pub replaces_tasks: bool,
    /// The previous spec is to be the spec again.
    pub rollback: bool,
    /// Set for a job: it runs again, as of then.
    pub job_run_at: Option<Timestamp>,
}

impl SpecChange {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The runs of a job.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct JobStatus {
    /// Number of the run, from 0. Any update of the service starts another one.
    pub iteration: u64,
    pub last_execution: Timestamp,
}

/// How the tasks of a service are replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    /// Tasks replaced at the same time; 0 for all.
    pub parallelism: u64,
    /// Time between two replacements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// `pause`, `continue` or `rollback`.
    pub failure_action: String,
    /// Time after its start in which the end of a task is a failure of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Nanos>,
    /// Share of failed tasks, 0 to 1, from which on the update has failed. A number as JSON writes it, because it is shown
    /// as it was posted.
    pub max_failure_ratio: serde_json::Number,
    /// `stop-first` or `start-first`.
    pub order: String,
}

/// Monitor time of a config that sets none, or zero.
pub const DEFAULT_MONITOR: Duration = Duration::from_secs(5);

impl Default for UpdateConfig {
    /// What a service without the object is updated by.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: None,
            failure_action: "pause".to_owned(),
            monitor: Some(DEFAULT_MONITOR.into()),
            max_failure_ratio: 0.into(),
            order: "stop-first".to_owned(),
        }
    }
}

impl UpdateConfig {
    /// Time from the start of a slot's task to the next slot.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay.map_or(Duration::ZERO, Nanos::duration)
    }
    /// Time in which the end of a task is a failure, the same for every slot: the longer of monitor time and delay. Also the
    /// time in which a task must have been placed.
    #[must_use]
    pub fn failure_window(&self) -> Duration {
        let monitor = self.monitor.map(Nanos::duration).filter(|monitor| !monitor.is_zero());
        monitor.unwrap_or(DEFAULT_MONITOR).max(self.delay())
    }
    /// The new task runs before the old one is stopped.
    #[must_use]
    pub fn starts_first(&self) -> bool {
        self.order == "start-first"
    }
    /// More than the tolerated share of the slots has failed.
    #[must_use]
    pub fn is_exceeded(&self, failed: u64, dirty: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a share of a number of tasks")]
        let (failed, dirty) = (failed as f64, dirty.max(1) as f64);
        failed > 0.0 && failed / dirty > self.max_failure_ratio.as_f64().unwrap_or(0.0)
    }
}
