//! Runs the loops of the daemon, of a membership and of its manager part: one that ends or panics is started again after a
//! pause, and until it has run well it is named as a blocker. Knows no loop.

use crate::backoff::Backoff;
use crate::sync::panic_text;
use futures_util::FutureExt as _;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pauses before a loop is started again.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
/// A loop that has run for so long is no longer named.
const RAN_WELL: Duration = Duration::from_mins(1);

/// What of the daemon does not run, by name, with the reason. Clones share it.
#[derive(Clone, Default, Debug)]
pub(super) struct Blockers {
    all: watch::Sender<BTreeMap<String, Blocker>>,
    /// What is named here is part of the daemon, not of its membership.
    of_daemon: bool,
}

#[derive(Clone, Debug)]
struct Blocker {
    reason: String,
    of_daemon: bool,
}

impl Blockers {
    /// The same, for what runs with or without a membership.
    pub(super) fn of_daemon(&self) -> Self {
        Self { all: self.all.clone(), of_daemon: true }
    }

    pub(super) fn set(&self, name: &str, reason: impl Into<String>) {
        let blocker = Blocker { reason: reason.into(), of_daemon: self.of_daemon };
        self.all.send_modify(|all| drop(all.insert(name.to_owned(), blocker)));
    }

    pub(super) fn clear(&self, name: &str) {
        self.all.send_if_modified(|all| all.remove(name).is_some());
    }

    /// For a membership that starts again as a whole.
    pub(super) fn clear_membership(&self) {
        self.all.send_if_modified(|all| {
            let before = all.len();
            all.retain(|_, blocker| blocker.of_daemon);
            all.len() < before
        });
    }

    pub(super) fn now(&self) -> BTreeMap<String, String> {
        self.all.borrow().iter().map(|(name, blocker)| (name.clone(), blocker.reason.clone())).collect()
    }
}

/// Starts loops and looks after them.
#[derive(Clone)]
pub(super) struct Supervisor {
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    blockers: Blockers,
    /// Notified when something failed that cannot be started again alone.
    failed: Arc<Notify>,
    /// What failed first.
    failure: Arc<OnceLock<String>>,
}

impl Supervisor {
    pub(super) fn new(blockers: Blockers, failed: Arc<Notify>) -> Self {
        Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), blockers, failed, failure: Arc::default() }
    }

    /// Runs a loop until `stop`; `start` makes it, again each time that it has ended.
    pub(super) fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        start: impl FnMut() -> F + Send + 'static,
    ) {
        self.tasks.spawn(keep(name, self.blockers.clone(), self.stop.clone(), start, RAN_WELL));
    }

    /// As [`Self::keep`], for a loop that does not follow `stop` itself: it is dropped where it is then.
    pub(super) fn keep_until_stopped<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        mut start: impl FnMut() -> F + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.keep(name, move || {
            let (running, stop) = (start(), stop.clone());
            async move {
                let _ = stop.run_until_cancelled(running).await;
            }
        });
    }

    /// Runs something that may end, and that cannot be started again alone: if it panics, all that this supervisor runs is to
    /// be ended and started again.
    pub(super) fn once(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let Self { stop, blockers, failed, failure, .. } = self.clone();
        self.tasks.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(part).catch_unwind().await {
                let reason = format!("it panicked: {}", panic_text(&*panic));
                tracing::error!(name, reason, "a part of this node has ended, what it belongs to starts again");
                blockers.set(name, reason.clone());
                let _ = failure.set(format!("{name}: {reason}"));
                failed.notify_one();
                stop.cancelled().await;
                blockers.clear(name);
            }
        });
    }

    /// Waits until something has failed that cannot be started again alone; returns what, and why.
    pub(super) async fn failed(&self) -> String {
        self.failed.notified().await;
        self.failure.get().cloned().unwrap_or_default()
    }

    /// Ends everything and waits for it.
    pub(super) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn keep<F: Future<Output = ()> + Send>(
    name: &'static str,
    blockers: Blockers,
    stop: CancellationToken,
    mut start: impl FnMut() -> F + Send,
    ran_well: Duration,
) {
    let mut failures = 0_u32;
    loop {
        let mut running = Box::pin(AssertUnwindSafe(start()).catch_unwind());
        let mut ended = tokio::select! {
            ended = &mut running => Some(ended),
            () = tokio::time::sleep(ran_well), if failures > 0 => None,
        };
        if ended.is_none() {
            failures = 0;
            blockers.clear(name);
            ended = Some(running.await);
        }
        if stop.is_cancelled() {
            return blockers.clear(name);
        }
        failures = failures.saturating_add(1);
        let reason = match ended {
            Some(Err(panic)) => format!("it panicked: {}", panic_text(&*panic)),
            _ => "it ended".to_owned(),
        };
        tracing::error!(name, reason, failures, "a loop of this node has ended, it is started again");
        blockers.set(name, format!("{reason}; started again {failures} times, the log of skep has more"));
        if stop.run_until_cancelled(tokio::time::sleep(RESTART.pause(failures))).await.is_none() {
            return blockers.clear(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_loop_that_panics_or_ends_is_named_and_started_again_until_it_runs_well() {
        let (blockers, stop, starts) = (Blockers::default(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let mut seen = blockers.all.subscribe();
        let (counter, ended) = (starts.clone(), stop.clone());
        let start = move || {
            let (number, ended) = (counter.fetch_add(1, Ordering::SeqCst), ended.clone());
            async move {
                match number {
                    0 => panic!("index out of bounds"),
                    1 => {}
                    _ => ended.cancelled().await,
                }
            }
        };
        let kept = tokio::spawn(keep("dns", blockers.clone(), stop.clone(), start, Duration::from_millis(300)));
        let named = seen.wait_for(|all| all.contains_key("dns")).await.unwrap().clone();
        assert!(named["dns"].reason.contains("it panicked: index out of bounds"), "{named:?}");
        let again = seen.wait_for(|all| all.get("dns").is_some_and(|why| why.reason.contains("2 times"))).await.unwrap().clone();
        assert!(again["dns"].reason.starts_with("it ended"), "{again:?}");
        seen.wait_for(BTreeMap::is_empty).await.unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        stop.cancel();
        kept.await.unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 3, "it is not started again after the end");
    }

    #[test]
    fn a_membership_that_starts_again_clears_nothing_of_the_daemon() {
        let blockers = Blockers::default();
        blockers.set("manager", "the port is in use");
        blockers.of_daemon().set("Docker API", "it panicked");
        blockers.clear_membership();
        assert_eq!(blockers.now(), BTreeMap::from([("Docker API".to_owned(), "it panicked".to_owned())]));
        blockers.clear("Docker API");
        assert!(blockers.now().is_empty());
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_started_again_alone_makes_the_node_start_again_if_it_panics() {
        let supervisor = Supervisor::new(Blockers::default(), Arc::default());
        supervisor.once("quiet", async {});
        supervisor.once("session", async { panic!("no such node") });
        assert_eq!(supervisor.failed().await, "session: it panicked: no such node");
        let named = supervisor.blockers.now();
        assert_eq!(named, [("session".to_owned(), "it panicked: no such node".to_owned())].into());
        supervisor.end().await;
        assert!(supervisor.blockers.now().is_empty(), "what starts again is not named by what has ended");
    }
}
