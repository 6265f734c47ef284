//! Whether raft's thread goes on. A disk that does not answer holds it for as long as it likes, and with it the status that all others
//! go by: the other managers elect a leader meanwhile, and this one must not be taken for it.

use super::config::{RaftConfig, RaftStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// So long without a turn is a problem to be named. Before that the disk may only be slow.
const PROBLEM: Duration = Duration::from_secs(5);

/// When raft's thread was last seen to go on.
#[derive(Debug)]
pub(super) struct Turns {
    start: Instant,
    /// Milliseconds after the start.
    last: AtomicU64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }
}

impl Turns {
    pub fn note(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    /// Since the last one.
    pub fn silence(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.last.load(Ordering::Relaxed)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// What a silence of the thread means.
#[derive(Clone, Debug)]
pub(super) struct SilenceLimits {
    /// The others have elected a leader by then, if they could.
    pub election: Duration,
    /// All that was proposed has timed out by then.
    propose: Duration,
    /// For users.
    problem: String,
}

impl SilenceLimits {
    pub fn new(config: &RaftConfig) -> Self {
        let ticks = u32::try_from(config.election_ticks.1 + config.heartbeat_ticks).unwrap_or(u32::MAX);
        let file = config.dir.join(super::FILE);
        Self {
            election: config.tick.saturating_mul(ticks),
            propose: config.propose_timeout,
            problem: format!(
                "raft does not go on, most likely because the disk of {} does not answer: this manager takes no part until it does; if it does not, restart or replace this host",
                file.display()
            ),
        }
    }

    /// The status after this silence of the thread that has published it.
    fn apply(&self, status: &mut RaftStatus, silence: Duration) -> bool {
        let before = status.clone();
        // No other can lead in the place of a manager that is alone.
        let is_alone = status.voters == [status.id];
        if silence > self.election && !is_alone {
            without_leader(status);
        }
        if silence > if is_alone { self.propose } else { PROBLEM.max(self.election) } && status.problem.is_none() {
            status.problem = Some(self.problem.clone());
        }
        *status != before
    }
}

/// What a manager knows of the lead that has heard none of the others for longer than an election takes.
pub(super) fn without_leader(status: &mut RaftStatus) {
    (status.leader, status.is_leader, status.lost_leader, status.hears_majority) = (None, false, None, false);
}

/// What follows the turns of a thread.
pub(super) struct TurnsWatch {
    /// Not the sender itself: it is dropped when the file is closed.
    pub status: Weak<watch::Sender<RaftStatus>>,
    pub turns: Arc<Turns>,
    pub limits: SilenceLimits,
}

impl TurnsWatch {
    /// Publishes what the thread's silence means, until it has ended. Its next turn publishes what is true again.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(self.limits.election / 4).await;
            let Some(status) = self.status.upgrade() else { return };
            let problem = status.borrow().problem.is_some();
            status.send_if_modified(|status| self.limits.apply(status, self.turns.silence()));
            if let Some(problem) = status.borrow().problem.as_deref().filter(|_| !problem) {
                tracing::error!(problem, "raft does not go on");
            }
        }
    }
}

#[test]
fn a_thread_that_is_silent_leads_no_more_unless_it_is_alone() {
    let limits = SilenceLimits::new(&RaftConfig::new("/data", 1));
    assert_eq!(limits.election, Duration::from_millis(800));
    let status = |voters: &[u64]| RaftStatus {
        id: 1,
        leader: Some(1),
        is_leader: true,
        hears_majority: true,
        voters: voters.to_vec(),
        ..RaftStatus::default()
    };
    let after = |voters: &[u64], millis| {
        let mut after = status(voters);
        let changed = limits.apply(&mut after, Duration::from_millis(millis));
        assert_eq!(changed, after != status(voters));
        (after.is_leader, after.leader, after.problem.is_some())
    };
    assert_eq!(after(&[1, 2, 3], 700), (true, Some(1), false));
    assert_eq!(after(&[1, 2, 3], 900), (false, None, false));
    assert_eq!(after(&[1, 2, 3], 6_000), (false, None, true));
    assert_eq!(after(&[1], 6_000), (true, Some(1), false), "its writes are late, and no other is there");
    assert_eq!(after(&[1], 21_000), (true, Some(1), true));
    let mut named = RaftStatus { problem: Some("no space".to_owned()), ..status(&[1, 2, 3]) };
    limits.apply(&mut named, Duration::from_mins(1));
    assert_eq!(named.problem.as_deref(), Some("no space"), "what was known before");
}
