//! Whether and when a new task follows one that ended. Decided from the task objects alone, so that a new leader decides
//! the same; the reaper keeps as many of them as that takes.

use crate::model::task::{DEFAULT_RESTART_DELAY, RestartCondition};
use crate::model::{Nanos, Task, TaskState, Timestamp};
use std::time::Duration;

/// True if the container ended without being asked to, or could not be run at all.
fn ended_on_its_own(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Whether a new task follows this one. `slot` has all tasks of its slot, oldest first.
///
/// As in Swarm, `none` means never, even when the node is lost. Only ends of the task count as attempts: a drained node
/// uses up none.
pub(super) fn should_restart(task: &Task, slot: &[&Task], now: Timestamp) -> bool {
    let policy = task.spec.restart_policy.clone().unwrap_or_default();
    match policy.condition.unwrap_or_default() {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if task.status.state == TaskState::Complete => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    let max = policy.max_attempts.unwrap_or(0);
    if max == 0 || !ended_on_its_own(task) {
        return true;
    }
    let window = policy.window.map(Nanos::duration).filter(|w| !w.is_zero());
    attempts(task, slot, window.map(|w| (now, w))) < max
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

/// Time between the end of a task and the start of the next one.
pub(super) fn delay(task: &Task) -> Duration {
    let policy = task.spec.restart_policy.as_ref();
    policy.and_then(|p| p.delay).map_or(DEFAULT_RESTART_DELAY, Nanos::duration)
}

/// Number of tasks of a slot that must be kept to count attempts, the live one included; `None` if attempts are not
/// limited.
pub fn history_needed(task: &Task) -> Option<usize> {
    let policy = task.spec.restart_policy.as_ref()?;
    let max = policy.max_attempts.filter(|m| *m > 0)?;
    (policy.condition.unwrap_or_default() != RestartCondition::None)
        .then(|| usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX))
}
