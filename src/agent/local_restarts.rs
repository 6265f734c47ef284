//! Restarts that a node decides by itself while it has no session with a manager: an ended container is started again, as its task's
//! policy says. An end that is followed here is not reported, so no manager replaces the task; one that this run has reported is the
//! managers' to follow. An end that this run has not seen may have been reported by the run before it, and its node may have been away for
//! so long that another one runs the task: it is followed much later. Tasks of jobs are left to the managers, who know what is done. Pure.

use crate::model::restart::RAN_WELL;
use crate::model::{Task, TaskState, Timestamp};
use std::time::Duration;

/// Time without a session after which the node decides. The managers elect a leader in less.
pub const ALONE_AFTER: Duration = Duration::from_secs(5);
/// Further time for an end that this run has not seen: a host that comes up again finds the managers in less, if there are any.
const UNSEEN_AFTER: Duration = Duration::from_secs(15);
/// Restarts of a task whose times are remembered.
const REMEMBERED: usize = 1000;

/// What a node has restarted of a task.
#[derive(Clone, Default, Debug)]
pub struct LocalRestarts {
    /// When, oldest first: the last ones.
    at: Vec<Timestamp>,
    /// How many.
    count: u64,
    /// This run has seen the container running.
    ran: bool,
    /// The engine is asked to start it again.
    starting: bool,
    /// Failures in a row before the last start.
    in_a_row: u32,
    /// When the end of the container was seen; `None` while it runs.
    ended: Option<Timestamp>,
}

impl LocalRestarts {
    /// The container runs, or has ended.
    pub fn seen(&mut self, runs: bool, now: Timestamp) {
        self.ran |= runs;
        self.ended = if runs { None } else { self.ended.or(Some(now)) };
    }

    /// When the task is started again, if a node without managers may do so from `alone_from` on; `None` if what follows this end is
    /// not the node's to decide.
    #[must_use]
    pub fn next(&self, task: &Task, end: TaskState, alone_from: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let alone_from = alone_from?.plus(if self.ran { Duration::ZERO } else { UNSEEN_AFTER });
        let policy = task.spec.restart_policy.clone().unwrap_or_default();
        if task.desired_state != TaskState::Running || task.job_iteration.is_some() || !policy.follows(end) {
            return None;
        }
        // What its predecessors failed at is counted as long as the task itself is within the window.
        let before = u64::from(task.failures.count);
        let used = match policy.counted_in() {
            None => before + self.count,
            Some(window) => {
                let is_within = |at: Timestamp| now.since(at) < window;
                let recent = self.at.iter().filter(|at| is_within(**at)).count() as u64;
                recent + if is_within(task.meta.created_at) { before } else { 0 }
            }
        };
        if policy.limit().is_some_and(|max| used >= max) {
            return None;
        }
        let ended = self.ended.unwrap_or(now);
        Some(ended.plus(policy.pause(self.failures(task, ended))).max(alone_from))
    }

    /// The engine is asked to start the container again.
    pub fn start(&mut self) {
        self.starting = true;
    }

    /// The engine has answered a request to start the container. One that was carried out, and was to start it again, uses up an
    /// attempt.
    pub fn answered(&mut self, task: &Task, is_done: bool, now: Timestamp) {
        if std::mem::take(&mut self.starting) && is_done {
            self.begin(task, now);
        }
    }

    fn begin(&mut self, task: &Task, now: Timestamp) {
        self.in_a_row = self.failures(task, self.ended.unwrap_or(now)).saturating_add(1);
        (self.ended, self.ran) = (None, true);
        self.count += 1;
        if self.at.len() == REMEMBERED {
            self.at.remove(0);
        }
        self.at.push(now);
    }

    /// Failures in a row before one at this time.
    fn failures(&self, task: &Task, ended: Timestamp) -> u32 {
        match self.at.last() {
            None => task.failures.count,
            Some(last) if ended.since(*last) >= RAN_WELL => 0,
            Some(_) => self.in_a_row,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, task};
    use super::*;
    use crate::model::task::{RestartCondition, RestartPolicy};
    use std::sync::Arc;

    fn with(policy: RestartPolicy) -> Task {
        let mut task = task("t1");
        Arc::make_mut(&mut task.spec).restart_policy = Some(policy);
        task
    }

    /// Times at which a container that ends `runs` seconds after each start is started, in seconds; at most so many.
    fn starts(task: &Task, end: TaskState, runs: i64, most: usize) -> Vec<i64> {
        let (mut restarts, mut now, mut starts) = (LocalRestarts::default(), at(100), Vec::new());
        restarts.seen(true, at(99));
        while starts.len() < most {
            restarts.seen(false, now);
            let Some(next) = restarts.next(task, end, Some(at(0)), now) else { break };
            restarts.start();
            restarts.answered(task, true, next);
            starts.push(next.since(at(100)).as_secs().cast_signed());
            restarts.seen(true, next);
            now = next.plus(Duration::from_secs(runs.cast_unsigned()));
        }
        starts
    }

    #[test]
    fn delay_condition_attempts_and_window_are_the_policys() {
        let seconds = |s: u64| Some(Duration::from_secs(s).into());
        let policy = RestartPolicy { delay: seconds(2), ..RestartPolicy::default() };
        let failed = TaskState::Failed;
        assert_eq!(starts(&with(policy.clone()), failed, 1, 6), [2, 5, 8, 11, 16, 25], "a crash loop");
        assert_eq!(starts(&with(policy.clone()), failed, 60, 5), [2, 64, 126, 188, 250], "it runs well");
        let three = RestartPolicy { max_attempts: Some(3), ..policy.clone() };
        assert_eq!(starts(&with(three.clone()), failed, 1, 9), [2, 5, 8]);
        let mut used = with(three.clone());
        used.failures.count = 2;
        assert_eq!(starts(&used, failed, 1, 9), [2], "the managers have made two attempts");
        let window = RestartPolicy { max_attempts: Some(1), window: seconds(30), ..policy.clone() };
        assert_eq!(starts(&with(window.clone()), failed, 1, 9), [2]);
        assert_eq!(starts(&with(window.clone()), failed, 70, 3), [2, 74, 146]);
        let mut old = with(window);
        (old.failures.count, old.meta.created_at) = (1, at(0));
        assert_eq!(starts(&old, failed, 1, 9), [2], "what its predecessors failed at is out of the window");
        old.meta.created_at = at(99);
        assert_eq!(starts(&old, failed, 1, 9), [0_i64; 0]);
        let many = RestartPolicy { max_attempts: Some(1500), delay: seconds(0), ..policy.clone() };
        assert_eq!(starts(&with(many), failed, 70, 2000).len(), 1500, "more than are remembered");
        for (condition, end, is_followed) in [
            (RestartCondition::None, failed, false),
            (RestartCondition::OnFailure, failed, true),
            (RestartCondition::OnFailure, TaskState::Complete, false),
            (RestartCondition::Any, TaskState::Complete, true),
        ] {
            let task = with(RestartPolicy { condition: Some(condition), ..policy.clone() });
            assert_eq!(starts(&task, end, 1, 1).len(), usize::from(is_followed), "{condition:?} {end:?}");
        }
        let mut job = with(policy.clone());
        job.job_iteration = Some(1);
        for end in [TaskState::Complete, failed] {
            assert_eq!(starts(&job, end, 1, 1), [0_i64; 0]);
        }
        let mut stopped = with(policy);
        stopped.desired_state = TaskState::Shutdown;
        assert_eq!(starts(&stopped, failed, 1, 1), [0_i64; 0]);
    }

    #[test]
    fn a_node_decides_nothing_while_a_manager_may() {
        let (task, mut restarts) = (with(RestartPolicy::default()), LocalRestarts::default());
        assert_eq!(restarts.next(&task, TaskState::Failed, None, at(100)), None);
        let unseen = at(300).plus(UNSEEN_AFTER);
        assert_eq!(restarts.next(&task, TaskState::Failed, Some(at(300)), at(100)), Some(unseen), "of a run before this one");
        restarts.seen(true, at(100));
        assert_eq!(restarts.next(&task, TaskState::Failed, Some(at(300)), at(100)), Some(at(300)));
    }

    #[test]
    fn a_start_that_the_engine_does_not_carry_out_uses_up_no_attempt() {
        let task = with(RestartPolicy { max_attempts: Some(1), ..RestartPolicy::default() });
        let mut restarts = LocalRestarts::default();
        restarts.seen(true, at(1));
        for is_done in [false, true] {
            restarts.seen(false, at(100));
            assert!(restarts.next(&task, TaskState::Failed, Some(at(0)), at(100)).is_some());
            restarts.start();
            restarts.answered(&task, is_done, at(110));
        }
        assert_eq!(restarts.count, 1);
        restarts.answered(&task, true, at(110));
        assert_eq!(restarts.count, 1, "another call");
        restarts.seen(false, at(120));
        assert_eq!(restarts.next(&task, TaskState::Failed, Some(at(0)), at(120)), None);
    }
}
