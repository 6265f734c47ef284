//! A simulated manager: its disk, which outlives its process, and what raft's core wants done.

use super::history::Outcome;
use super::leading::Leading;
use super::mutants::{self, Mutant};
use super::world::{Due, End, Process, TICK, World};
use rand::Rng;
use serde::{Deserialize, Serialize};
use skep::manager::invariants;
use skep::model::Timestamp;
use skep::raft::{Core, Effect, Event, Log, LogBatch, RaftConfig, RaftError, RaftStatus};
use skep::store::{Store, StoreError, Transaction};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

const SNAPSHOT_EVERY: u64 = 40;
const KEEP: u64 = 10;
/// How long a manager may take to see that it has no majority. A slow disk makes it later.
const UNMARKED: Duration = Duration::from_secs(3);

/// What a log entry contains.
#[derive(Serialize, Deserialize)]
pub struct EntryDocument {
    /// Of a client; 0: written by the leader.
    pub operation: u64,
    pub transaction: Transaction,
}

pub struct SimulatedManager {
    pub id: u64,
    /// What is durable.
    pub disk: Log,
    /// Number of starts.
    pub boot: u64,
    /// How far its clock is ahead, in milliseconds.
    pub ahead_ms: u64,
    pub running: Option<RunningManager>,
}

/// What is lost when the process ends.
pub struct RunningManager {
    pub core: Core,
    pub store: Arc<Store>,
    /// What follows a write to the disk that has not ended.
    effects: VecDeque<Effect>,
    writing: Option<LogBatch>,
    /// What came meanwhile.
    events: Vec<Event>,
    pub leading: Option<Leading>,
    waiters: BTreeMap<u64, Waiter>,
    /// Operations applied since the start, with their outcomes: a manager that forwards one twice gets the same answer.
    pub outcomes: BTreeMap<u64, Outcome>,
    /// What the disk has is restored and applied.
    has_started: bool,
    /// When another manager was heard last.
    pub heard: Timestamp,
    /// Since when it knows no leader, as production finds it out.
    leaderless: Option<Timestamp>,
    /// The state before the last entry.
    before: Arc<Store>,
}

impl RunningManager {
    pub fn is_in_flight(&self, number: u64) -> bool {
        self.waiters.values().any(|waiter| matches!(waiter, Waiter::Client { operation, .. } if *operation == number))
    }
}

/// Who waits for the outcome of a proposal.
pub enum Waiter {
    Plan,
    Client {
        operation: u64,
        from: Process,
    },
    Membership,
    /// Of the swarm itself: if it fails it is made again.
    Admin,
}

impl SimulatedManager {
    pub fn status(&self) -> Option<RaftStatus> {
        self.running.as_ref().map(|running| running.core.status())
    }
    pub fn process(&self) -> Process {
        (self.id, self.boot)
    }
}

fn config(id: u64) -> RaftConfig {
    RaftConfig { snapshot_every: SNAPSHOT_EVERY, keep_entries: KEEP, ..RaftConfig::new("", id) }
}

impl World {
    pub fn start_manager(&mut self, id: u64, disk: Log) {
        self.managers.insert(id, SimulatedManager { id, disk, boot: 0, ahead_ms: 0, running: None });
        self.boot(id);
    }

    /// Starts the process with what is durable.
    pub fn boot(&mut self, id: u64) {
        let Some(manager) = self.managers.get_mut(&id).filter(|manager| manager.running.is_none()) else { return };
        manager.boot += 1;
        let (core, effects) = Core::new(&config(id), manager.disk.clone()).expect("a core starts from its own log");
        manager.running = Some(RunningManager {
            core,
            store: Arc::default(),
            effects: effects.into(),
            writing: None,
            events: Vec::new(),
            leading: None,
            waiters: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            has_started: false,
            heard: self.now,
            leaderless: None,
            before: Arc::default(),
        });
        let process = manager.process();
        self.note(&("boot", process));
        let phase = self.rng.random_range(0..TICK);
        self.later(phase, Due::Tick(process));
        self.later(phase, Due::LeaderStep(process));
        self.carry_out(id);
        self.running(id).has_started = true;
    }

    /// Ends the process. A write under way may have become durable all the same.
    pub fn crash(&mut self, id: u64, durable: bool) {
        let manager = self.managers.get_mut(&id).expect("a manager");
        if let Some(batch) = manager.running.take().and_then(|running| running.writing).filter(|_| durable) {
            manager.disk.write(&batch);
        }
        if self.mutant == Some(Mutant::LastEntryIsLostInACrash) {
            manager.disk = without_last_entry(&manager.disk);
        }
        let process = manager.process();
        self.note(&("crash", process));
        self.history.process_ended(process);
    }

    pub fn raft_event(&mut self, id: u64, event: Event) {
        let Some(running) = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()) else { return };
        running.events.push(event);
        if running.writing.is_none() {
            self.carry_out(id);
        }
    }

    /// A proposal on this manager's raft.
    pub fn propose(&mut self, id: u64, operation: u64, mut transaction: Transaction, waiter: Waiter) {
        let ticket = self.next_number();
        let Some(running) = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()) else { return };
        if let Some(plan) = &mut transaction.plan {
            plan.term = running.core.status().term;
        }
        running.waiters.insert(ticket, waiter);
        let data = serde_json::to_vec(&EntryDocument { operation, transaction }).unwrap();
        self.raft_event(id, Event::Propose { ticket, data });
    }

    pub fn change_membership(&mut self, id: u64, change: skep::raft::MembershipChange) {
        let ticket = self.next_number();
        let Some(running) = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()) else { return };
        running.waiters.insert(ticket, Waiter::Membership);
        self.raft_event(id, Event::Change { ticket, change });
    }

    /// The batch that was being written is durable.
    pub fn written(&mut self, id: u64) {
        let manager = self.managers.get_mut(&id).unwrap();
        if let Some(batch) = manager.running.as_mut().and_then(|running| running.writing.take()) {
            manager.disk.write(&batch);
        }
        self.carry_out(id);
    }

    /// Carries out what waits until a write to the disk takes time, or there is nothing left.
    fn carry_out(&mut self, id: u64) {
        loop {
            let running = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut());
            let Some(running) = running.filter(|running| running.writing.is_none()) else { return };
            let Some(effect) = running.effects.pop_front() else {
                let events = std::mem::take(&mut running.events);
                if events.is_empty() {
                    break;
                }
                let effects = running.core.handle(events).unwrap_or_else(|e| panic!("seed {}: manager {id}: {e}", self.seed));
                running.effects.extend(effects);
                continue;
            };
            self.note(&(id, summary(&effect)));
            self.effect(id, effect);
        }
        self.check_raft(id);
        self.follow_leadership(id);
    }

    fn effect(&mut self, id: u64, effect: Effect) {
        match effect {
            Effect::Persist(batch) => self.persist(id, batch),
            Effect::Send { to, message } => {
                if self.managers.contains_key(&to) {
                    self.send(&End::Manager(id), &End::Manager(to), false, Due::Raft { from: id, to, message });
                }
            }
            Effect::Restore { index, bytes } => {
                if self.mutant == Some(Mutant::SnapshotIsNotRestored) && self.managers[&id].boot > 1 {
                    return;
                }
                let is_own = !self.running(id).has_started;
                let is_cut = self.mutant == Some(Mutant::SnapshotWithoutItsEnd) && !is_own;
                let bytes = if is_cut { mutants::without_its_end(&bytes).into() } else { bytes };
                let store = if bytes.is_empty() { Store::default() } else { Store::restore(&bytes).expect("a snapshot") };
                self.history.restored(index, &store, is_own);
                self.running(id).store = Arc::new(store);
                self.store_changed(id);
            }
            Effect::Apply { index, data, ticket } => self.apply(id, index, &data, ticket),
            Effect::Changed { ticket, .. } => drop(self.running(id).waiters.remove(&ticket)),
            Effect::Refuse { ticket, error } => {
                let outcome = match error {
                    RaftError::TimedOut | RaftError::Stopped(_) => Outcome::Unknown,
                    _ => Outcome::NotWritten,
                };
                self.ended(id, ticket, outcome, None);
            }
            Effect::Snapshot { index } => {
                let is_earlier = self.mutant == Some(Mutant::SnapshotOfAnEarlierState);
                let running = self.running(id);
                let bytes = if is_earlier { running.before.snapshot() } else { running.store.snapshot() };
                let (process, ms) = (self.managers[&id].process(), self.rng.random_range(1..60));
                self.later(ms, Due::SnapshotMade(process, index, bytes));
            }
        }
    }

    pub fn running(&mut self, id: u64) -> &mut RunningManager {
        self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()).expect("a manager that runs")
    }

    fn persist(&mut self, id: u64, mut batch: LogBatch) {
        if let Some(mutant) = self.mutant {
            mutant.change_batch(&mut batch, self.managers[&id].disk.last());
        }
        let slow = self.faults.slow_disks.contains(&id);
        let mut ms = if slow { self.rng.random_range(20..400) } else { self.rng.random_range(0..4) };
        if self.write_is_watched(id) {
            ms += 1;
        }
        let manager = self.managers.get_mut(&id).unwrap();
        if ms == 0 {
            return manager.disk.write(&batch);
        }
        let process = manager.process();
        let running = manager.running.as_mut().unwrap();
        running.writing = Some(batch);
        if self.mutant == Some(Mutant::SendsBeforeItIsDurable) {
            let effects = std::mem::take(&mut running.effects);
            for effect in effects {
                match effect {
                    Effect::Send { to, message } if self.managers.contains_key(&to) => {
                        self.send(&End::Manager(id), &End::Manager(to), false, Due::Raft { from: id, to, message });
                    }
                    other => self.running(id).effects.push_back(other),
                }
            }
        }
        self.later(ms, Due::Written(process));
        self.fault_of_write(process, ms);
    }

    fn apply(&mut self, id: u64, index: u64, data: &[u8], ticket: Option<u64>) {
        let entry: EntryDocument = serde_json::from_slice(data).expect("an entry of this test");
        if self.mutant == Some(Mutant::AnEntryIsSkipped) && index.is_multiple_of(50) && ticket.is_none() {
            return;
        }
        let ahead = self.managers[&id].ahead_ms;
        let running = self.running(id);
        let before = running.store.clone();
        let mut next = (*before).clone();
        let mut transaction = entry.transaction;
        if self.mutant == Some(Mutant::ApplyReadsTheClock) {
            transaction.at = self.now.plus(Duration::from_millis(ahead));
        }
        let applied = next.apply(index, &transaction);
        let outcome = match &applied {
            Ok(()) => Outcome::Applied(index),
            Err(error) => Outcome::Refused(index, error.to_string()),
        };
        let is_first = self.history.applied(index, entry.operation, data, &outcome);
        if is_first {
            let wrong: Vec<String> = [invariants::check(&next), invariants::check_step(&before, &next)].concat();
            assert!(wrong.is_empty(), "seed {}: entry {index}: {wrong:#?}\n{}", self.seed, self.dump());
            self.history.named(&before, &next);
        }
        self.history.state(index, &next);
        let running = self.running(id);
        running.store = Arc::new(next);
        running.before = before;
        if entry.operation > 0 {
            running.outcomes.insert(entry.operation, outcome.clone());
        }
        self.store_changed(id);
        if let Some(ticket) = ticket {
            self.ended(id, ticket, outcome, applied.err());
        }
        self.applied_here(id);
    }

    /// The outcome of a proposal of this manager.
    fn ended(&mut self, id: u64, ticket: u64, outcome: Outcome, refusal: Option<StoreError>) {
        match self.running(id).waiters.remove(&ticket) {
            Some(Waiter::Client { operation, from }) => self.answer(id, from, operation, outcome),
            Some(Waiter::Plan) => self.plan_ended(id, &outcome, refusal),
            Some(Waiter::Membership | Waiter::Admin) | None => {}
        }
    }

    fn check_raft(&mut self, id: u64) {
        let (now, marks) = (self.now, self.mutant != Some(Mutant::OldReadsAreNotMarked));
        let Some(running) = self.managers.get_mut(&id).and_then(|manager| manager.running.as_mut()) else { return };
        let status = running.core.status();
        running.leaderless = if status.leader.is_some() { None } else { running.leaderless.or(Some(now)).filter(|_| marks) };
        if status.is_leader {
            self.history.leads(status.term, id);
        }
    }

    /// What a manager shows after it has heard no other one for long is marked as old.
    pub fn check_read(&self, id: u64) {
        let running = self.managers[&id].running.as_ref().expect("a manager that runs");
        let alone = self.now.since(running.heard);
        assert!(
            alone < UNMARKED || running.leaderless.is_some(),
            "manager {id} has heard no other one for {alone:?}, and what it shows is not marked as old: {:?}",
            running.core.status()
        );
    }
}

/// What tells two effects apart, for the trace.
fn summary(effect: &Effect) -> (u8, u64, usize) {
    match effect {
        Effect::Persist(batch) => (0, batch.entries.last().map_or(0, |entry| entry.index), batch.entries.len()),
        Effect::Send { to, message } => (1, *to, message.len()),
        Effect::Restore { index, bytes } => (2, *index, bytes.len()),
        Effect::Apply { index, data, .. } => (3, *index, data.len()),
        Effect::Changed { index, .. } => (4, *index, 0),
        Effect::Refuse { ticket, .. } => (5, *ticket, 0),
        Effect::Snapshot { index } => (6, *index, 0),
    }
}

fn without_last_entry(disk: &Log) -> Log {
    let mut batch = disk.as_batch();
    batch.entries.pop();
    let last = batch.entries.last().map(|entry| entry.index);
    if let (Some(state), Some(last)) = (&mut batch.hard_state, last) {
        state.commit = state.commit.min(last);
    }
    let mut log = Log::default();
    log.write(&batch);
    log
}
