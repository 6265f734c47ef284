//! Whether and when a new task follows one that ended. Decided from the task objects alone, so that a new leader decides
//! the same; the reaper keeps as many of them as that takes.

use crate::model::restart::RAN_WELL;
use crate::model::task::{EarlierFailures, RestartCondition};
use crate::model::{Task, TaskState, Timestamp};
use std::time::Duration;

/// True if the container ended without being asked to, or could not be run at all. An eviction is a move.
pub(super) fn ended_on_its_own(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected) && !task.is_evicted()
}

/// Whether a new task follows this one. `slot` has all tasks of its slot, oldest first.
///
/// The policy is about tasks that ended by themselves. A task that lost its node is followed by another one under every policy,
/// and uses up no attempt.
pub(super) fn should_restart(task: &Task, slot: &[&Task], now: Timestamp) -> bool {
    if !ended_on_its_own(task) {
        return true;
    }
    let policy = task.spec.restart_policy.clone().unwrap_or_default();
    if !policy.follows(task.status.state) {
        return false;
    }
    policy.limit().is_none_or(|max| attempts(task, slot, policy.counted_in().map(|window| (now, window))) < max)
}

/// Restarts up to this task: tasks of the same template whose predecessor ended on its own. With a window only those
/// created within it.
fn attempts(task: &Task, slot: &[&Task], window: Option<(Timestamp, Duration)>) -> u64 {
    let mut same: Vec<&&Task> = slot.iter().filter(|t| t.spec_version == task.spec_version).collect();
    if let Some(position) = same.iter().position(|t| t.id == task.id) {
        same.truncate(position + 1);
    }
    let restarts = same.windows(2).filter(|pair| {
        let recent = window.is_none_or(|(now, window)| now.since(pair[1].meta.created_at) < window);
        ended_on_its_own(pair[0]) && recent
    });
    restarts.count() as u64
}

/// Failures in a row up to this task, which has ended or lost its node: what its successor of this version of the spec is
/// created with.
pub(super) fn failures_after(task: &Task, spec_version: u64, now: Timestamp) -> EarlierFailures {
    if task.spec_version != spec_version {
        return EarlierFailures::default();
    }
    match task.status.state {
        TaskState::Failed | TaskState::Rejected => {
            let waited = if task.failures.is_none() { Duration::ZERO } else { delay(task, &task.failures) };
            let ran_well = task.status.state == TaskState::Failed && now.since(task.meta.created_at.plus(waited)) >= RAN_WELL;
            let mut failures = if ran_well { EarlierFailures::default() } else { task.failures.clone() };
            failures.add(task.node_id.as_ref(), task.status.state);
            failures
        }
        TaskState::Complete => EarlierFailures::default(),
        // It lost its node, or was stopped: nothing is known of it.
        _ => task.failures.clone(),
    }
}

/// Time between the end of a task and the start of the next one. It grows in a crash loop.
pub(super) fn delay(task: &Task, failures: &EarlierFailures) -> Duration {
    task.spec.restart_policy.clone().unwrap_or_default().pause(failures.count)
}

/// The task counts as an attempt when it is decided what follows another one of its slot.
pub fn is_attempt(task: &Task, newest: &Task) -> bool {
    task.spec_version == newest.spec_version && ended_on_its_own(task)
}

/// Number of tasks of a slot that must be kept to count attempts, the live one included; `None` if attempts are not
/// limited.
pub fn history_needed(task: &Task) -> Option<usize> {
    let policy = task.spec.restart_policy.as_ref()?;
    let max = policy.limit()?;
    (policy.condition.unwrap_or_default() != RestartCondition::None)
        .then(|| usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX))
}
