//! Raft without IO: events in, effects out, in the order in which they are to be carried out. One handful of events
//! may give several batches for the disk; nothing after a batch may be done before it is durable, and once a batch
//! failed the core is ahead of the disk and must be dropped.

use super::check::{self, Refusal};
use super::config::{RaftConfig, RaftError, RaftStatus};
use super::log::{Batch, Log};
use super::logger::logger;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message};
use raft::eraftpb::{Snapshot, SnapshotMetadata};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use std::collections::BTreeMap;

/// Largest entry, in bytes.
const MAX_ENTRY: usize = 8 << 20;
/// Entries are sent in messages of about this size, in bytes.
const MESSAGE_SIZE: u64 = 1 << 20;
/// Proposals are refused while so much waits to be committed, in bytes.
const MAX_UNCOMMITTED: u64 = 64 << 20;
/// A snapshot that a follower has not confirmed after so many times the longest election time-out counts as lost.
const SNAPSHOT_PATIENCE: usize = 4;

/// A change of membership, one manager at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It gets the log but does not vote.
    AddLearner(u64),
    /// It votes (a learner is promoted).
    AddVoter(u64),
    /// It is out; its raft id is never used again.
    Remove(u64),
}

/// What happens to a core.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A tick has passed.
    Tick,
    /// A message of another manager.
    Message(Vec<u8>),
    /// An entry to be written; the ticket comes back with its fate.
    Propose {
        /// Chosen by the caller, once only.
        ticket: u64,
        /// The entry.
        data: Vec<u8>,
    },
    /// A change of membership to be written.
    Change {
        /// Chosen by the caller, once only.
        ticket: u64,
        /// The change.
        change: Change,
    },
    /// The answer to [`Effect::Snapshot`].
    Snapshot {
        /// The index asked for.
        index: u64,
        /// The machine's state.
        bytes: Vec<u8>,
    },
}

/// What is to be done, in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Make this durable before anything that follows.
    Persist(Batch),
    /// Send, best effort.
    Send {
        /// Raft id.
        to: u64,
        /// Bytes for [`Event::Message`] there.
        message: Vec<u8>,
    },
    /// Put the machine into the state of a snapshot.
    Restore {
        /// Last entry in it.
        index: u64,
        /// The machine's state.
        bytes: bytes::Bytes,
    },
    /// Apply an entry; its proposer waits if there is a ticket.
    Apply {
        /// Its index.
        index: u64,
        /// Its data.
        data: bytes::Bytes,
        /// Who waits for it.
        ticket: Option<u64>,
    },
    /// A change of membership was applied.
    Changed {
        /// Who waits for it.
        ticket: u64,
        /// Its index.
        index: u64,
    },
    /// A proposal or change will not be carried out, or its fate cannot be known here.
    Refuse {
        /// Who waits for it.
        ticket: u64,
        /// Why.
        error: RaftError,
    },
    /// Take a snapshot of the machine as it is now and hand it back.
    Snapshot {
        /// Last entry applied.
        index: u64,
    },
}

/// Why a core cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// See the module.
pub struct Core {
    raw: RawNode<Log>,
    id: u64,
    seed: u64,
    election_ticks: (usize, usize),
    snapshot_every: u64,
    keep_entries: u64,
    /// Own proposals on their way, by index: (term, ticket).
    waiting: BTreeMap<u64, (u64, u64)>,
    /// Membership after the last applied entry.
    members: ConfState,
    /// Last entry applied.
    applied: u64,
    /// A snapshot that was asked for: index, term, membership at that point.
    asked: Option<(u64, u64, ConfState)>,
    /// Ticks since a snapshot was sent, by follower.
    snapshots_sent: BTreeMap<u64, usize>,
}

impl Core {
    /// Takes up the log where it ended; the effects restore the machine and apply what is known to be committed.
    /// A manager that is the only voter leads when this returns.
    ///
    /// # Errors
    /// The settings or the log make no sense.
    pub fn new(config: &RaftConfig, log: Log) -> Result<(Self, Vec<Effect>), Failure> {
        check::log(&log).map_err(|why| Failure(format!("the raft log is damaged: {why}")))?;
        let settings = raft::Config {
            id: config.id,
            election_tick: config.election_ticks.0,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: config.election_ticks.0,
            max_election_tick: config.election_ticks.1,
            applied: log.snapshot_index(),
            max_size_per_msg: MESSAGE_SIZE,
            max_uncommitted_size: MAX_UNCOMMITTED,
            check_quorum: true,
            pre_vote: true,
            ..raft::Config::default()
        };
        let mut effects = Vec::new();
        if log.snapshot_index() > 0 {
            effects.push(Effect::Restore { index: log.snapshot_index(), bytes: log.snapshot.data.clone() });
        }
        let members = log.snapshot.get_metadata().get_conf_state().clone();
        let applied = log.snapshot_index();
        let raw = RawNode::new(&settings, log, &logger()).map_err(|e| Failure(format!("raft does not start: {e}")))?;
        let mut core = Self {
            raw,
            id: config.id,
            seed: config.seed,
            election_ticks: config.election_ticks,
            snapshot_every: config.snapshot_every.max(1),
            keep_entries: config.keep_entries,
            waiting: BTreeMap::new(),
            members,
            applied,
            asked: None,
            snapshots_sent: BTreeMap::new(),
        };
        core.draw_timeout();
        core.drain(&mut effects)?;
        // Only now: the membership is that of the last committed entry known here, not of the snapshot.
        if core.members.voters == [core.id] && core.members.voters_outgoing.is_empty() {
            core.raw.campaign().map_err(|e| Failure(format!("raft cannot elect itself: {e}")))?;
            core.draw_timeout();
            core.drain(&mut effects)?;
        }
        core.ask_for_snapshot(&mut effects);
        Ok((core, effects))
    }

    /// Takes events in, together: what they write is one batch where raft allows it.
    ///
    /// # Errors
    /// This manager cannot go on; the core is to be dropped and none of its effects carried out.
    pub fn handle(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Vec<Effect>, Failure> {
        let mut effects = Vec::new();
        for event in events {
            match event {
                Event::Tick => {
                    self.raw.tick();
                    self.give_up_snapshots();
                }
                Event::Message(bytes) => self.step(&bytes)?,
                Event::Propose { ticket, data } => self.propose(ticket, data, &mut effects),
                Event::Change { ticket, change } => self.change(ticket, change, &mut effects),
                Event::Snapshot { index, bytes } => {
                    // What it makes durable with the snapshot (the commit index) must be in the log already.
                    self.drain(&mut effects)?;
                    self.keep_snapshot(index, bytes, &mut effects);
                }
            }
            self.draw_timeout();
        }
        self.drain(&mut effects)?;
        self.ask_for_snapshot(&mut effects);
        Ok(effects)
    }

    /// What this core is doing. True of the machine only once the effects are carried out.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let raft = &self.raw.raft;
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        RaftStatus {
            id: self.id,
            term: raft.term,
            leader: Some(raft.leader_id).filter(|l| *l != 0),
            is_leader: raft.state == StateRole::Leader && raft.apply_to_current_term(),
            applied: self.applied,
            voters: sorted(self.members.get_voters()),
            learners: sorted(self.members.get_learners()),
            problem: None,
        }
    }

    /// The log as it is written so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.raw.store()
    }

    fn step(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Ok(message) = Message::parse_from_bytes(bytes) else {
            tracing::warn!(bytes = bytes.len(), "a raft message cannot be read: ignored");
            return Ok(());
        };
        let raft = &self.raw.raft;
        let known = check::Known {
            id: self.id,
            term: raft.term,
            committed: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            term_of: |index| raft.raft_log.term(index).ok().filter(|term| *term != 0),
        };
        match check::message(&message, &known) {
            Ok(()) => {}
            Err(Refusal::Malformed(why)) => {
                tracing::warn!(from = message.from, kind = ?message.get_msg_type(), why, "a raft message is ignored");
                return Ok(());
            }
            Err(Refusal::WentBackwards(why)) => {
                return Err(Failure(format!(
                    "this manager's log lost entries that it had acknowledged ({why}; was an old copy of its data put back?). \
                     It must not vote any more: make this node leave and join again"
                )));
            }
        }
        let from = message.from;
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(from, %error, "a raft message is ignored");
        }
        Ok(())
    }

    fn propose(&mut self, ticket: u64, data: Vec<u8>, effects: &mut Vec<Effect>) {
        let size = data.len();
        let result = if size > MAX_ENTRY {
            Err(RaftError::TooLarge { size, limit: MAX_ENTRY })
        } else {
            self.must_lead().and_then(|()| self.raw.propose(Vec::new(), data).map_err(|_| RaftError::Busy))
        };
        self.proposed(ticket, result, effects);
    }

    fn change(&mut self, ticket: u64, change: Change, effects: &mut Vec<Effect>) {
        let (kind, id) = match change {
            Change::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            Change::AddVoter(id) => (ConfChangeType::AddNode, id),
            Change::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        let bad = |why: &str| Err(RaftError::BadChange(why.to_owned()));
        let result = if id == 0 {
            bad("0 is no raft id")
        } else if kind != ConfChangeType::AddNode && self.members.voters == [id] {
            bad("it is the last voter")
        } else {
            let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
            single.set_change_type(kind);
            let request = ConfChangeV2 { changes: vec![single].into(), ..ConfChangeV2::default() };
            self.must_lead().and_then(|()| self.raw.propose_conf_change(Vec::new(), request).map_err(|_| RaftError::Busy))
        };
        self.proposed(ticket, result, effects);
    }

    fn must_lead(&self) -> Result<(), RaftError> {
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader {
            Ok(())
        } else {
            Err(RaftError::NotLeader { leader: Some(raft.leader_id).filter(|l| *l != 0) })
        }
    }

    fn proposed(&mut self, ticket: u64, result: Result<(), RaftError>, effects: &mut Vec<Effect>) {
        match result {
            Ok(()) => {
                let raft = &self.raw.raft;
                self.waiting.insert(raft.raft_log.last_index(), (raft.term, ticket));
            }
            Err(error) => effects.push(Effect::Refuse { ticket, error }),
        }
    }

    /// Turns everything that raft has ready into effects.
    fn drain(&mut self, effects: &mut Vec<Effect>) -> Result<(), Failure> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            send(ready.take_messages(), effects)?;
            let snapshot = Some(ready.snapshot()).filter(|s| !s.is_empty()).cloned();
            self.persist(
                Batch {
                    reset: snapshot.is_some(),
                    snapshot: snapshot.clone(),
                    compacted: None,
                    entries: ready.take_entries(),
                    hard_state: ready.hs().cloned(),
                },
                effects,
            );
            if let Some(snapshot) = snapshot {
                self.restored(&snapshot, effects);
            }
            send(ready.take_persisted_messages(), effects)?;
            self.apply(ready.take_committed_entries(), effects)?;
            let mut light = self.raw.advance(ready);
            let committed = light.take_committed_entries();
            if light.commit_index().is_some() && committed.iter().any(|e| e.get_entry_type() != EntryType::EntryNormal) {
                // Raft does not ask for this. But after a crash the commit index must not lie before a change of
                // membership that was acted on: the old membership could elect this manager alone.
                let hard_state = Some(self.raw.raft.hard_state());
                self.persist(Batch { hard_state, ..Batch::default() }, effects);
            }
            send(light.take_messages(), effects)?;
            self.apply(committed, effects)?;
            self.raw.advance_apply();
        }
        Ok(())
    }

    fn persist(&mut self, batch: Batch, effects: &mut Vec<Effect>) {
        if !batch.is_empty() {
            self.raw.mut_store().write(&batch);
            effects.push(Effect::Persist(batch));
        }
    }

    fn restored(&mut self, snapshot: &Snapshot, effects: &mut Vec<Effect>) {
        let metadata = snapshot.get_metadata();
        self.members = metadata.get_conf_state().clone();
        self.applied = metadata.index;
        self.asked = None;
        effects.push(Effect::Restore { index: metadata.index, bytes: snapshot.data.clone() });
        let later = self.waiting.split_off(&(metadata.index + 1));
        for (_, (_, ticket)) in std::mem::replace(&mut self.waiting, later) {
            effects.push(Effect::Refuse { ticket, error: RaftError::TimedOut });
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Vec<Effect>) -> Result<(), Failure> {
        for entry in entries {
            self.applied = entry.index;
            let waiting = self.waiting.remove(&entry.index);
            let ticket = waiting.filter(|(term, _)| *term == entry.term).map(|(_, ticket)| ticket);
            if let (Some((_, ticket)), None) = (waiting, ticket) {
                effects.push(Effect::Refuse { ticket, error: RaftError::Superseded });
            }
            let index = entry.index;
            if entry.get_entry_type() == EntryType::EntryNormal {
                if !entry.data.is_empty() {
                    effects.push(Effect::Apply { index, data: entry.data, ticket });
                } else if let Some(ticket) = ticket {
                    // Raft puts an empty entry in place of a change that it refuses.
                    effects.push(Effect::Refuse { ticket, error: RaftError::Busy });
                }
                continue;
            }
            let change = ConfChangeV2::parse_from_bytes(&entry.data)
                .map_err(|e| Failure(format!("entry {index} (a change of membership) cannot be read: {e}")))?;
            match (self.raw.apply_conf_change(&change), ticket) {
                (Ok(members), ticket) => {
                    tracing::info!(index, voters = ?members.get_voters(), learners = ?members.get_learners(), "managers changed");
                    self.members = members;
                    effects.extend(ticket.map(|ticket| Effect::Changed { ticket, index }));
                }
                (Err(error), ticket) => {
                    effects
                        .extend(ticket.map(|ticket| Effect::Refuse { ticket, error: RaftError::BadChange(error.to_string()) }));
                }
            }
        }
        Ok(())
    }

    fn ask_for_snapshot(&mut self, effects: &mut Vec<Effect>) {
        let store = self.raw.store();
        // A change of membership asks for one too: a manager takes no snapshot that does not name it.
        let due = self.applied >= store.snapshot_index() + self.snapshot_every
            || (self.applied > store.snapshot_index() && self.members != *store.snapshot.get_metadata().get_conf_state());
        if self.asked.is_some() || !due {
            return;
        }
        if let Some(term) = store.term_of(self.applied) {
            self.asked = Some((self.applied, term, self.members.clone()));
            effects.push(Effect::Snapshot { index: self.applied });
        }
    }

    fn keep_snapshot(&mut self, index: u64, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        // None: a snapshot of the leader's came in between.
        let Some((_, term, members)) = self.asked.take_if(|(asked, _, _)| *asked == index) else { return };
        let metadata = SnapshotMetadata { conf_state: Some(members).into(), index, term, ..SnapshotMetadata::default() };
        let snapshot = Snapshot { data: bytes.into(), metadata: Some(metadata).into(), ..Snapshot::default() };
        let keep_from = index.saturating_sub(self.keep_entries);
        let store = self.raw.store();
        let compacted = store.term_of(keep_from).filter(|_| keep_from > store.compacted.0).map(|term| (keep_from, term));
        let hard_state = Some(self.raw.raft.hard_state());
        self.persist(Batch { snapshot: Some(snapshot), compacted, hard_state, ..Batch::default() }, effects);
    }

    /// A snapshot may get lost like any message, but raft waits for word of it for ever.
    fn give_up_snapshots(&mut self) {
        let raft = &self.raw.raft;
        let mut waiting: Vec<u64> = Vec::new();
        if raft.state == StateRole::Leader {
            waiting.extend(raft.prs().iter().filter(|(_, p)| p.state == ProgressState::Snapshot).map(|(id, _)| *id));
        }
        waiting.sort_unstable();
        self.snapshots_sent.retain(|id, _| waiting.contains(id));
        for id in waiting {
            let ticks = self.snapshots_sent.entry(id).or_default();
            *ticks += 1;
            if *ticks > SNAPSHOT_PATIENCE * self.election_ticks.1 {
                self.snapshots_sent.remove(&id);
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    /// Sets the election time-out, which raft draws from the thread's generator: a function of seed, id and term, so
    /// that a seeded run repeats itself and managers differ.
    fn draw_timeout(&mut self) {
        let (low, high) = self.election_ticks;
        let mut bits = self.seed ^ self.id.rotate_left(32) ^ self.raw.raft.term;
        for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
            bits = (bits.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ (bits >> 29)).wrapping_mul(factor);
            bits ^= bits >> 31;
        }
        let span = u64::try_from(high - low).unwrap_or(1).max(1);
        self.raw.raft.set_randomized_election_timeout(low + usize::try_from(bits % span).unwrap_or(0));
    }
}

fn send(messages: Vec<Message>, effects: &mut Vec<Effect>) -> Result<(), Failure> {
    for message in messages {
        let bytes = message.write_to_bytes().map_err(|e| Failure(format!("a raft message cannot be written: {e}")))?;
        effects.push(Effect::Send { to: message.to, message: bytes });
    }
    Ok(())
}
