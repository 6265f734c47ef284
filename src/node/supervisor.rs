//! Runs the loops of the node: one that ends or panics is started again after a pause, and until it has run well it is named
//! as a blocker. Knows no loop.

use crate::backoff::Backoff;
use futures_util::FutureExt as _;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Pauses before a loop is started again.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
/// A loop that has run for so long is no longer named.
const RAN_WELL: Duration = Duration::from_mins(1);

/// What of the daemon does not run, by name, with the reason.
#[derive(Clone, Default, Debug)]
pub(super) struct Blockers(watch::Sender<BTreeMap<String, String>>);

impl Blockers {
    pub(super) fn set(&self, name: &str, reason: impl Into<String>) {
        self.0.send_modify(|all| drop(all.insert(name.to_owned(), reason.into())));
    }

    pub(super) fn clear(&self, name: &str) {
        self.0.send_if_modified(|all| all.remove(name).is_some());
    }

    /// For a membership that starts again as a whole.
    pub(super) fn clear_all(&self) {
        self.0.send_if_modified(|all| !std::mem::take(all).is_empty());
    }

    pub(super) fn now(&self) -> BTreeMap<String, String> {
        self.0.borrow().clone()
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
}

impl Supervisor {
    pub(super) fn new(blockers: Blockers, failed: Arc<Notify>) -> Self {
        Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), blockers, failed }
    }

    /// Runs a loop until `stop`; `start` makes it, again each time that it has ended.
    pub(super) fn keep<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        start: impl FnMut() -> F + Send + 'static,
    ) {
        self.tasks.spawn(keep(name, self.blockers.clone(), self.stop.clone(), start, RAN_WELL));
    }

    /// Runs something that may end, and that cannot be started again alone: if it panics, the whole membership is.
    pub(super) fn once(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let (blockers, failed) = (self.blockers.clone(), self.failed.clone());
        self.tasks.spawn(async move {
            if let Err(panic) = AssertUnwindSafe(part).catch_unwind().await {
                let reason = format!("it panicked: {}", panic_text(&*panic));
                tracing::error!(name, reason, "a part of this node has ended, the node starts again");
                blockers.set(name, reason);
                failed.notify_one();
            }
        });
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

/// The message of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn a_loop_that_panics_or_ends_is_named_and_started_again_until_it_runs_well() {
        let (blockers, stop, starts) = (Blockers::default(), CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let mut seen = blockers.0.subscribe();
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
        assert!(named["dns"].contains("it panicked: index out of bounds"), "{named:?}");
        let again = seen.wait_for(|all| all.get("dns").is_some_and(|why| why.contains("2 times"))).await.unwrap().clone();
        assert!(again["dns"].starts_with("it ended"), "{again:?}");
        seen.wait_for(BTreeMap::is_empty).await.unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 3);
        stop.cancel();
        kept.await.unwrap();
        assert_eq!(starts.load(Ordering::SeqCst), 3, "it is not started again after the end");
    }

    #[tokio::test]
    async fn a_part_that_cannot_be_started_again_alone_makes_the_node_start_again_if_it_panics() {
        let failed = Arc::new(Notify::new());
        let supervisor = Supervisor::new(Blockers::default(), failed.clone());
        supervisor.once("quiet", async {});
        supervisor.once("session", async { panic!("no such node") });
        failed.notified().await;
        let named = supervisor.blockers.now();
        assert_eq!(named, [("session".to_owned(), "it panicked: no such node".to_owned())].into());
        supervisor.end().await;
    }
}
