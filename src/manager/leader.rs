//! The shell around the planners and the dispatcher: one loop, at most one write in flight. Waits for a change of the store,
//! an event of a session or a tick, lets the cores decide, and carries out their decisions. Decides nothing itself.

use super::dispatcher::{Dispatcher, Effect, Event, SessionId};
use super::round::RoundPlanner;
use super::sessions::{self, SessionEvent, Sessions};
use super::settings::ManagerSettings;
use crate::clock::Clock;
use crate::model::Revision;
use crate::protocol::{ToManager, ToNode};
use crate::store::{ProposeError, Store, StoreHandle, Transaction};
use crate::sync::replace_if_changed;
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Messages that may wait for a slow node before its session is ended. In its next session the node gets its whole view.
const BACKLOG: usize = 1024;

type PendingWrite = BoxFuture<'static, Result<u64, ProposeError>>;

/// The running manager.
pub struct Manager {
    /// The rpc server passes the nodes' sessions to this.
    pub sessions: Sessions,
    /// Lowest revision that every live node has applied; the default while this manager does not lead.
    pub applied: watch::Receiver<Revision>,
    /// Ends when the shutdown token is cancelled or the store is dropped.
    pub finished: tokio::task::JoinHandle<()>,
}

/// Starts the loop. It does nothing until `is_leader` is true, and starts without state each time that it becomes true.
pub fn start(
    store: StoreHandle,
    is_leader: watch::Receiver<bool>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    seed: u64,
    shutdown: CancellationToken,
) -> Manager {
    let (sessions, queue) = sessions::channel();
    let (applied_sender, applied) = watch::channel(Revision::default());
    let shell = Shell { store, is_leader, settings, clock, seed, queue, applied: applied_sender };
    let run = async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = shell.run() => tracing::debug!("the store was dropped, the manager's loops end"),
        }
    };
    Manager { sessions, applied, finished: tokio::spawn(run) }
}

struct Shell {
    store: StoreHandle,
    is_leader: watch::Receiver<bool>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    seed: u64,
    queue: mpsc::UnboundedReceiver<SessionEvent>,
    applied: watch::Sender<Revision>,
}

/// Why leading or following ended.
enum Ended {
    LeadershipChanged,
    /// Raft, the store or all session handles were dropped.
    NothingToDo,
}

impl Shell {
    async fn run(mut self) {
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
            if matches!(ended, Ended::NothingToDo) {
                return;
            }
        }
    }

    /// Refuses sessions until this manager leads.
    async fn follow(&mut self) -> Ended {
        loop {
            tokio::select! {
                changed = self.is_leader.changed() => {
                    return if changed.is_ok() { Ended::LeadershipChanged } else { Ended::NothingToDo };
                }
                event = self.queue.recv() => match event {
                    None => return Ended::NothingToDo,
                    Some(SessionEvent { outgoing: Some(outgoing), .. }) => {
                        drop(outgoing.try_send(ToNode::NotLeader { leader: None }));
                    }
                    Some(_) => {}
                },
            }
        }
    }

    async fn lead(&mut self, seed: u64) -> Ended {
        let mut term = Term::new(self, seed);
        let mut ticks = tokio::time::interval(self.settings.heartbeat / 5);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            term.start_write();
            let effects = tokio::select! {
                changed = self.is_leader.changed() => {
                    let leads = changed.is_ok() && *self.is_leader.borrow();
                    if leads { continue }
                    term.outboxes.close_all();
                    return if changed.is_ok() { Ended::LeadershipChanged } else { Ended::NothingToDo };
                }
                changed = term.view.changed() => {
                    if changed.is_err() {
                        return Ended::NothingToDo;
                    }
                    term.store_changed()
                }
                outcome = outcome_of(&mut term.writing) => term.write_finished(outcome),
                event = self.queue.recv() => match event {
                    None => return Ended::NothingToDo,
                    Some(event) => term.session_event(event),
                },
                _ = ticks.tick() => term.tick(),
            };
            term.carry_out(effects);
            replace_if_changed(&self.applied, term.applied());
        }
    }
}

/// The outcome of a write; never if there is none in flight.
async fn outcome_of(writing: &mut Option<PendingWrite>) -> Result<u64, ProposeError> {
    match writing {
        Some(write) => write.await,
        None => std::future::pending().await,
    }
}

/// What exists while this manager leads.
struct Term {
    store: StoreHandle,
    view: watch::Receiver<Arc<Store>>,
    clock: Arc<dyn Clock>,
    dispatcher: Dispatcher,
    planner: RoundPlanner,
    outboxes: Outboxes,
    writing: Option<PendingWrite>,
    /// A round may have something to do.
    round_due: bool,
}

impl Term {
    fn new(shell: &Shell, seed: u64) -> Self {
        let (store, mut view, settings) = (shell.store.clone(), shell.store.watch(), &shell.settings);
        let first = view.borrow_and_update().clone();
        Self {
            dispatcher: Dispatcher::new(settings.clone(), first, shell.clock.now()),
            planner: RoundPlanner::new(settings.clone(), seed),
            store,
            view,
            clock: shell.clock.clone(),
            outboxes: Outboxes::default(),
            writing: None,
            round_due: true,
        }
    }

    /// Runs a round if one is due and no write is in flight, and starts to write its result.
    fn start_write(&mut self) {
        if !self.round_due || self.writing.is_some() {
            return;
        }
        self.round_due = false;
        let (store, now) = (self.store.read(), self.clock.now());
        let reports = self.dispatcher.plan(&store, now);
        let actions = self.planner.round(&store, reports, self.dispatcher.lowest_applied(now), now);
        if !actions.is_empty() {
            let handle = self.store.clone();
            let plan = Transaction::new(now, actions).planned_from(store.index());
            self.writing = Some(Box::pin(async move { handle.propose(plan).await }));
        }
    }

    /// After a failure that is not a refusal the next change or tick plans again.
    fn write_finished(&mut self, outcome: Result<u64, ProposeError>) -> Vec<Effect> {
        self.writing = None;
        match outcome {
            Ok(_) => self.round_due = true,
            Err(ProposeError::Refused(error)) => {
                tracing::debug!(%error, "another writer was first, planning again");
                self.round_due = true;
            }
            Err(error) => tracing::warn!(%error, "the plan could not be written, trying again"),
        }
        Vec::new()
    }

    fn store_changed(&mut self) -> Vec<Effect> {
        self.round_due = true;
        let store = self.view.borrow_and_update().clone();
        self.dispatcher.handle(self.clock.now(), Event::StoreChanged(store))
    }

    fn session_event(&mut self, event: SessionEvent) -> Vec<Effect> {
        // A session must not be judged by a state of the store older than the admission of its node.
        let mut effects = if self.view.has_changed().unwrap_or(false) { self.store_changed() } else { Vec::new() };
        let SessionEvent { event, outgoing, permit } = event;
        self.outboxes.observe(&event, outgoing);
        // Heartbeats alone give the planners nothing to do.
        self.round_due |= !matches!(event, Event::Message { message: ToManager::Heartbeat { .. }, .. });
        effects.extend(self.dispatcher.handle(self.clock.now(), event));
        drop(permit);
        effects
    }

    fn tick(&mut self) -> Vec<Effect> {
        let now = self.clock.now();
        let effects = self.dispatcher.handle(now, Event::Tick);
        self.round_due |= self.planner.is_due(now) || !self.dispatcher.plan(&self.store.read(), now).is_empty();
        effects
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for session in self.outboxes.carry_out(effects) {
            self.dispatcher.handle(self.clock.now(), Event::Closed { session });
            self.round_due = true;
        }
    }

    fn applied(&self) -> Revision {
        self.dispatcher.applied(self.clock.now())
    }
}

/// Queues of messages to the nodes, by session.
#[derive(Default)]
struct Outboxes {
    open: BTreeMap<SessionId, mpsc::Sender<ToNode>>,
}

impl Outboxes {
    /// Adds the outbox of a session that was opened, removes that of one that has ended.
    fn observe(&mut self, event: &Event, outgoing: Option<mpsc::Sender<ToNode>>) {
        match (event, outgoing) {
            (Event::Opened { session, .. }, Some(outgoing)) => drop(self.open.insert(*session, forward(outgoing))),
            (Event::Closed { session }, _) => drop(self.open.remove(session)),
            _ => {}
        }
    }

    /// Sends and closes; returns the sessions that could not keep up.
    fn carry_out(&mut self, effects: Vec<Effect>) -> Vec<SessionId> {
        let mut lost = Vec::new();
        for effect in effects {
            match effect {
                Effect::Send { session, message } => {
                    let Some(outbox) = self.open.get(&session) else { continue };
                    if outbox.try_send(message).is_err() {
                        tracing::debug!(session = session.0, "the session has ended or does not keep up");
                        self.open.remove(&session);
                        lost.push(session);
                    }
                }
                Effect::Close { session } => drop(self.open.remove(&session)),
            }
        }
        lost
    }

    /// Ends all sessions: this manager does not lead any more.
    fn close_all(&mut self) {
        for (_, outbox) in std::mem::take(&mut self.open) {
            drop(outbox.try_send(ToNode::NotLeader { leader: None }));
        }
    }
}

/// A queue in front of a session, so that the leader's loop never waits for a node.
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
