//! The leader's cores put together as its loops do, without the loops: one event, and all that follows from it.

use skep::manager::dispatcher::{self, Dispatcher, Effect};
use skep::manager::inbox::Inbox;
use skep::manager::liveness::{Event, Handled, Liveness};
use skep::manager::{LowestApplied, ManagerSettings};
use skep::model::{Revision, Timestamp};
use skep::store::{Action, Store};
use std::sync::Arc;

pub struct LeaderCores {
    liveness: Liveness,
    inbox: Inbox,
    dispatcher: Dispatcher,
}

impl LeaderCores {
    pub fn new(settings: ManagerSettings, store: Arc<Store>, now: Timestamp) -> Self {
        Self::in_place_of(None, settings, store, now)
    }

    pub fn in_place_of(lost_leader: Option<u64>, settings: ManagerSettings, store: Arc<Store>, now: Timestamp) -> Self {
        Self {
            liveness: Liveness::new(settings.clone(), store.clone(), lost_leader, now),
            inbox: Inbox::default(),
            dispatcher: Dispatcher::new(settings, store, now),
        }
    }

    pub fn handle(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let mut effects = self.hear(now, event);
        effects.extend(self.catch_up(now));
        effects
    }

    /// Only the liveness loop's part: the planning loop is busy.
    pub fn hear(&mut self, now: Timestamp, event: Event) -> Vec<Effect> {
        let Handled { effects, notices } = self.liveness.handle(now, event);
        let store = self.liveness.store().clone();
        for notice in notices {
            self.inbox.push(&store, notice);
        }
        effects
    }

    /// The planning loop's part, with all that has happened since.
    pub fn catch_up(&mut self, now: Timestamp) -> Vec<Effect> {
        let events = self.inbox.take();
        self.dispatcher.handle(now, dispatcher::Event::StoreChanged(self.liveness.store().clone()));
        for event in events {
            self.dispatcher.handle(now, event);
        }
        self.dispatcher.handle(now, dispatcher::Event::Liveness(Arc::new(self.liveness.snapshot(now))));
        self.dispatcher.handle(now, dispatcher::Event::Tick);
        self.dispatcher.views(now)
    }

    pub fn plan(&self, store: &Store, now: Timestamp) -> Vec<Action> {
        self.dispatcher.plan(store, now)
    }
    pub fn applied(&self, now: Timestamp) -> Revision {
        self.dispatcher.applied(now)
    }
    pub fn lowest_applied(&self, now: Timestamp) -> LowestApplied {
        self.dispatcher.lowest_applied(now)
    }
}
