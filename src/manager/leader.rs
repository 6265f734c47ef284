//! The shell around the planners and the dispatcher: one loop, at most one write in flight. It waits for a change, a
//! session or a tick, lets the cores decide, and carries out what they say. Decides nothing itself.

use super::ManagerSettings;
use super::dispatcher::{Dispatcher, Effect, Event};
use super::round::Planner;
use super::sessions::{Arrival, SessionId};
use crate::clock::Clock;
use crate::model::Revision;
use crate::protocol::ToNode;
use crate::store::{ProposeError, Store, StoreHandle};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Messages that may wait for a slow node before its session is ended; it then gets everything anew.
const BACKLOG: usize = 1024;

type Write = BoxFuture<'static, Result<u64, ProposeError>>;

pub(super) struct Shell {
    pub store: StoreHandle,
    pub is_leader: watch::Receiver<bool>,
    pub settings: ManagerSettings,
    pub clock: Arc<dyn Clock>,
    pub seed: u64,
    pub shutdown: CancellationToken,
    pub inbox: mpsc::UnboundedReceiver<Arrival>,
    pub applied: watch::Sender<Revision>,
}

impl Shell {
    pub(super) async fn run(mut self) {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.terms() => tracing::debug!("the store is gone, the manager's loops end"),
        }
    }

    async fn terms(&mut self) {
        let mut term = 0_u64;
        loop {
            let leads = *self.is_leader.borrow_and_update();
            let ended = if leads {
                term += 1;
                tracing::info!(term, "this manager leads: loops start");
                let ended = self.lead(self.seed.wrapping_add(term)).await;
                self.applied.send_replace(Revision::default());
                tracing::info!(term, "this manager does not lead any more: loops stopped");
                ended
            } else {
                self.follow().await
            };
            if ended {
                return;
            }
        }
    }

    /// Refuses sessions until this manager leads; true if there is nothing to wait for any more.
    async fn follow(&mut self) -> bool {
        loop {
            tokio::select! {
                changed = self.is_leader.changed() => return changed.is_err(),
                arrival = self.inbox.recv() => match arrival {
                    None => return true,
                    Some(Arrival { outgoing: Some(outgoing), .. }) => drop(outgoing.try_send(ToNode::NotLeader { leader: None })),
                    Some(_) => {}
                },
            }
        }
    }

    async fn lead(&mut self, seed: u64) -> bool {
        let mut view = self.store.watch();
        let first = view.borrow_and_update().clone();
        let mut dispatcher = Dispatcher::new(self.settings.clone(), first, self.clock.now());
        let mut planner = Planner::new(self.settings.clone(), seed);
        let mut lines = Outboxes::default();
        let mut writing: Option<Write> = None;
        let mut due = true;
        let mut ticks = tokio::time::interval(self.settings.heartbeat / 5);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if due && writing.is_none() {
                let (store, now) = (self.store.read(), self.clock.now());
                let reports = dispatcher.plan(&store, now);
                let actions = planner.round(&store, reports, dispatcher.applied(now), now);
                due = false;
                if !actions.is_empty() {
                    let handle = self.store.clone();
                    writing = Some(Box::pin(async move { handle.write(now, actions).await }));
                }
            }
            let effects = tokio::select! {
                changed = self.is_leader.changed() => {
                    let leads = changed.is_ok() && *self.is_leader.borrow();
                    if leads { continue }
                    lines.end();
                    return changed.is_err();
                }
                changed = view.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    due = true;
                    let store = view.borrow_and_update().clone();
                    dispatcher.handle(self.clock.now(), Event::StoreChanged(store))
                }
                outcome = async { match writing.as_mut() { Some(w) => w.await, None => std::future::pending().await } } => {
                    writing = None;
                    due |= settle(outcome);
                    Vec::new()
                }
                arrival = self.inbox.recv() => {
                    let Some(arrival) = arrival else { return true };
                    let mut effects = catch_up(&mut view, &mut dispatcher, self.clock.now(), &mut due);
                    due |= lines.arrive(&arrival);
                    effects.extend(dispatcher.handle(self.clock.now(), arrival.event));
                    effects
                }
                _ = ticks.tick() => {
                    let now = self.clock.now();
                    let effects = dispatcher.handle(now, Event::Tick);
                    due |= planner.is_due(now) || !dispatcher.plan(&self.store.read(), now).is_empty();
                    effects
                }
            };
            for session in lines.carry_out(effects) {
                dispatcher.handle(self.clock.now(), Event::Closed { session });
                due = true;
            }
            let applied = dispatcher.applied(self.clock.now());
            self.applied.send_if_modified(|known| std::mem::replace(known, applied) != applied);
        }
    }
}

/// A session must not be judged by a store older than the one that its node was admitted to.
fn catch_up(
    view: &mut watch::Receiver<Arc<Store>>,
    dispatcher: &mut Dispatcher,
    now: crate::model::Timestamp,
    due: &mut bool,
) -> Vec<Effect> {
    if !view.has_changed().unwrap_or(false) {
        return Vec::new();
    }
    *due = true;
    let store = view.borrow_and_update().clone();
    dispatcher.handle(now, Event::StoreChanged(store))
}

/// True if the plan is to be made anew at once; otherwise the next change or tick does.
fn settle(outcome: Result<u64, ProposeError>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(ProposeError::Refused(error)) => {
            tracing::debug!(%error, "somebody else wrote first, planning anew");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "the plan could not be written, trying again");
            false
        }
    }
}

/// Ways out to the nodes, by session.
#[derive(Default)]
struct Outboxes {
    open: BTreeMap<SessionId, mpsc::Sender<ToNode>>,
}

impl Outboxes {
    /// Registers a new session; true if the event may call for a plan (heartbeats do not).
    fn arrive(&mut self, arrival: &Arrival) -> bool {
        if let (Event::Opened { session, .. }, Some(outgoing)) = (&arrival.event, &arrival.outgoing) {
            self.open.insert(*session, forward(outgoing.clone()));
        }
        if let Event::Closed { session } = &arrival.event {
            self.open.remove(session);
        }
        !matches!(arrival.event, Event::Message { message: crate::protocol::ToManager::Heartbeat { .. }, .. })
    }

    /// Sends and closes; returns the sessions that could not keep up.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<SessionId> {
        let mut lost = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    let Some(line) = self.open.get(&session) else { continue };
                    if line.try_send(message).is_err() {
                        tracing::debug!(session = session.0, "the session is gone or does not keep up");
                        self.open.remove(&session);
                        lost.push(session);
                    }
                }
                Effect::Close { session } => drop(self.open.remove(&session)),
            }
        }
        lost
    }

    /// This manager leads no more.
    fn end(&mut self) {
        for (_, line) in std::mem::take(&mut self.open) {
            drop(line.try_send(ToNode::NotLeader { leader: None }));
        }
    }
}

/// Takes what is to be said to a node off the loop, which never waits for it.
fn forward(outgoing: mpsc::Sender<ToNode>) -> mpsc::Sender<ToNode> {
    let (sender, mut queue) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            if outgoing.send(message).await.is_err() {
                return;
            }
        }
    });
    sender
}
