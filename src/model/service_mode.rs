//! How many tasks a service has, and where.

use serde::{Deserialize, Serialize};

/// How many tasks a service has. Exactly one field is set.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    /// A fixed number of tasks, on any nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
    /// A task on every node that may run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global: Option<Global>,
    /// Tasks that run to their end, a fixed number in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated_job: Option<ReplicatedJob>,
    /// A task that runs to its end, on every node that may run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_job: Option<Global>,
}

/// Replicated mode.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Replicated {
    /// Number of tasks; the API sets 1 if none was posted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

/// A mode without parameters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Global {}

/// Replicated job.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ReplicatedJob {
    /// Tasks at the same time; the API sets 1 if none was posted. With 0 nothing runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u64>,
    /// Tasks that complete in all; the API sets `max_concurrent` if none was posted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_completions: Option<u64>,
}

impl ReplicatedJob {
    #[must_use]
    pub fn concurrent(self) -> u64 {
        self.max_concurrent.unwrap_or(1)
    }
    #[must_use]
    pub fn total(self) -> u64 {
        self.total_completions.unwrap_or_else(|| self.concurrent())
    }
}

impl ServiceMode {
    /// Desired number of tasks of a replicated service; 0 for the other modes.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        let is_other = self.global.is_some() || self.is_job();
        self.replicated.map_or(u64::from(!is_other), |r| r.replicas.unwrap_or(1))
    }
    /// Its tasks run to their end.
    #[must_use]
    pub fn is_job(&self) -> bool {
        self.replicated_job.is_some() || self.global_job.is_some()
    }
    /// A task per node.
    #[must_use]
    pub fn is_global(&self) -> bool {
        self.global.is_some() || self.global_job.is_some()
    }
    /// Docker's name of the mode, as filters have it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self { global: Some(_), .. } => "global",
            Self { replicated_job: Some(_), .. } => "replicated-job",
            Self { global_job: Some(_), .. } => "global-job",
            _ => "replicated",
        }
    }
}
