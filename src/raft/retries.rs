//! How long raft pauses after what is no failure of its disk: a snapshot of the leader that cannot be read, a bug.

use std::time::{Duration, Instant};

/// Failures within this time count.
const WINDOW: Duration = Duration::from_mins(1);
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// With so many failures within the window, a bug is one that comes again.
const BUGS: usize = 5;

/// The last failures, and those of them that were bugs.
#[derive(Default, Debug)]
pub(super) struct Retries {
    all: Vec<Instant>,
    bugs: Vec<Instant>,
}

impl Retries {
    /// The pause after a failure that may pass: each is twice as long as the one before.
    pub fn after_failure(&mut self, now: Instant) -> Duration {
        for failures in [&mut self.all, &mut self.bugs] {
            failures.retain(|failed| now.saturating_duration_since(*failed) < WINDOW);
        }
        let pause = FIRST.saturating_mul(1 << self.all.len().min(8)).min(LONGEST);
        self.all.push(now);
        pause
    }

    /// The pause after a bug; `None` if it came too often.
    pub fn after_bug(&mut self, now: Instant) -> Option<Duration> {
        let pause = self.after_failure(now);
        self.bugs.push(now);
        Some(pause).filter(|_| self.bugs.len() < BUGS)
    }
}

#[test]
fn pauses_grow_and_a_bug_that_comes_again_and_again_is_the_end() {
    let (start, seconds) = (Instant::now(), Duration::from_secs);
    let mut retries = Retries::default();
    let pauses: Vec<_> = [0, 1, 3, 7, 15, 31].map(|at| retries.after_failure(start + seconds(at)).as_secs()).into();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30]);
    assert_eq!(retries.after_failure(start + seconds(200)), seconds(1), "what is long ago does not count");

    let mut retries = Retries::default();
    let pauses = [0, 1, 3, 7, 15].map(|at| retries.after_bug(start + seconds(at)).map(|pause| pause.as_secs()));
    assert_eq!(pauses, [Some(1), Some(2), Some(4), Some(8), None]);
    let mut retries = Retries::default();
    for second in 0..8 {
        retries.after_failure(start + seconds(second));
    }
    assert_eq!(retries.after_bug(start + seconds(9)), Some(LONGEST), "snapshots that cannot be read are no bugs");
    let mut retries = Retries::default();
    assert!((0..100).all(|n| retries.after_bug(start + seconds(20 * n)).is_some()), "one now and then");
}
