//! When a task that ended is followed by a new one. Decided from the task objects alone, so that a new leader decides
//! the same; the reaper keeps enough of them.

use crate::model::task::{DEFAULT_RESTART_DELAY, RestartCondition};
use crate::model::{Nanos, Task, TaskState, Timestamp};
use std::time::Duration;

/// True if the container ended without being asked to (or could not be run at all).
pub fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// Oldest first; of two made at the same time the live one is the newer.
pub fn by_age(a: &Task, b: &Task) -> std::cmp::Ordering {
    let key = |t: &Task| (t.meta.created_at, t.desired_state <= TaskState::Running);
    key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
}

/// Whether a new task follows this one. `slot` holds all tasks of its slot, oldest first.
///
/// As in Swarm `none` means never, a lost node included. Attempts count only ends of the task's own doing: a drained
/// node uses up none.
pub fn should_restart(task: &Task, slot: &[&Task], now: Timestamp) -> bool {
    let policy = task.spec.restart_policy.clone().unwrap_or_default();
    match policy.condition.unwrap_or_default() {
        RestartCondition::None => return false,
        RestartCondition::OnFailure if task.status.state == TaskState::Complete => return false,
        RestartCondition::OnFailure | RestartCondition::Any => {}
    }
    let max = policy.max_attempts.unwrap_or(0);
    if max == 0 || !ended_by_itself(task) {
        return true;
    }
    let window = policy.window.map(Nanos::duration).filter(|w| !w.is_zero());
    attempts(task, slot, window.map(|w| (now, w))) < max
}

/// Restarts that led to this task: tasks of the same template whose predecessor ended by itself; within the window
/// only those made in it.
fn attempts(task: &Task, slot: &[&Task], window: Option<(Timestamp, Duration)>) -> u64 {
    let same: Vec<&&Task> = slot.iter().filter(|t| t.spec_version == task.spec_version).collect();
    let restarts = same.windows(2).filter(|pair| {
        let recent = window.is_none_or(|(now, window)| now.since(pair[1].meta.created_at) < window);
        ended_by_itself(pair[0]) && by_age(pair[1], task).is_le() && recent
    });
    restarts.count() as u64
}

/// Time between the end and the new start.
pub fn delay(task: &Task) -> Duration {
    let policy = task.spec.restart_policy.as_ref();
    policy.and_then(|p| p.delay).map_or(DEFAULT_RESTART_DELAY, Nanos::duration)
}

/// Finished tasks that have to be kept for counting attempts, the live one included; `None` if none have to.
pub fn history_needed(task: &Task) -> Option<usize> {
    let policy = task.spec.restart_policy.as_ref()?;
    let max = policy.max_attempts.filter(|m| *m > 0)?;
    (policy.condition.unwrap_or_default() != RestartCondition::None)
        .then(|| usize::try_from(max.saturating_add(1)).unwrap_or(usize::MAX))
}
