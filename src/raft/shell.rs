//! The thread around the core: requests and ticks in, effects carried out. All disk work is done here, off the async
//! threads. A disk that fails (full, broken) stops the writes and not the process: the log is opened again until it works.

use super::config::{RaftConfig, RaftError, RaftStatus, StateMachine, Transport};
use super::core::{Change, Core, Effect, Event, Failure};
use super::disk::{Disk, DiskError};
use super::handle::Raft;
use super::log::Log;
use anyhow::Context as _;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Requests that may wait.
const QUEUE: usize = 4096;
/// Requests taken together: their entries are one write to the disk.
const TOGETHER: usize = 256;
/// How long a failed disk is left alone before it is tried again.
const RETRY: Duration = Duration::from_secs(1);

type Answer<T> = oneshot::Sender<Result<T, RaftError>>;

/// What the handle asks of the thread.
pub(super) enum Request<O> {
    Propose { data: Vec<u8>, answer: Answer<(u64, O)> },
    Change { change: Change, answer: Answer<u64> },
    Message(Vec<u8>),
}

/// Starts this manager's raft and returns once its log is read, checked and applied as far as it is known to be
/// committed. `bootstrap` makes the log of a new cluster with this manager as the only voter if there is no log.
/// Without it there must be one: a manager that lost its log may have voted, and must not begin anew under the same id.
/// [`join`] makes the log of a manager that is to be added.
///
/// # Errors
/// The log cannot be opened ([`DiskError`] says why and what to do), the machine cannot read it, or the settings make no sense.
pub async fn start<S: StateMachine>(
    config: RaftConfig,
    bootstrap: bool,
    machine: S,
    transport: Arc<dyn Transport>,
    shutdown: CancellationToken,
) -> anyhow::Result<Raft<S::Outcome>> {
    let (requests, queue) = sync_channel(QUEUE);
    let (status, watched) = watch::channel(RaftStatus { id: config.id, ..RaftStatus::default() });
    let (up, is_up) = oneshot::channel();
    let handle = Raft { requests, status: watched, timeout: config.propose_timeout };
    let shell = Shell { config, machine, transport, shutdown, queue, status, waiting: BTreeMap::new(), tickets: 0 };
    std::thread::Builder::new()
        .name("raft".to_owned())
        .spawn(move || shell.run(bootstrap, up))
        .context("the raft thread cannot be started")?;
    is_up.await.context("the raft thread ended at its start")??;
    Ok(handle)
}

/// Makes the empty log of a manager that joins under a raft id never used before, to be filled by the leader that adds
/// it ([`Change`]); `start` without `bootstrap` comes next. A log that is there already is left as it is. Blocks.
///
/// # Errors
/// The log cannot be written.
pub fn join(config: &RaftConfig) -> Result<(), DiskError> {
    if config.dir.join(super::FILE).exists() { Ok(()) } else { Disk::create(&config.dir, config.id, &Log::default()) }
}

/// Why a session with the log ended.
enum End {
    /// Shut down.
    Over,
    /// The disk failed; to be tried again.
    Disk(DiskError),
    /// Nothing helps but a person.
    Fatal(anyhow::Error),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Fatal(failure.into())
    }
}

enum Waiter<O> {
    Propose(Answer<(u64, O)>),
    Change(Answer<u64>),
}

impl<O> Waiter<O> {
    fn refuse(self, error: RaftError) {
        // A proposer that timed out is not there any more.
        match self {
            Self::Propose(answer) => drop(answer.send(Err(error))),
            Self::Change(answer) => drop(answer.send(Err(error))),
        }
    }
}

struct Shell<S: StateMachine> {
    config: RaftConfig,
    machine: S,
    transport: Arc<dyn Transport>,
    shutdown: CancellationToken,
    queue: Receiver<Request<S::Outcome>>,
    status: watch::Sender<RaftStatus>,
    waiting: BTreeMap<u64, Waiter<S::Outcome>>,
    tickets: u64,
}

impl<S: StateMachine> Shell<S> {
    fn run(mut self, bootstrap: bool, up: oneshot::Sender<anyhow::Result<()>>) {
        let mut up = Some(up);
        if let Err(error) = self.make_log(bootstrap) {
            let _ = up.take().map(|up| up.send(Err(error)));
            return;
        }
        loop {
            let end = catch_unwind(AssertUnwindSafe(|| self.session(&mut up)))
                .unwrap_or_else(|_| End::Fatal(anyhow::anyhow!("raft failed by a bug; the log above says where: restart skep")));
            let (error, retry) = match end {
                End::Over => return,
                End::Disk(error) => (error.into(), true),
                End::Fatal(error) => (error, false),
            };
            if let Some(up) = up.take() {
                let _ = up.send(Err(error));
                return;
            }
            if !self.idle(&format!("{error:#}"), retry) {
                return;
            }
        }
    }

    fn make_log(&mut self, bootstrap: bool) -> anyhow::Result<()> {
        let RaftConfig { dir, id, .. } = &self.config;
        anyhow::ensure!(*id != 0, "0 is no raft id");
        let there = dir.join(super::FILE).try_exists().with_context(|| format!("{} cannot be looked at", dir.display()))?;
        if bootstrap && !there {
            Disk::create(dir, *id, &Log::bootstrap(*id, self.machine.snapshot()))?;
        }
        Ok(())
    }

    /// From opening the log until something ends it.
    fn session(&mut self, up: &mut Option<oneshot::Sender<anyhow::Result<()>>>) -> End {
        match self.serve(up) {
            Ok(()) => End::Over,
            Err(end) => end,
        }
    }

    fn serve(&mut self, up: &mut Option<oneshot::Sender<anyhow::Result<()>>>) -> Result<(), End> {
        let (disk, log) = Disk::open(&self.config.dir, self.config.id).map_err(End::Disk)?;
        let (mut core, effects) = Core::new(&self.config, log)?;
        self.carry_out(&disk, &mut core, effects)?;
        if let Some(up) = up.take() {
            let _ = up.send(Ok(()));
        }
        let mut next_tick = Instant::now() + self.config.tick;
        while !self.shutdown.is_cancelled() {
            let mut events = Vec::new();
            match self.queue.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(request) => {
                    events.push(self.event(request));
                    while events.len() < TOGETHER
                        && let Ok(request) = self.queue.try_recv()
                    {
                        events.push(self.event(request));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody holds a handle: nothing can come in any more.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let now = Instant::now();
            if now >= next_tick {
                events.push(Event::Tick);
                // Ticks lost to a slow disk are not made up for: they would look like a silent leader.
                next_tick = (next_tick + self.config.tick).max(now);
            }
            let effects = core.handle(events)?;
            self.carry_out(&disk, &mut core, effects)?;
        }
        Ok(())
    }

    fn event(&mut self, request: Request<S::Outcome>) -> Event {
        let ticket = self.tickets;
        self.tickets += 1;
        match request {
            Request::Message(bytes) => Event::Message(bytes),
            Request::Propose { data, answer } => {
                self.waiting.insert(ticket, Waiter::Propose(answer));
                Event::Propose { ticket, data }
            }
            Request::Change { change, answer } => {
                self.waiting.insert(ticket, Waiter::Change(answer));
                Event::Change { ticket, change }
            }
        }
    }

    fn carry_out(&mut self, disk: &Disk, core: &mut Core, mut effects: Vec<Effect>) -> Result<(), End> {
        while !effects.is_empty() {
            let mut further = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Persist(batch) => disk.write(&batch).map_err(End::Disk)?,
                    Effect::Send { to, message } => self.transport.send(to, message),
                    Effect::Restore { index, bytes } => {
                        let restored = self.machine.restore(index, &bytes);
                        restored.with_context(|| format!("the snapshot of entry {index} cannot be read")).map_err(End::Fatal)?;
                    }
                    Effect::Apply { index, data, ticket } => {
                        let outcome = self.machine.apply(index, &data);
                        let outcome = outcome.with_context(|| format!("entry {index} cannot be read")).map_err(End::Fatal)?;
                        if let Some(Waiter::Propose(answer)) = ticket.and_then(|t| self.waiting.remove(&t)) {
                            let _ = answer.send(Ok((index, outcome)));
                        }
                    }
                    Effect::Changed { ticket, index } => {
                        if let Some(Waiter::Change(answer)) = self.waiting.remove(&ticket) {
                            let _ = answer.send(Ok(index));
                        }
                    }
                    Effect::Refuse { ticket, error } => {
                        if let Some(waiter) = self.waiting.remove(&ticket) {
                            waiter.refuse(error);
                        }
                    }
                    Effect::Snapshot { index } => {
                        let bytes = self.machine.snapshot();
                        tracing::debug!(index, bytes = bytes.len(), "snapshot taken");
                        further.extend(core.handle([Event::Snapshot { index, bytes }])?);
                    }
                }
            }
            effects = further;
        }
        self.publish(core.status());
        Ok(())
    }

    fn publish(&self, new: RaftStatus) {
        self.status.send_if_modified(|old| {
            if (old.term, old.leader) != (new.term, new.leader) {
                tracing::info!(raft = new.id, term = new.term, leader = new.leader, "raft leader");
            }
            let changed = *old != new;
            *old = new;
            changed
        });
    }

    /// The disk or the log failed: everything is refused with the reason, for a while (then true) or until the end.
    fn idle(&mut self, problem: &str, retry: bool) -> bool {
        if self.status.borrow().problem.as_deref() != Some(problem) {
            tracing::error!(raft = self.config.id, problem, "raft cannot write");
        }
        self.status.send_modify(|s| {
            s.problem = Some(problem.to_owned());
            s.leader = None;
            s.is_leader = false;
        });
        let stopped = || RaftError::Stopped(problem.to_owned());
        for (_, waiter) in std::mem::take(&mut self.waiting) {
            waiter.refuse(stopped());
        }
        let until = Instant::now() + RETRY;
        while !self.shutdown.is_cancelled() && (!retry || Instant::now() < until) {
            match self.queue.recv_timeout(self.config.tick) {
                Ok(Request::Propose { answer, .. }) => Waiter::Propose(answer).refuse(stopped()),
                Ok(Request::Change { answer, .. }) => Waiter::<S::Outcome>::Change(answer).refuse(stopped()),
                Ok(Request::Message(_)) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        !self.shutdown.is_cancelled()
    }
}
