//! Which ends of a task are followed by another attempt, and after which delay. The managers decide by it, and a node while it has no
//! session with one.

use super::task::{DEFAULT_RESTART_DELAY, EarlierFailures, RestartCondition, RestartPolicy};
use super::{Nanos, TaskState};
use std::time::Duration;

/// A task that ran for so long before it failed ran well: it is not part of a crash loop.
pub const RAN_WELL: Duration = Duration::from_mins(1);
/// Longest delay in a crash loop, unless the policy's own is longer.
const LONGEST_DELAY: Duration = Duration::from_mins(1);
/// A shorter delay of the policy grows from this one.
const SHORTEST_GROWN: Duration = Duration::from_secs(1);

impl RestartPolicy {
    /// Whether another attempt follows a task that ended by itself in this state, as long as attempts are left.
    #[must_use]
    pub fn follows(&self, state: TaskState) -> bool {
        match self.condition.unwrap_or_default() {
            RestartCondition::None => false,
            RestartCondition::OnFailure => state != TaskState::Complete,
            RestartCondition::Any => true,
        }
    }

    /// Most attempts; `None`: no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.max_attempts.filter(|max| *max > 0)
    }

    /// Period in which they are counted; `None`: all are.
    #[must_use]
    pub fn counted_in(&self) -> Option<Duration> {
        self.window.map(Nanos::duration).filter(|window| !window.is_zero())
    }

    /// Time between an end and the next start, after so many failures in a row. It grows in a crash loop.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let configured = self.delay.map_or(DEFAULT_RESTART_DELAY, Nanos::duration);
        let Some(doublings) = failures.checked_sub(EarlierFailures::PATIENCE).filter(|n| *n > 0) else { return configured };
        let grown = configured.max(SHORTEST_GROWN).saturating_mul(1 << doublings.min(16));
        grown.min(configured.max(LONGEST_DELAY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_says_which_ends_are_followed() {
        for (condition, complete, failed) in [
            (None, true, true),
            (Some(RestartCondition::Any), true, true),
            (Some(RestartCondition::OnFailure), false, true),
            (Some(RestartCondition::None), false, false),
        ] {
            let policy = RestartPolicy { condition, ..RestartPolicy::default() };
            let follows = [TaskState::Complete, TaskState::Failed, TaskState::Rejected].map(|state| policy.follows(state));
            assert_eq!(follows, [complete, failed, failed], "{condition:?}");
        }
    }

    #[test]
    fn delays_grow_after_some_failures_up_to_a_minute_or_the_policys_own() {
        let seconds = |delay: Option<u64>| {
            let delay = delay.map(|s| Duration::from_secs(s).into());
            let policy = RestartPolicy { delay, ..RestartPolicy::default() };
            [0, 1, 3, 4, 5, 6, 8, 1000].map(|failures| policy.pause(failures).as_secs())
        };
        assert_eq!(seconds(None), [5, 5, 5, 10, 20, 40, 60, 60]);
        assert_eq!(seconds(Some(0)), [0, 0, 0, 2, 4, 8, 32, 60]);
        assert_eq!(seconds(Some(90)), [90, 90, 90, 90, 90, 90, 90, 90]);
    }
}
