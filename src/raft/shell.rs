//! The thread around the core: passes requests and ticks to it and carries out its effects. All disk access is on this
//! thread, not on those of the async runtime; only the bytes of a snapshot are made on one of their own, because a large state
//! takes longer than an election. A disk failure (full, broken) stops writes and not the process: the log is
//! opened again until that works. So it is after a bug, and after a snapshot of the leader that cannot be read.

use super::config::{RaftConfig, RaftError, RaftStatus, StateMachine, Transport};
use super::core::{Core, CoreFailure, Effect, Event};
use super::disk::{Disk, DiskError, SealAgainError};
use super::handle::Raft;
use super::log::Log;
use super::request::{RaftRequest, Responder};
use super::retries::Retries;
use super::snapshot_thread::{SnapshotBug, SnapshotThread};
use super::turns::{SilenceLimits, Turns, TurnsWatch, without_leader};
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait.
const QUEUE: usize = 4096;
/// Requests that are processed together: their entries are one write to the disk.
const REQUEST_BATCH: usize = 256;
/// Time after a disk failure until the log is opened again.
const RETRY: Duration = Duration::from_secs(1);

/// Starts this manager's raft; returns when its log is read, checked and applied as far as it is known to be committed.
/// With `bootstrap`, if there is no log, creates that of a new cluster with this manager as the only voter. Otherwise there
/// must be a log: a manager that lost its log may have voted, and must not start with an empty one under the same id.
/// [`join`] creates the log of a manager that is to be added. A caller that keeps raft also runs [`Raft::watch_turns`].
///
/// # Errors
/// The log cannot be opened (see [`DiskError`]), the machine cannot read it, or the settings are
/// invalid.
pub async fn start<S: StateMachine>(
    config: RaftConfig,
    bootstrap: bool,
    machine: S,
    transport: Arc<dyn Transport>,
    shutdown: CancellationToken,
) -> anyhow::Result<Raft<S::Outcome>> {
    let (requests, queue) = sync_channel(QUEUE);
    let (status, watched) = watch::channel(RaftStatus { id: config.id, ..RaftStatus::default() });
    let (status, turns, limits) = (Arc::new(status), Arc::new(Turns::default()), SilenceLimits::new(&config));
    let (started, is_started) = oneshot::channel();
    let watch = Arc::new(TurnsWatch { status: Arc::downgrade(&status), turns: turns.clone(), limits: limits.clone() });
    let handle = Raft { requests, status: watched, timeout: config.propose_timeout, watch };
    let shell = Shell {
        config,
        machine,
        transport,
        shutdown,
        queue,
        status,
        turns,
        limits,
        is_behind: false,
        waiting: BTreeMap::new(),
        next_ticket: 0,
        sealing: Vec::new(),
    };
    std::thread::Builder::new()
        .name("raft".to_owned())
        .spawn(move || shell.run(bootstrap, started))
        .context("the raft thread cannot be started")?;
    is_started.await.context("the raft thread ended at its start")??;
    Ok(handle)
}

/// Creates the empty log of a manager that joins under a raft id never used before; the leader that adds the manager
/// ([`super::MembershipChange`]) fills it. Call `start` without `bootstrap` afterwards. An existing log is left as it is.
/// Blocks.
///
/// # Errors
/// The log cannot be written.
pub fn join(config: &RaftConfig) -> Result<(), DiskError> {
    let exists = config.dir.join(super::FILE).exists();
    if exists { Ok(()) } else { Disk::create(&config.dir, config.id, &Log::default(), &config.cipher) }
}

/// Why a session with an open log ended.
enum LogSessionEnd {
    /// Raft is shut down.
    Shutdown,
    /// The disk failed: to be tried again.
    Disk(DiskError),
    /// What the leader sent cannot be read: it may send other.
    Unread(anyhow::Error),
    /// To be tried again, unless it comes again and again.
    Bug(anyhow::Error),
    /// Only the user can help.
    Fatal(anyhow::Error),
}

impl From<SnapshotBug> for LogSessionEnd {
    fn from(bug: SnapshotBug) -> Self {
        Self::Bug(bug.into())
    }
}

impl From<CoreFailure> for LogSessionEnd {
    fn from(failure: CoreFailure) -> Self {
        Self::Fatal(failure.into())
    }
}

enum Waiter<O> {
    Propose(Responder<(u64, O)>),
    Change(Responder<u64>),
}

/// The proposer if it waits here, the entry's index, and its outcome.
type AppliedEntry<O> = (Option<Waiter<O>>, u64, O);

impl<O> Waiter<O> {
    fn refuse(self, error: RaftError) {
        // Sending fails if the proposer has timed out.
        match self {
            Self::Propose(responder) => drop(responder.send(Err(error))),
            Self::Change(responder) => drop(responder.send(Err(error))),
        }
    }
}

struct Shell<S: StateMachine> {
    config: RaftConfig,
    machine: S,
    transport: Arc<dyn Transport>,
    shutdown: CancellationToken,
    queue: Receiver<RaftRequest<S::Outcome>>,
    status: Arc<watch::Sender<RaftStatus>>,
    turns: Arc<Turns>,
    limits: SilenceLimits,
    /// The disk held the thread for longer than an election takes: what the others sent meanwhile, another leader's messages among it,
    /// still waits in the queue.
    is_behind: bool,
    /// By ticket.
    waiting: BTreeMap<u64, Waiter<S::Outcome>>,
    next_ticket: u64,
    /// Who waits for the log to be sealed again.
    sealing: Vec<Responder<()>>,
}

impl<S: StateMachine> Shell<S> {
    fn run(mut self, bootstrap: bool, started: oneshot::Sender<anyhow::Result<()>>) {
        let mut started = Some(started);
        if let Err(error) = self.create_log(bootstrap) {
            let _ = started.take().map(|started| started.send(Err(error)));
            return;
        }
        let mut retries = Retries::default();
        loop {
            let end = catch_unwind(AssertUnwindSafe(|| self.session(&mut started))).unwrap_or_else(|_| {
                LogSessionEnd::Bug(anyhow::anyhow!("raft failed because of a bug, which is in the log above"))
            });
            let now = Instant::now();
            let (error, pause) = match end {
                LogSessionEnd::Shutdown => return,
                LogSessionEnd::Disk(error @ DiskError::Broken { .. }) => (error.into(), None),
                LogSessionEnd::Disk(error) => (error.into(), Some(RETRY)),
                LogSessionEnd::Unread(error) => (error, Some(retries.after_failure(now))),
                LogSessionEnd::Bug(error) => match retries.after_bug(now) {
                    Some(pause) => (error, Some(pause)),
                    None => (anyhow::anyhow!("{error:#}, and comes again: restart skep"), None),
                },
                LogSessionEnd::Fatal(error) => (error, None),
            };
            if let Some(started) = started.take() {
                let _ = started.send(Err(error));
                return;
            }
            if self.refuse_all(&format!("{error:#}"), pause.map(|pause| now + pause)).is_break() {
                return;
            }
        }
    }

    fn create_log(&mut self, bootstrap: bool) -> anyhow::Result<()> {
        let RaftConfig { dir, id, .. } = &self.config;
        anyhow::ensure!(*id != 0, "0 is no raft id");
        let exists = dir.join(super::FILE).try_exists().with_context(|| format!("{} cannot be read", dir.display()))?;
        if bootstrap && !exists {
            Disk::create(dir, *id, &Log::bootstrap(*id, self.machine.snapshot()), &self.config.cipher)?;
        }
        Ok(())
    }

    /// Opens the log and serves requests until something ends that.
    fn session(&mut self, started: &mut Option<oneshot::Sender<anyhow::Result<()>>>) -> LogSessionEnd {
        match self.serve(started) {
            Ok(()) => LogSessionEnd::Shutdown,
            Err(end) => end,
        }
    }

    fn serve(&mut self, started: &mut Option<oneshot::Sender<anyhow::Result<()>>>) -> Result<(), LogSessionEnd> {
        let config = &self.config;
        let (mut disk, log) = Disk::open_sealed(&config.dir, config.id, &config.cipher).map_err(LogSessionEnd::Disk)?;
        let (mut core, effects) = Core::new(&self.config, log)?;
        core.count_ignored(self.status.borrow().ignored);
        let mut snapshots = SnapshotThread::default();
        self.carry_out(&disk, &mut core, &mut snapshots, effects).map_err(|end| match end {
            // It is this manager's own, from its disk.
            LogSessionEnd::Unread(error) => LogSessionEnd::Fatal(error),
            end => end,
        })?;
        if let Some(started) = started.take() {
            let _ = started.send(Ok(()));
        }
        let mut next_tick = Instant::now() + self.config.tick;
        while !self.shutdown.is_cancelled() {
            self.turns.note();
            let mut events = Vec::new();
            match self.queue.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(request) => {
                    events.extend(self.event(request)?);
                    while events.len() < REQUEST_BATCH
                        && self.sealing.is_empty()
                        && let Ok(request) = self.queue.try_recv()
                    {
                        events.extend(self.event(request)?);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // All handles are dropped: there will be no further request.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            // The rest of the queue is in this batch.
            self.is_behind &= events.len() >= REQUEST_BATCH;
            events.extend(snapshots.finished()?);
            self.seal_again(&mut disk).map_err(LogSessionEnd::Disk)?;
            let now = Instant::now();
            if now >= next_tick {
                snapshots.tick();
                events.push(Event::Tick);
                // Ticks missed because of a slow disk are skipped: many at once would look like a silent leader.
                next_tick = (next_tick + self.config.tick).max(now);
            }
            let effects = core.handle(events)?;
            self.carry_out(&disk, &mut core, &mut snapshots, effects)?;
        }
        Ok(())
    }

    /// Seals the log again if that was asked for. A failure that left the file of before is no failure of the log: only those who
    /// asked get it.
    fn seal_again(&mut self, disk: &mut Disk) -> Result<(), DiskError> {
        if self.sealing.is_empty() {
            return Ok(());
        }
        let failure = match disk.seal_again(&self.config.dir) {
            Ok(()) => None,
            Err(SealAgainError::Unchanged(error)) => Some(RaftError::NotSealed(error.to_string())),
            Err(SealAgainError::Replaced(error)) => return Err(error),
        };
        for responder in self.sealing.drain(..) {
            let _ = responder.send(failure.clone().map_or(Ok(()), Err));
        }
        Ok(())
    }

    fn event(&mut self, request: RaftRequest<S::Outcome>) -> Result<Option<Event>, LogSessionEnd> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        Ok(Some(match request {
            RaftRequest::SealAgain { responder } => {
                self.sealing.push(responder);
                return Ok(None);
            }
            RaftRequest::Supersede(reason) => return Err(LogSessionEnd::Fatal(anyhow::anyhow!(reason))),
            RaftRequest::Message { from, bytes } => Event::Message { from, bytes },
            RaftRequest::TransferLeadership => Event::TransferLeadership,
            RaftRequest::Ended(id) => Event::Ended(id),
            RaftRequest::Propose { data, responder } => {
                self.waiting.insert(ticket, Waiter::Propose(responder));
                Event::Propose { ticket, data }
            }
            RaftRequest::Change { change, responder } => {
                self.waiting.insert(ticket, Waiter::Change(responder));
                Event::Change { ticket, change }
            }
        }))
    }

    fn carry_out(
        &mut self,
        disk: &Disk,
        core: &mut Core,
        snapshots: &mut SnapshotThread,
        effects: Vec<Effect>,
    ) -> Result<(), LogSessionEnd> {
        let (mut outcomes, mut is_restored) = (Vec::new(), false);
        for effect in effects {
            if !matches!(effect, Effect::Apply { .. }) {
                self.publish_applied(&mut outcomes);
            }
            match effect {
                Effect::Persist(batch) => disk.write(&batch).map_err(LogSessionEnd::Disk)?,
                Effect::Send { to, message } => self.transport.send(to, message),
                Effect::Restore { index, bytes } => {
                    if let Err(error) = self.machine.restore(index, &bytes) {
                        self.status.send_modify(|status| status.ignored += 1);
                        let context = format!("the snapshot of entry {index} cannot be read");
                        return Err(LogSessionEnd::Unread(error.context(context)));
                    }
                    // Published once it is durable.
                    is_restored = true;
                }
                Effect::Apply { index, data, ticket } => match self.machine.apply(index, &data) {
                    Ok(outcome) => outcomes.push((ticket.and_then(|t| self.waiting.remove(&t)), index, outcome)),
                    Err(error) => {
                        self.publish_applied(&mut outcomes);
                        return Err(LogSessionEnd::Fatal(error.context(format!("entry {index} cannot be read"))));
                    }
                },
                Effect::Changed { ticket, index } => {
                    if let Some(Waiter::Change(responder)) = self.waiting.remove(&ticket) {
                        let _ = responder.send(Ok(index));
                    }
                }
                Effect::Refuse { ticket, error } => {
                    if let Some(waiter) = self.waiting.remove(&ticket) {
                        waiter.refuse(error);
                    }
                }
                Effect::Snapshot { index } => snapshots.start(index, self.machine.later_snapshot()),
            }
        }
        if is_restored {
            self.machine.publish();
        }
        self.publish_applied(&mut outcomes);
        core.set_snapshot_every(self.machine.snapshot_every());
        self.publish_status(core.status());
        Ok(())
    }

    /// Ends a batch of entries that were applied one after the other: readers see the state, then proposers the outcomes.
    fn publish_applied(&mut self, outcomes: &mut Vec<AppliedEntry<S::Outcome>>) {
        if outcomes.is_empty() {
            return;
        }
        self.machine.publish();
        for (waiter, index, outcome) in outcomes.drain(..) {
            if let Some(Waiter::Propose(responder)) = waiter {
                let _ = responder.send(Ok((index, outcome)));
            }
        }
    }

    fn publish_status(&mut self, mut new: RaftStatus) {
        self.is_behind |= self.turns.silence() > self.limits.election && new.voters != [new.id];
        if self.is_behind {
            without_leader(&mut new);
        }
        self.status.send_if_modified(|old| {
            if (old.term, old.leader) != (new.term, new.leader) {
                tracing::info!(raft = new.id, term = new.term, leader = new.leader, "raft leader");
            }
            let changed = *old != new;
            *old = new;
            changed
        });
    }

    /// After a failure of the disk or the log: refuses all requests with the reason, until that time or for good.
    /// Breaks if raft is to end.
    fn refuse_all(&mut self, problem: &str, until: Option<Instant>) -> ControlFlow<()> {
        self.turns.note();
        if self.status.borrow().problem.as_deref() != Some(problem) {
            tracing::error!(raft = self.config.id, problem, "raft cannot write");
        }
        self.status.send_modify(|s| {
            s.problem = Some(problem.to_owned());
            without_leader(s);
        });
        let stopped = || RaftError::Stopped(problem.to_owned());
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            waiter.refuse(stopped());
        }
        for responder in self.sealing.drain(..) {
            let _ = responder.send(Err(stopped()));
        }
        while !self.shutdown.is_cancelled() && until.is_none_or(|until| Instant::now() < until) {
            self.turns.note();
            match self.queue.recv_timeout(self.config.tick) {
                Ok(RaftRequest::Propose { responder, .. }) => Waiter::Propose(responder).refuse(stopped()),
                Ok(RaftRequest::SealAgain { responder }) => drop(responder.send(Err(stopped()))),
                Ok(RaftRequest::Change { responder, .. }) => Waiter::<S::Outcome>::Change(responder).refuse(stopped()),
                Ok(
                    RaftRequest::Message { .. }
                    | RaftRequest::TransferLeadership
                    | RaftRequest::Ended(_)
                    | RaftRequest::Supersede(_),
                )
                | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        if self.shutdown.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests;
