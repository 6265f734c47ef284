//! Starts and supervises the loops that run while this manager leads: liveness, which answers the nodes, and planning, which
//! waits for a change of the store, a report of a node or a tick, and has at most one write in flight. Decides nothing itself.

use super::liveness::Event;
use super::liveness_loop::{Handover, LivenessLoop};
use super::outboxes::Outboxes;
use super::sessions::{self, SessionEvent, Sessions};
use super::settings::ManagerSettings;
use super::term::{StepInput, StepOutput, Term};
use crate::backoff::Backoff;
use crate::clock::{AheadClock, Clock};
use crate::model::{Revision, UnwrittenObject};
use crate::protocol::ToNode;
use crate::store::{ProposeError, Store, StoreHandle};
use crate::sync::{lock, panic_text, replace_if_changed};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pauses before the loops are started again after a panic.
const RESTART: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
/// Loops that ran for this long have recovered.
const RECOVERED: Duration = Duration::from_mins(1);
/// A clock that is behind by more is named in the log.
const MOST_SKEW: Duration = Duration::from_secs(10);

type PendingWrite = BoxFuture<'static, Result<u64, ProposeError>>;

/// The running manager.
pub struct Manager {
    /// The rpc server passes the nodes' sessions to this.
    pub sessions: Sessions,
    /// Lowest revision that every live node has applied; the default while this manager does not lead.
    pub applied: watch::Receiver<Revision>,
    pub health: watch::Receiver<LeaderHealth>,
    /// Ends when the shutdown token is cancelled or the store is dropped.
    pub finished: tokio::task::JoinHandle<()>,
}

/// What does not work in the leader's loops.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct LeaderHealth {
    /// Times that the loops were started again after a panic.
    pub restarts: u64,
    /// The last panic; `None` once the loops have run for a minute since.
    pub panic: Option<String>,
    /// Objects whose planned change cannot be written.
    pub left_out: Vec<UnwrittenObject>,
}

/// What raft says of this manager.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leadership {
    Follows,
    Leads {
        /// Raft id of the leader before, if it did not hand over.
        lost_leader: Option<u64>,
    },
}

/// Starts the loops. They do nothing until this manager leads, and start without state each time that it begins to.
pub fn start(
    store: StoreHandle,
    leadership: watch::Receiver<Leadership>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    seed: u64,
    shutdown: CancellationToken,
) -> Manager {
    let (sessions, queue) = sessions::channel();
    let (applied_sender, applied) = watch::channel(Revision::default());
    let (health_sender, health) = watch::channel(LeaderHealth::default());
    let outboxes = Outboxes::default();
    let shell =
        Shell { store, leadership, settings, clock, seed, queue, outboxes, applied: applied_sender, health: health_sender };
    let run = async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = shell.run() => tracing::debug!("the store was dropped, the manager's loops end"),
        }
    };
    Manager { sessions, applied, health, finished: tokio::spawn(run) }
}

struct Shell {
    store: StoreHandle,
    leadership: watch::Receiver<Leadership>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    seed: u64,
    queue: mpsc::UnboundedReceiver<SessionEvent>,
    outboxes: Outboxes,
    applied: watch::Sender<Revision>,
    health: watch::Sender<LeaderHealth>,
}

/// Why leading or following ended.
enum Ended {
    LeadershipChanged,
    /// Raft, the store or all session handles were dropped.
    NothingToDo,
}

impl Shell {
    async fn run(mut self) {
        let (mut term, mut failures) = (0_u64, 0);
        loop {
            let leadership = *self.leadership.borrow_and_update();
            let ended = if let Leadership::Leads { lost_leader } = leadership {
                term += 1;
                tracing::info!(term, "this manager leads: loops start");
                let started = Instant::now();
                let ended = AssertUnwindSafe(self.lead(self.seed.wrapping_add(term), lost_leader)).catch_unwind().await;
                self.applied.send_replace(Revision::default());
                match ended {
                    Ok(ended) => {
                        self.outboxes.close_all(Some(&ToNode::NotLeader { leader: None, manager: None }));
                        // What is wrong now is the next leader's to find out.
                        self.health.send_modify(|health| {
                            health.panic = None;
                            health.left_out.clear();
                        });
                        tracing::info!(term, "this manager does not lead any more: loops stopped");
                        ended
                    }
                    Err(panic) => {
                        failures = if started.elapsed() >= RECOVERED { 1 } else { failures + 1 };
                        self.restart_after(panic_text(&*panic).to_owned(), failures).await
                    }
                }
            } else {
                self.follow().await
            };
            if matches!(ended, Ended::NothingToDo) {
                return;
            }
        }
    }

    /// After a panic: the nodes open new sessions once the loops run again.
    async fn restart_after(&mut self, text: String, failures: u32) -> Ended {
        let pause = RESTART.pause(failures);
        let pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        tracing::error!(panic = text, pause_ms, "the leader's loops have failed: they are started again");
        self.health.send_modify(|health| {
            health.restarts += 1;
            health.panic = Some(text);
        });
        self.outboxes.close_all(None);
        tokio::time::timeout(pause, self.follow()).await.unwrap_or(Ended::LeadershipChanged)
    }

    /// Refuses sessions until this manager leads.
    async fn follow(&mut self) -> Ended {
        loop {
            tokio::select! {
                changed = self.leadership.changed() => {
                    return if changed.is_ok() { Ended::LeadershipChanged } else { Ended::NothingToDo };
                }
                event = self.queue.recv() => match event {
                    None => return Ended::NothingToDo,
                    Some(SessionEvent { event: Event::Opened { .. }, outgoing: Some(outgoing), .. }) => {
                        drop(outgoing.try_send(ToNode::NotLeader { leader: None, manager: None }));
                    }
                    Some(_) => {}
                },
            }
        }
    }

    /// What an earlier leader wrote may be later than this manager's clock, and what this one writes is written after it: with the
    /// clock itself every delay and every limit of this term would be longer by the difference.
    fn clock_of_term(&self) -> Arc<dyn Clock> {
        let written = self.store.read().written_at().unwrap_or_default();
        let clock = AheadClock::not_before(self.clock.clone(), written);
        let behind = clock.is_ahead_by();
        if behind >= MOST_SKEW {
            tracing::warn!(?behind, "this manager's clock is behind what the last leader wrote: check the time of the managers");
        }
        Arc::new(clock)
    }

    async fn lead(&mut self, seed: u64, lost_leader: Option<u64>) -> Ended {
        let handover = Arc::new(Handover::new());
        let clock = self.clock_of_term();
        let (view, outboxes) = (self.store.watch(), self.outboxes.clone());
        let liveness = LivenessLoop::new(&self.settings, view, lost_leader, clock.clone(), outboxes, handover.clone());
        let planning = PlanningLoop {
            store: self.store.clone(),
            view: self.store.watch(),
            settings: self.settings.clone(),
            clock,
            outboxes: self.outboxes.clone(),
            handover,
            applied: self.applied.clone(),
            health: self.health.clone(),
        };
        let leadership = &mut self.leadership;
        let led = async move {
            match leadership.wait_for(|now| *now == Leadership::Follows).await {
                Ok(_) => Ended::LeadershipChanged,
                Err(_) => Ended::NothingToDo,
            }
        };
        tokio::select! {
            ended = led => ended,
            () = liveness.run(self.settings.heartbeat, &mut self.queue) => Ended::NothingToDo,
            () = planning.run(seed) => Ended::NothingToDo,
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

/// Runs on a thread for work that takes long.
///
/// # Panics
/// The work has.
async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime shuts down, and this loop with it.
        Err(_) => std::future::pending().await,
    }
}

struct PlanningLoop {
    store: StoreHandle,
    view: watch::Receiver<Arc<Store>>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    outboxes: Outboxes,
    handover: Arc<Handover>,
    applied: watch::Sender<Revision>,
    health: watch::Sender<LeaderHealth>,
}

impl PlanningLoop {
    /// Runs until the store is dropped.
    async fn run(mut self, seed: u64) {
        let mut ticks = tokio::time::interval(self.settings.heartbeat / 5);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (settings, first, now) = (self.settings.clone(), self.view.borrow().clone(), self.clock.now());
        let mut term = in_background(move || Box::new(Term::new(&settings, first, now, seed))).await;
        let started = Instant::now();
        let mut writing: Option<PendingWrite> = None;
        loop {
            let (mut outcome, mut is_tick) = (None, false);
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                () = self.handover.changed.notified() => {}
                ended = outcome_of(&mut writing) => {
                    writing = None;
                    outcome = Some(ended);
                }
                _ = ticks.tick() => is_tick = true,
            }
            let input = self.input(outcome, is_tick, writing.is_none());
            let (next, output) = in_background(move || {
                let output = term.step(input);
                (term, output)
            })
            .await;
            term = next;
            let StepOutput { effects, write, applied, left_out } = output;
            self.outboxes.carry_out(effects);
            replace_if_changed(&self.applied, applied);
            let recovered = started.elapsed() >= RECOVERED;
            self.health.send_if_modified(|health| {
                let before = health.clone();
                health.panic.take_if(|_| recovered);
                health.left_out = left_out;
                *health != before
            });
            if let Some(plan) = write {
                let handle = self.store.clone();
                writing = Some(Box::pin(async move { handle.propose(plan).await }));
            }
        }
    }

    /// The inbox before the snapshot, which is never older than what is in the inbox; the store last, for the same reason.
    fn input(&mut self, outcome: Option<Result<u64, ProposeError>>, is_tick: bool, may_write: bool) -> StepInput {
        let events = lock(&self.handover.inbox).take();
        let liveness = self.handover.snapshot.borrow().clone();
        let store = self.view.borrow_and_update().clone();
        StepInput { now: self.clock.now(), store, events, liveness, is_tick, outcome, may_write }
    }
}
