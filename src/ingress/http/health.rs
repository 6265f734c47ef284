//! Which tasks get requests: one that fails is left out for a time, one that has just come gets fewer at first.
//!
//! [`HealthBook`] decides, from what is recorded and the time that it is given; [`ServiceHealth`] shares it among requests.

use crate::model::TaskId;
use crate::model::http::HttpBackend;
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Failures one after the other that a task is left out after.
const FAILURES: u32 = 5;
/// How long it is left out the first time, and at most, in milliseconds; each time twice as long.
const FIRST_OUT_MS: u64 = 5_000;
const LONGEST_OUT_MS: u64 = 300_000;
/// A task that did not fail for so long is left out as for the first time, in milliseconds.
const FORGIVEN_MS: u64 = 300_000;
/// Checks one after the other that change what is known of a task.
const CHECKS: u32 = 2;
/// Of a task that has just come, in hundredths of its share.
const LEAST_SHARE: u64 = 10;

/// What is known of the tasks of a service.
#[derive(Default, Debug)]
struct HealthBook {
    tasks: BTreeMap<TaskId, HealthRecord>,
    /// A table was followed: what comes later is new.
    followed: bool,
}

#[derive(Clone, Default, Debug)]
struct HealthRecord {
    /// When it came or came back; `None`: it was there before this process.
    since: Option<u64>,
    failures: u32,
    times_out: u32,
    out_until: u64,
    /// Results of checks that differ from `unhealthy`, one after the other.
    differing: u32,
    /// Checks say so.
    unhealthy: bool,
}

impl HealthBook {
    fn follow<'a>(&mut self, tasks: impl Iterator<Item = &'a TaskId>, now: u64) {
        let since = self.followed.then_some(now);
        self.followed = true;
        let mut before = std::mem::take(&mut self.tasks);
        for task in tasks {
            let kept = before.remove(task).unwrap_or(HealthRecord { since, ..HealthRecord::default() });
            self.tasks.insert(task.clone(), kept);
        }
    }

    /// A request to a task has succeeded or failed.
    fn record(&mut self, task: &TaskId, succeeded: bool, now: u64) {
        let Some(record) = self.tasks.get_mut(task) else { return };
        if succeeded {
            record.failures = 0;
            return;
        }
        record.failures += 1;
        // While it is left out, requests may come that were under way.
        if record.failures < FAILURES || now < record.out_until {
            return;
        }
        if now >= record.out_until + FORGIVEN_MS {
            record.times_out = 0;
        }
        let length = (FIRST_OUT_MS << record.times_out.min(10)).min(LONGEST_OUT_MS);
        record.times_out += 1;
        record.out_until = now + length;
        record.since = Some(record.out_until);
        // The first failure after that is enough.
        record.failures = FAILURES - 1;
    }

    /// A check of a task has passed or failed.
    fn record_check(&mut self, task: &TaskId, passed: bool, now: u64) {
        let Some(record) = self.tasks.get_mut(task) else { return };
        record.differing = if passed == record.unhealthy { record.differing + 1 } else { 0 };
        if record.differing >= CHECKS {
            record.unhealthy = !passed;
            record.differing = 0;
            if passed {
                record.since = Some(now);
            }
        }
    }

    fn is_out(&self, task: &TaskId, now: u64) -> bool {
        self.tasks.get(task).is_some_and(|record| record.unhealthy || now < record.out_until)
    }

    /// The tasks that get no requests; none of them if all would get none.
    fn left_out<'a>(&self, tasks: impl Iterator<Item = &'a TaskId>, now: u64) -> Vec<TaskId> {
        let (mut out, mut all) = (Vec::new(), 0);
        for task in tasks {
            all += 1;
            if self.is_out(task, now) {
                out.push(task.clone());
            }
        }
        if out.len() == all { Vec::new() } else { out }
    }

    /// Whether a task that has not come long ago passes this turn on to another one.
    fn passes_on(&self, task: &TaskId, slow_start_ms: u64, turn: usize, now: u64) -> bool {
        let Some(since) = self.tasks.get(task).and_then(|record| record.since) else { return false };
        let share = (now.saturating_sub(since) * 100 / slow_start_ms.max(1)).max(LEAST_SHARE);
        // A step that meets each hundredth once in a hundred turns, whichever of them are the task's.
        (turn as u64).wrapping_mul(61) / 7 % 100 >= share
    }

    /// Something is to be remembered of a task.
    fn is_troubled(&self, now: u64) -> bool {
        self.tasks
            .values()
            .any(|record| record.unhealthy || record.differing > 0 || record.failures > 0 || now < record.out_until)
    }
}

/// The tasks of a service, for one port. It outlives a change of the table.
#[derive(Debug)]
pub(super) struct ServiceHealth {
    book: Mutex<HealthBook>,
    /// Without trouble a request need not ask.
    troubled: AtomicBool,
    began: Instant,
}

impl Default for ServiceHealth {
    fn default() -> Self {
        Self { book: Mutex::default(), troubled: AtomicBool::new(false), began: Instant::now() }
    }
}

impl ServiceHealth {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The tasks that there are now.
    pub fn follow(&self, backends: &[HttpBackend]) {
        lock(&self.book).follow(backends.iter().map(|backend| &backend.task_id), self.now());
    }

    /// A request to a task has succeeded or failed.
    pub fn record(&self, task: &TaskId, succeeded: bool) {
        if succeeded && !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        self.change(|book, now| book.record(task, succeeded, now));
    }

    /// A check of a task has passed or failed.
    pub fn record_check(&self, task: &TaskId, passed: bool) {
        if passed && !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        self.change(|book, now| book.record_check(task, passed, now));
    }

    fn change(&self, change: impl FnOnce(&mut HealthBook, u64)) {
        let (now, mut book) = (self.now(), lock(&self.book));
        change(&mut book, now);
        self.troubled.store(book.is_troubled(now), Ordering::Relaxed);
    }

    /// The tasks that get no requests now.
    pub fn left_out(&self, backends: &[HttpBackend]) -> Vec<TaskId> {
        if !self.troubled.load(Ordering::Relaxed) {
            return Vec::new();
        }
        lock(&self.book).left_out(backends.iter().map(|backend| &backend.task_id), self.now())
    }

    /// Whether a task passes a turn on to another one because it has just come.
    pub fn passes_on(&self, task: &TaskId, slow_start_ms: Option<u64>, turn: usize) -> bool {
        slow_start_ms.is_some_and(|slow| lock(&self.book).passes_on(task, slow, turn, self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<TaskId> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn book(names: &[&str]) -> HealthBook {
        let mut book = HealthBook::default();
        book.follow(ids(names).iter(), 0);
        book
    }

    #[test]
    fn a_task_that_fails_is_left_out_for_longer_each_time_and_comes_back() {
        let (mut book, tasks) = (book(&["a", "b"]), ids(&["a", "b"]));
        let out = |book: &HealthBook, now| book.left_out(tasks.iter(), now);
        for _ in 1..FAILURES {
            book.record(&tasks[0], false, 0);
        }
        book.record(&tasks[0], true, 0);
        book.record(&tasks[0], false, 0);
        assert_eq!(out(&book, 0), [], "not one after the other");
        let mut now = 1000;
        for length in [5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000] {
            while out(&book, now).is_empty() {
                book.record(&tasks[0], false, now);
            }
            book.record(&tasks[0], false, now + 1);
            assert_eq!((out(&book, now + length - 1).len(), out(&book, now + length).len()), (1, 0), "{length}");
            now += length;
        }
        book.record(&tasks[0], true, now);
        assert!(!book.is_troubled(now));
        now += FORGIVEN_MS;
        for _ in 0..FAILURES {
            book.record(&tasks[0], false, now);
        }
        assert_eq!((out(&book, now + 4_999).len(), out(&book, now + 5_000).len()), (1, 0), "forgiven");
    }

    #[test]
    fn never_are_all_left_out_and_a_task_that_is_gone_is_forgotten() {
        let (mut book, tasks) = (book(&["a", "b"]), ids(&["a", "b"]));
        for task in &tasks {
            for _ in 0..FAILURES {
                book.record(task, false, 0);
            }
        }
        assert_eq!(book.left_out(tasks.iter(), 1), []);
        assert_eq!(book.left_out([&tasks[0], &"c".into()].into_iter(), 1), [tasks[0].clone()]);
        book.follow([&tasks[1]].into_iter(), 2);
        book.follow(tasks.iter(), 3);
        assert!(!book.is_out(&tasks[0], 3) && book.is_out(&tasks[1], 3));
    }

    #[test]
    fn checks_change_what_is_known_after_two_of_the_same() {
        let (mut book, tasks) = (book(&["a", "b"]), ids(&["a", "b"]));
        let mut states = Vec::new();
        for passed in [false, true, false, false, true, false, true, true] {
            book.record_check(&tasks[0], passed, 0);
            states.push(book.is_out(&tasks[0], 0));
        }
        assert_eq!(states, [false, false, false, true, true, true, true, false]);
    }

    #[test]
    fn a_task_that_has_just_come_gets_a_growing_share() {
        let mut book = book(&["a"]);
        book.follow(ids(&["a", "b"]).iter(), 1000);
        for of_two in [0, 1] {
            let share = |task: &str, now| {
                let passes = |turn: &usize| !book.passes_on(&task.into(), 10_000, *turn, now);
                (0..2000).map(|turn| turn * 2 + of_two).filter(passes).count() / 20
            };
            assert_eq!((share("a", 1000), share("a", 20_000)), (100, 100));
            let growing: Vec<usize> = [1000, 4000, 6000, 11_000].into_iter().map(|now| share("b", now)).collect();
            assert!(growing.iter().zip([10, 30, 50, 100]).all(|(share, expected)| share.abs_diff(expected) <= 2), "{growing:?}");
        }
    }
}
