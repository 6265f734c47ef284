//! The last events, and those to come.

use super::change::{SwarmEvent, changes};
use crate::api::control::NodeControl;
use crate::clock::Clock;
use crate::store::{Store, StoreHandle};
use crate::sync::lock;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Events that are kept for replay, as many as the engine keeps.
const KEPT: usize = 256;
/// How often the node is asked whether it has become a manager.
const MEMBERSHIP_POLL: Duration = Duration::from_millis(500);

/// Events of this manager.
pub struct EventFeed {
    kept: Mutex<VecDeque<SwarmEvent>>,
    live: broadcast::Sender<SwarmEvent>,
    /// The next store is that of a new swarm: all of it is news. Otherwise a store that is first seen is old.
    begins: AtomicBool,
    changed: Notify,
}

impl EventFeed {
    pub fn new() -> Self {
        let (live, _) = broadcast::channel(KEPT);
        Self { kept: Mutex::default(), live, begins: AtomicBool::new(false), changed: Notify::new() }
    }

    /// This node is about to create a swarm, or failed to.
    pub fn set_begins(&self, begins: bool) {
        self.begins.store(begins, Ordering::Release);
        self.changed.notify_one();
    }

    /// The kept events, and a receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<SwarmEvent>, broadcast::Receiver<SwarmEvent>) {
        let kept = lock(&self.kept);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }

    fn publish(&self, events: Vec<SwarmEvent>) {
        let mut kept = lock(&self.kept);
        for event in events {
            if kept.len() >= KEPT {
                kept.pop_front();
            }
            kept.push_back(event.clone());
            // Without a receiver it is only kept.
            let _ = self.live.send(event);
        }
    }

    /// Follows the store of the node, while it has one, until shut down.
    pub async fn follow(self: Arc<Self>, control: Arc<dyn NodeControl>, clock: Arc<dyn Clock>, shutdown: CancellationToken) {
        loop {
            if let Some(handle) = control.store() {
                let begins = self.begins.swap(false, Ordering::AcqRel);
                let steps = handle.steps();
                let first = if begins { Arc::default() } else { handle.read() };
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = self.follow_store(&*control, &handle, steps, first, begins, &*clock) => {}
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = tokio::time::sleep(MEMBERSHIP_POLL) => {}
            }
        }
    }

    /// Publishes what changes, from the state `before` on, until the node has this store no more. Unless the swarm begins, what
    /// fills an empty store is old: a further manager gets it from the leader.
    async fn follow_store(
        &self,
        control: &dyn NodeControl,
        handle: &StoreHandle,
        mut steps: broadcast::Receiver<Arc<Store>>,
        mut before: Arc<Store>,
        begins: bool,
        clock: &dyn Clock,
    ) {
        let mut watch = handle.watch();
        let mut waiting = VecDeque::new();
        loop {
            let newest = watch.borrow_and_update().clone();
            // Transactions that were published together are events one by one; of those that were too many for this reader, what they have
            // led to.
            loop {
                match steps.try_recv() {
                    Ok(step) => waiting.push_back(step),
                    Err(TryRecvError::Lagged(_)) => {}
                    Err(TryRecvError::Empty | TryRecvError::Closed) => break,
                }
            }
            // A step is an event once readers of the store see it.
            let visible = std::iter::from_fn(|| waiting.pop_front_if(|step| step.index() <= newest.index()));
            for after in visible.collect::<Vec<_>>().into_iter().chain([newest]) {
                if after.index() <= before.index() {
                    continue;
                }
                if begins || before.cluster().is_some() {
                    self.publish(changes(&before, &after, clock.now()));
                }
                before = after;
            }
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                () = self.changed.notified() => {}
                () = tokio::time::sleep(MEMBERSHIP_POLL) => {}
            }
            if !control.store().is_some_and(|store| store.is_same(handle)) {
                return;
            }
        }
    }
}
