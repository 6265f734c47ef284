//! The shell around the liveness core: answers what nodes send, within milliseconds, whatever the planning loop does. What
//! concerns that waits in its inbox.

use super::inbox::Inbox;
use super::liveness::{Event, Handled, Liveness, LivenessSnapshot};
use super::outboxes::Outboxes;
use super::sessions::SessionEvent;
use super::settings::ManagerSettings;
use crate::clock::Clock;
use crate::protocol::ToManager;
use crate::store::Store;
use crate::sync::{lock, replace_if_changed};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc, watch};

/// Session events that are processed before the outcome is published.
const AT_ONCE: usize = 256;

/// What the liveness loop leaves for the planning loop.
pub(super) struct Handover {
    pub inbox: Mutex<Inbox>,
    pub snapshot: watch::Sender<Arc<LivenessSnapshot>>,
    pub changed: Notify,
}

impl Handover {
    pub(super) fn new() -> Self {
        Self { inbox: Mutex::default(), snapshot: watch::channel(Arc::default()).0, changed: Notify::new() }
    }
}

/// The loop.
pub(super) struct LivenessLoop {
    core: Liveness,
    view: watch::Receiver<Arc<Store>>,
    clock: Arc<dyn Clock>,
    outboxes: Outboxes,
    handover: Arc<Handover>,
}

impl LivenessLoop {
    pub(super) fn new(
        settings: &ManagerSettings,
        mut view: watch::Receiver<Arc<Store>>,
        lost_leader: Option<u64>,
        clock: Arc<dyn Clock>,
        outboxes: Outboxes,
        handover: Arc<Handover>,
    ) -> Self {
        let first = view.borrow_and_update().clone();
        Self { core: Liveness::new(settings.clone(), first, lost_leader, clock.now()), view, clock, outboxes, handover }
    }

    /// Runs until the store or all session handles are dropped.
    pub(super) async fn run(mut self, heartbeat: std::time::Duration, queue: &mut mpsc::UnboundedReceiver<SessionEvent>) {
        let mut ticks = tokio::time::interval(heartbeat / 5);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut done = Handled::default();
            tokio::select! {
                event = queue.recv() => {
                    let Some(event) = event else { return };
                    self.session_event(event, &mut done);
                    self.drain(queue, AT_ONCE, &mut done);
                }
                changed = self.view.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.refresh_store(&mut done);
                }
                _ = ticks.tick() => {
                    // A node is judged by everything that it has sent.
                    self.drain(queue, queue.len(), &mut done);
                    self.refresh_store(&mut done);
                    self.handle(Event::Tick, &mut done);
                }
            }
            self.publish(done);
        }
    }

    fn drain(&mut self, queue: &mut mpsc::UnboundedReceiver<SessionEvent>, most: usize, done: &mut Handled) {
        for _ in 0..most {
            let Ok(event) = queue.try_recv() else { return };
            self.session_event(event, done);
        }
    }

    fn session_event(&mut self, event: SessionEvent, done: &mut Handled) {
        let SessionEvent { event, outgoing, permit } = event;
        match (&event, outgoing) {
            (Event::Opened { session, .. }, Some(outgoing)) => {
                // A session must not be judged by a state of the store older than the admission of its node.
                self.refresh_store(done);
                self.outboxes.open(*session, outgoing);
            }
            (Event::Closed { session }, _) => self.outboxes.close(*session),
            _ => {}
        }
        if matches!(event, Event::Message { message: ToManager::Status(_) | ToManager::Listens(_), .. }) {
            // Reports are compared with the newest state, which may have assigned the task just now.
            self.refresh_store(done);
        }
        self.handle(event, done);
        drop(permit);
    }

    fn refresh_store(&mut self, done: &mut Handled) {
        if self.view.has_changed().unwrap_or(false) || !Arc::ptr_eq(&self.view.borrow(), self.core.store()) {
            let store = self.view.borrow_and_update().clone();
            self.handle(Event::StoreChanged(store), done);
        }
    }

    fn handle(&mut self, event: Event, done: &mut Handled) {
        let Handled { effects, notices } = self.core.handle(self.clock.now(), event);
        self.outboxes.carry_out(effects);
        done.notices.extend(notices);
    }

    /// The snapshot first: it is never older than a notice.
    fn publish(&mut self, done: Handled) {
        let mut changed = false;
        if self.core.take_changed() {
            changed = replace_if_changed(&self.handover.snapshot, Arc::new(self.core.snapshot(self.clock.now())));
        }
        if !done.notices.is_empty() {
            changed = true;
            let mut inbox = lock(&self.handover.inbox);
            done.notices.into_iter().for_each(|notice| inbox.push(self.core.store(), notice));
        }
        if changed {
            self.handover.changed.notify_one();
        }
    }
}
