//! Why a task was made, and why it ended: what `skep history` tells.

use serde::{Deserialize, Serialize};

/// Why the orchestrator made a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskCause {
    /// The service wants so many tasks: it was created or scaled.
    Replicas,
    /// The node may run a task of a global service, and had none.
    Node,
    /// The service was updated: it replaces a task of an older template.
    Update,
    /// The service was rolled back: it replaces a task of the newer template.
    Rollback,
    /// The task before it ended by itself, and the restart policy has another one follow.
    Restart,
    /// The task before it could not stay on its node: drained, down, removed, or no longer one that the constraints allow.
    Move,
    /// A run of a job.
    Job,
    /// `skep rebalance` moves the task before it.
    Rebalance,
}

impl TaskCause {
    /// For users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replicas => "the service wants another task",
            Self::Node => "the node may run the service",
            Self::Update => "update",
            Self::Rollback => "rollback",
            Self::Restart => "restart of a task that ended",
            Self::Move => "move from a node that cannot keep it",
            Self::Job => "run of the job",
            Self::Rebalance => "move by skep rebalance, to even out the nodes",
        }
    }
    /// It was made to take the place of another task.
    #[must_use]
    pub fn takes_over(self) -> bool {
        self.is_update() || matches!(self, Self::Move | Self::Rebalance)
    }
    /// The updater made it, and judges it.
    #[must_use]
    pub fn is_update(self) -> bool {
        matches!(self, Self::Update | Self::Rollback)
    }
}

/// Why a task ended, or is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskEnd {
    /// Its process ended, or could not be started: its status says more.
    Itself,
    /// It ended within the time in which the updater watches it, or did not listen as the task before it within the time that it has.
    FailedUpdate,
    /// No node could take it within the time in which the updater watches it. The task may still be waiting.
    Unplaced,
    /// An update or rollback replaced it.
    Replaced,
    /// The update or move that made it was given up before it served.
    Withdrawn,
    /// The service wants fewer tasks.
    Scaled,
    /// Its node was drained.
    Drained,
    /// Its node is down, has left or was removed.
    NodeLost,
    /// Its node is connected, applies no changes, and did not take it.
    NotTaken,
    /// Its node does not satisfy the placement any more.
    Evicted,
    /// Another task has its slot.
    Superseded,
    /// Its service was removed.
    ServiceRemoved,
    /// The job was started again.
    NewRun,
    /// `skep rebalance` has moved it.
    Rebalanced,
}

impl TaskEnd {
    /// The task was ended where it was, and not for what it did: another one may take its place, there too when that is possible again.
    #[must_use]
    pub fn is_move(self) -> bool {
        matches!(self, Self::Drained | Self::NodeLost | Self::NotTaken | Self::Evicted | Self::Superseded | Self::Rebalanced)
    }

    /// For users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Itself => "ended by itself",
            Self::FailedUpdate => "failed while the update watched it",
            Self::Unplaced => "not placed within the monitor time of the update",
            Self::Replaced => "replaced by an update or rollback",
            Self::Withdrawn => "withdrawn: its update was paused or rolled back, or its move came to nothing",
            Self::Scaled => "the service wants fewer tasks",
            Self::Drained => "its node was drained",
            Self::NodeLost => "its node is down, has left or was removed",
            Self::NotTaken => "its node applies no changes and did not take it",
            Self::Evicted => "its node no longer satisfies the placement",
            Self::Superseded => "another task has its slot",
            Self::ServiceRemoved => "its service was removed",
            Self::NewRun => "the job was started again",
            Self::Rebalanced => "moved by skep rebalance",
        }
    }
}
