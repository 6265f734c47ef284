//! Runs the manager's part of a member while its role is manager. Knows roles, not what the part is made of.

use super::supervisor::Blockers;
use crate::backoff::Backoff;
use crate::model::Role;
use async_trait::async_trait;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a manager runs beyond a worker.
#[async_trait]
pub(super) trait ManagerPart: Send + 'static {
    /// What the rest of the node uses of the running part.
    type Handle: Clone + Send + Sync + 'static;

    /// Acquires what the part needs and what may take long. Dropped at any time, and called again; then it goes on.
    async fn prepare(&mut self) -> anyhow::Result<()>;
    /// Gives up what was prepared.
    fn release(&mut self);
    /// Starts the part, which may not be prepared yet.
    async fn start(&mut self) -> anyhow::Result<Self::Handle>;
    /// Returns the reason when the running part has ended by itself; never while it is stopped.
    async fn ended(&mut self) -> String;
    /// Ends the part; once it returns the part can be started again.
    async fn stop(&mut self);
}

/// Name of the part among the blockers.
pub(super) const NAME: &str = "manager";
/// Pauses between attempts to start the part.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// A part that has run for so long had recovered from its failures before.
const RAN_WELL: Duration = Duration::from_mins(1);

/// Starts and stops a [`ManagerPart`] according to the node's role; one that cannot be started or has ended is tried again.
pub(super) struct ManagerRole<P: ManagerPart> {
    part: P,
    blockers: Blockers,
    /// `Some` while the part runs.
    handle: watch::Sender<Option<P::Handle>>,
}

impl<P: ManagerPart> ManagerRole<P> {
    pub(super) fn new(part: P, blockers: Blockers) -> Self {
        Self { part, blockers, handle: watch::channel(None).0 }
    }

    /// The running part's handle; `None` while the node is a worker.
    pub(super) fn handle(&self) -> watch::Receiver<Option<P::Handle>> {
        self.handle.subscribe()
    }

    /// Starts or stops the part, unless it is in the state that the role requires.
    ///
    /// # Errors
    /// The part could not be started; it is stopped then.
    pub(super) async fn apply(&mut self, role: Role) -> anyhow::Result<()> {
        let runs = self.handle.borrow().is_some();
        match (role, runs) {
            (Role::Manager, false) => {
                let handle = self.part.start().await?;
                self.handle.send_replace(Some(handle));
            }
            (Role::Worker, true) => {
                self.handle.send_replace(None);
                self.part.stop().await;
            }
            (Role::Worker, false) => self.part.release(),
            (Role::Manager, true) => {}
        }
        Ok(())
    }

    /// Applies the role and each change of it until `stop` is cancelled or the role's sender is dropped; then ends the part.
    pub(super) async fn follow(mut self, mut role: watch::Receiver<Role>, stop: CancellationToken) {
        let mut failures = 0_u32;
        loop {
            let wanted = *role.borrow_and_update();
            let prepares = wanted == Role::Manager && self.handle.borrow().is_none();
            let prepared = if prepares {
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = role.changed() => if changed.is_err() { break } else { continue },
                    prepared = self.part.prepare() => prepared,
                }
            } else {
                Ok(())
            };
            let applied = match prepared {
                Ok(()) => self.apply(wanted).await,
                Err(error) => Err(error),
            };
            let started = Instant::now();
            let reason = match applied {
                Ok(()) => {
                    self.blockers.clear(NAME);
                    tokio::select! {
                        () = stop.cancelled() => break,
                        changed = role.changed() => if changed.is_err() { break } else { continue },
                        reason = self.part.ended() => reason,
                    }
                }
                Err(error) => format!("{error:#}"),
            };
            failures = if started.elapsed() >= RAN_WELL { 1 } else { failures.saturating_add(1) };
            tracing::error!(reason, failures, "the manager part of this node does not run, it is tried again");
            self.blockers.set(NAME, reason);
            if self.handle.send_replace(None).is_some() {
                self.part.stop().await;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                changed = role.changed() => if changed.is_err() { break },
                () = tokio::time::sleep(RETRY.pause(failures)) => {}
            }
        }
        // Without its part a node is a worker: stopping cannot fail.
        let _ = self.apply(Role::Worker).await;
        self.blockers.clear(NAME);
    }
}

#[cfg(test)]
mod tests {
    use super::super::supervisor::Supervisor;
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Records its calls; the handle counts the starts.
    struct FakePart {
        calls: Arc<Mutex<Vec<&'static str>>>,
        starts: u32,
        fails: bool,
        /// Starts that fail, one after the other.
        failing: u32,
        /// Ends the running part.
        end: Arc<tokio::sync::Notify>,
        /// The disk answers.
        opens: watch::Receiver<bool>,
    }

    #[async_trait]
    impl ManagerPart for FakePart {
        type Handle = u32;
        async fn prepare(&mut self) -> anyhow::Result<()> {
            let _ = self.opens.wait_for(|opens| *opens).await;
            Ok(())
        }
        fn release(&mut self) {}
        async fn start(&mut self) -> anyhow::Result<u32> {
            anyhow::ensure!(!self.fails && self.failing == 0, "the port is in use{}", {
                self.failing = self.failing.saturating_sub(1);
                ""
            });
            self.calls.lock().unwrap().push("start");
            self.starts += 1;
            Ok(self.starts)
        }
        async fn ended(&mut self) -> String {
            self.end.notified().await;
            "raft has stopped".to_owned()
        }
        async fn stop(&mut self) {
            self.calls.lock().unwrap().push("stop");
        }
    }

    fn part() -> (FakePart, Arc<Mutex<Vec<&'static str>>>) {
        let calls = Arc::default();
        let part = FakePart {
            calls: Arc::clone(&calls),
            starts: 0,
            fails: false,
            failing: 0,
            end: Arc::default(),
            opens: watch::channel(true).1,
        };
        (part, calls)
    }

    #[tokio::test]
    async fn the_part_runs_while_the_role_is_manager() {
        let (part, calls) = part();
        let manager = ManagerRole::new(part, Blockers::default());
        let mut handle = manager.handle();
        let (role, roles) = watch::channel(Role::Worker);
        let stop = CancellationToken::new();
        let following = tokio::spawn(manager.follow(roles, stop.clone()));
        role.send_replace(Role::Manager);
        handle.wait_for(|h| *h == Some(1)).await.expect("promoted");
        role.send_replace(Role::Worker);
        handle.wait_for(Option::is_none).await.expect("demoted");
        role.send_replace(Role::Manager);
        handle.wait_for(|h| *h == Some(2)).await.expect("promoted again");
        stop.cancel();
        following.await.expect("ends");
        assert_eq!(*handle.borrow(), None);
        assert_eq!(*calls.lock().unwrap(), ["start", "stop", "start", "stop"]);
    }

    #[tokio::test]
    async fn a_role_that_is_applied_already_changes_nothing() {
        let (part, calls) = part();
        let mut manager = ManagerRole::new(part, Blockers::default());
        manager.apply(Role::Worker).await.unwrap();
        manager.apply(Role::Manager).await.unwrap();
        manager.apply(Role::Manager).await.unwrap();
        // The part started before is adopted.
        let (_role, roles) = watch::channel(Role::Manager);
        let stop = CancellationToken::new();
        stop.cancel();
        manager.follow(roles, stop).await;
        assert_eq!(*calls.lock().unwrap(), ["start", "stop"]);
    }

    #[tokio::test]
    async fn a_part_that_cannot_start_is_reported_and_not_stopped() {
        let (part, calls) = part();
        let mut manager = ManagerRole::new(FakePart { fails: true, ..part }, Blockers::default());
        let error = manager.apply(Role::Manager).await.expect_err("fails");
        assert_eq!(error.to_string(), "the port is in use");
        assert_eq!(*manager.handle().borrow(), None);
        manager.apply(Role::Worker).await.unwrap();
        assert!(calls.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_part_whose_disk_hangs_is_awaited_and_keeps_neither_a_demotion_nor_a_stop_waiting() {
        let (part, calls) = part();
        let (opens, is_open) = watch::channel(false);
        let manager = ManagerRole::new(FakePart { opens: is_open, ..part }, Blockers::default());
        let mut handle = manager.handle();
        let (role, roles) = watch::channel(Role::Manager);
        let stop = CancellationToken::new();
        let following = tokio::spawn(manager.follow(roles, stop.clone()));
        // Neither a promotion nor what comes after it takes hold before the disk answers.
        role.send_replace(Role::Worker);
        role.send_replace(Role::Manager);
        tokio::task::yield_now().await;
        assert_eq!(*handle.borrow_and_update(), None);
        opens.send_replace(true);
        handle.wait_for(|h| *h == Some(1)).await.expect("started with what was opened late");
        role.send_replace(Role::Worker);
        handle.wait_for(Option::is_none).await.expect("demoted");
        opens.send_replace(false);
        role.send_replace(Role::Manager);
        tokio::task::yield_now().await;
        stop.cancel();
        following.await.expect("ends, although the disk hangs");
        assert_eq!(*calls.lock().unwrap(), ["start", "stop"]);
    }

    #[tokio::test]
    async fn a_part_that_cannot_start_or_that_ends_is_named_and_tried_again() {
        let (part, calls) = part();
        let (end, blockers) = (part.end.clone(), Blockers::default());
        let manager = ManagerRole::new(FakePart { failing: 2, ..part }, blockers.clone());
        let mut handle = manager.handle();
        let (_role, roles) = watch::channel(Role::Manager);
        let stop = CancellationToken::new();
        let following = tokio::spawn(manager.follow(roles, stop.clone()));
        while blockers.now().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(blockers.now()["manager"], "the port is in use");
        handle.wait_for(|h| *h == Some(1)).await.expect("started");
        end.notify_one();
        handle.wait_for(|h| *h == Some(2)).await.expect("started again");
        while !blockers.now().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        following.await.expect("ends");
        assert_eq!(*calls.lock().unwrap(), ["start", "stop", "start", "stop"]);
    }

    /// Has a loop that cannot be started again alone, and that panics the first time.
    struct SupervisedPart {
        blockers: Blockers,
        starts: u32,
        running: Option<Supervisor>,
    }

    #[async_trait]
    impl ManagerPart for SupervisedPart {
        type Handle = u32;
        async fn prepare(&mut self) -> anyhow::Result<()> {
            Ok(())
        }
        fn release(&mut self) {}
        async fn start(&mut self) -> anyhow::Result<u32> {
            let supervisor = Supervisor::new(self.blockers.clone(), Arc::default());
            self.starts += 1;
            let (first, stop) = (self.starts == 1, supervisor.stop.clone());
            supervisor.once("raft status", async move {
                assert!(!first, "index out of bounds");
                stop.cancelled().await;
            });
            self.running = Some(supervisor);
            Ok(self.starts)
        }
        async fn ended(&mut self) -> String {
            self.running.as_ref().expect("it runs").failed().await
        }
        async fn stop(&mut self) {
            self.running.take().expect("it runs").end().await;
        }
    }

    #[tokio::test]
    async fn a_loop_that_panics_is_named_and_the_part_is_started_again() {
        let blockers = Blockers::default();
        let manager = ManagerRole::new(SupervisedPart { blockers: blockers.clone(), starts: 0, running: None }, blockers.clone());
        let mut handle = manager.handle();
        let (_role, roles) = watch::channel(Role::Manager);
        let stop = CancellationToken::new();
        let following = tokio::spawn(manager.follow(roles, stop.clone()));
        let name = "raft status: it panicked: index out of bounds";
        while blockers.now().get(NAME).is_none_or(|reason| reason != name) {
            tokio::task::yield_now().await;
        }
        handle.wait_for(|h| *h == Some(2)).await.expect("started again");
        while !blockers.now().is_empty() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
        following.await.expect("ends");
    }
}
