//! Raft without IO: events in, effects out, in the order in which they must be carried out. One call may return several
//! batches for the disk; no effect after a batch may be carried out before the batch is durable, and after a failed batch
//! the core is ahead of the disk and must be dropped.

use super::check::{self, MessageError};
use super::config::{RaftConfig, RaftError, RaftStatus};
use super::log::{Log, LogBatch};
use super::logger::logger;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message};
use raft::eraftpb::{MessageType, Snapshot, SnapshotMetadata};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use std::collections::BTreeMap;

/// Largest entry, in bytes.
const MAX_ENTRY: usize = 8 << 20;
/// Approximate size of a message with entries, in bytes.
const MESSAGE_SIZE: u64 = 1 << 20;
/// Proposals are refused while entries of this size wait to be committed, in bytes.
const MAX_UNCOMMITTED: u64 = 64 << 20;
/// Entries that a learner may lack when it becomes a voter: it gets them with the next message.
const LEARNER_LAG: u64 = 64;
/// A snapshot that a follower has not acknowledged after this many longest election timeouts counts as lost.
const SNAPSHOT_TIMEOUTS: usize = 4;
/// Ticks from one manager's election timeout to the next one's, and of one manager's turn after a leader's end: an election in which
/// every message is answered within one tick is over by then.
const TURN: usize = 2;

/// A change of membership, of one manager identified by its raft id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembershipChange {
    /// Adds a manager that gets the log and does not vote.
    AddLearner(u64),
    /// Adds a voter, or promotes a learner.
    AddVoter(u64),
    /// Removes a manager; its raft id is never used again.
    Remove(u64),
}

/// Input of a core.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A tick has passed.
    Tick,
    /// A message from the manager with this raft id.
    Message { from: u64, bytes: Vec<u8> },
    /// An entry to be written. The caller chooses a new ticket, which is returned with the outcome.
    Propose { ticket: u64, data: Vec<u8> },
    /// A change of membership to be written, with a ticket as for `Propose`.
    Change { ticket: u64, change: MembershipChange },
    /// Leadership is to pass to another voter; nothing happens on a manager that does not lead.
    TransferLeadership,
    /// The process of the manager with this raft id has ended: its host refuses connections. Nothing is decided by this alone, the
    /// other voters are asked at once instead of after an election timeout.
    Ended(u64),
    /// The answer to [`Effect::Snapshot`]: the machine's state after that index.
    Snapshot { index: u64, bytes: Vec<u8> },
}

/// Output of a core, to be carried out in order.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// Makes the batch durable before anything that follows.
    Persist(LogBatch),
    /// Sends bytes for [`Event::Message`] to the manager with this raft id, best effort.
    Send { to: u64, message: Vec<u8> },
    /// Puts the machine into the state of a snapshot taken after the entry `index`.
    Restore { index: u64, bytes: bytes::Bytes },
    /// Applies an entry; with a ticket, its proposer waits for the outcome.
    Apply { index: u64, data: bytes::Bytes, ticket: Option<u64> },
    /// Reports that a change of membership was applied.
    Changed { ticket: u64, index: u64 },
    /// Reports that a proposal or change failed, or that this manager cannot know its outcome.
    Refuse { ticket: u64, error: RaftError },
    /// Takes a snapshot of the machine, which has applied the entry `index`, and returns it as [`Event::Snapshot`].
    Snapshot { index: u64 },
}

/// Bounds of an interval of snapshots that the state asks for: each is of the whole state, and a start applies the entries behind it.
const LEAST_SNAPSHOT_EVERY: u64 = 100;
const MOST_SNAPSHOT_EVERY: u64 = 1 << 24;

/// Why a core cannot continue. Only the user can help.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct CoreFailure(pub String);

/// The core.
pub struct Core {
    raw: RawNode<Log>,
    id: u64,
    election_ticks: (usize, usize),
    /// The last leader that was known.
    last_leader: u64,
    /// The leader that asked this manager to lead in its place.
    asked_by: Option<u64>,
    /// See [`RaftStatus::lost_leader`].
    lost_leader: Option<u64>,
    /// Ticks since the leader's end was reported, while no other leader is known.
    ended: Option<usize>,
    configured_snapshot_every: u64,
    /// As configured, or as the state says.
    snapshot_every: u64,
    snapshot_bytes: u64,
    keep_entries: u64,
    keep_bytes: u64,
    /// Term and ticket of this manager's proposals that are not committed, by index.
    waiting: BTreeMap<u64, (u64, u64)>,
    /// Membership after the last applied entry.
    members: ConfState,
    /// Index of the last entry applied.
    applied: u64,
    /// Bytes of the entries applied since the last snapshot was requested.
    applied_bytes: u64,
    /// A snapshot that was requested: index, term, and membership at that index.
    requested_snapshot: Option<(u64, u64, ConfState)>,
    /// Ticks since a snapshot was sent, by follower.
    snapshots_sent: BTreeMap<u64, usize>,
    /// Voters that were asked to lead.
    transfers: usize,
    /// Ticks since the last message, by manager.
    silence: BTreeMap<u64, usize>,
    /// See [`RaftStatus::ignored`].
    ignored: u64,
    /// A commit index that is not on the disk, with its term and vote, which are; and the ticks since.
    unsaved: Option<(HardState, usize)>,
}

/// Whether a message for another manager carries a snapshot: the whole state, which takes long to send, while raft's other messages
/// must arrive within an election timeout.
#[must_use]
pub fn is_snapshot(message: &[u8]) -> bool {
    // Field 1, the type, comes first.
    let kind = MessageType::MsgSnapshot as u8;
    message.starts_with(&[1 << 3, kind])
}

/// The raft id of the manager that a message for another one says it is from; `None` if it cannot be read. Of the message no more is read
/// than its beginning, and the core compares the rest.
#[must_use]
pub fn sender(message: &[u8]) -> Option<u64> {
    // Fields 1 to 3 come first, in this order: the type, the receiver, the sender.
    let mut input = protobuf::CodedInputStream::from_bytes(message);
    let mut last = None;
    for number in 1..=3 {
        let tag = input.read_raw_varint64().ok()?;
        last = (tag == number << 3).then(|| input.read_raw_varint64().ok())?;
    }
    last
}

impl Core {
    /// Continues the log; the effects restore the machine and apply what is known to be committed. A manager that is the
    /// only voter leads when this returns.
    ///
    /// # Errors
    /// The settings or the log are invalid.
    pub fn new(config: &RaftConfig, log: Log) -> Result<(Self, Vec<Effect>), CoreFailure> {
        check::log(&log).map_err(|why| CoreFailure(format!("the raft log is damaged: {why}")))?;
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
        let raw = RawNode::new(&settings, log, &logger()).map_err(|e| CoreFailure(format!("raft does not start: {e}")))?;
        let mut core = Self {
            raw,
            id: config.id,
            election_ticks: config.election_ticks,
            last_leader: 0,
            asked_by: None,
            lost_leader: None,
            ended: None,
            configured_snapshot_every: config.snapshot_every.max(1),
            snapshot_every: config.snapshot_every.max(1),
            snapshot_bytes: config.snapshot_bytes.max(1),
            applied_bytes: 0,
            keep_entries: config.keep_entries,
            keep_bytes: config.keep_bytes,
            waiting: BTreeMap::new(),
            members,
            applied,
            requested_snapshot: None,
            snapshots_sent: BTreeMap::new(),
            transfers: 0,
            silence: BTreeMap::new(),
            ignored: 0,
            unsaved: None,
        };
        core.set_timeout();
        core.drain(&mut effects)?;
        // Not earlier: the membership must be that of the last entry known to be committed, not that of the snapshot.
        if core.members.voters == [core.id] && core.members.voters_outgoing.is_empty() {
            core.raw.campaign().map_err(|e| CoreFailure(format!("raft cannot elect itself: {e}")))?;
            core.set_timeout();
            core.drain(&mut effects)?;
        }
        core.request_snapshot(&mut effects);
        Ok((core, effects))
    }

    /// Processes events together: what they write is one batch where raft allows it.
    ///
    /// # Errors
    /// This manager cannot continue; the core must be dropped and none of its effects carried out.
    pub fn handle(&mut self, events: impl IntoIterator<Item = Event>) -> Result<Vec<Effect>, CoreFailure> {
        let mut effects = Vec::new();
        for event in events {
            match event {
                Event::Tick => {
                    self.raw.tick();
                    self.silence.values_mut().for_each(|ticks| *ticks += 1);
                    self.report_lost_snapshots();
                    self.ended = self.ended.map(|ticks| ticks + 1);
                    self.campaign_in_turn();
                    self.save_old_commit(&mut effects);
                }
                Event::Message { from, bytes } => {
                    self.step(from, &bytes)?;
                    self.answer_dropped(&mut effects);
                }
                Event::Propose { ticket, data } => self.propose(ticket, data, &mut effects),
                Event::Change { ticket, change } => self.change(ticket, change, &mut effects),
                Event::TransferLeadership => self.transfer_leadership(),
                Event::Ended(id) => self.manager_ended(id),
                Event::Snapshot { index, bytes } => {
                    // The commit index that becomes durable with the snapshot must be in the log already.
                    self.drain(&mut effects)?;
                    self.keep_snapshot(index, bytes, &mut effects);
                }
            }
            self.set_timeout();
        }
        self.drain(&mut effects)?;
        self.request_snapshot(&mut effects);
        Ok(effects)
    }

    fn manager_ended(&mut self, id: u64) {
        self.silence.remove(&id);
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader {
            self.raw.report_unreachable(id);
        } else if raft.state == StateRole::Follower && raft.leader_id == id {
            // Without a leader this manager answers other candidates at once. One that leads after all is followed again with its next
            // message.
            let term = raft.term;
            raft.become_follower(term, 0);
            self.last_leader = id;
            self.ended = Some(0);
            self.campaign_in_turn();
        }
    }

    /// After the leader's end the others stand for election in turn, so that no two of them do so at once. A pre-vote is repeated: the
    /// others may hear of the end a moment later.
    fn campaign_in_turn(&mut self) {
        let Some(ticks) = self.ended else { return };
        if self.raw.raft.leader_id != 0 || ticks > self.election_ticks.0 {
            self.ended = None;
            return;
        }
        let others = self.members.get_voters().len().saturating_sub(1).max(1);
        let is_waiting = matches!(self.raw.raft.state, StateRole::Follower | StateRole::PreCandidate);
        if is_waiting && self.members.get_voters().contains(&self.id) && ticks / TURN % others == self.turn() {
            let _ = self.raw.campaign();
        }
    }

    /// This manager's place among the voters, in a circle that begins after the last leader.
    fn turn(&self) -> usize {
        let mut voters = self.members.get_voters().to_vec();
        voters.sort_unstable();
        let own = voters.partition_point(|id| *id < self.id);
        let last = voters.partition_point(|id| *id <= self.last_leader);
        (own + voters.len() - last) % voters.len().max(1)
    }

    /// Status of this core. The machine has it once the effects are carried out.
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
            leader: self.leader(),
            is_leader: raft.state == StateRole::Leader && raft.apply_to_current_term(),
            lost_leader: self.lost_leader.filter(|_| raft.state == StateRole::Leader),
            applied: self.applied,
            last: (raft.raft_log.last_index(), raft.raft_log.last_term()),
            voters: sorted(self.members.get_voters()),
            learners: sorted(self.members.get_learners()),
            heard: sorted(&self.heard()),
            caught_up: self.caught_up(),
            hears_majority: self.hears_majority(),
            ignored: self.ignored,
            problem: None,
        }
    }

    fn leader(&self) -> Option<u64> {
        Some(self.raw.raft.leader_id).filter(|id| *id != 0 && self.follows(*id))
    }

    /// Whether the leader that raft remembers still counts. A manager that does not vote never stands for election, so that raft itself
    /// forgets none there.
    fn follows(&self, leader: u64) -> bool {
        let votes = self.members.get_voters().contains(&self.id);
        votes || leader == self.id || self.silence.get(&leader).is_some_and(|ticks| *ticks <= self.election_ticks.1)
    }

    /// Learners that have all that is committed, on the leader.
    fn caught_up(&self) -> Vec<u64> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        // In whatever state it is sent entries: after a snapshot with nothing behind it raft goes on probing until there is more.
        let has_all = |id: &u64| {
            let progress = raft.prs().get(*id);
            progress.is_some_and(|p| p.recent_active && p.matched > 0 && p.matched + LEARNER_LAG >= raft.raft_log.committed)
        };
        let mut ids: Vec<u64> = self.members.get_learners().iter().copied().filter(has_all).collect();
        ids.sort_unstable();
        ids
    }

    /// Whether enough voters were heard within the longest election timeout that an election can succeed.
    fn hears_majority(&self) -> bool {
        self.heard().len() > self.members.get_voters().len() / 2
    }

    /// Voters that were heard within the longest election timeout, and this one.
    fn heard(&self) -> Vec<u64> {
        let heard = |id: &u64| *id == self.id || self.silence.get(id).is_some_and(|ticks| *ticks <= self.election_ticks.1);
        self.members.get_voters().iter().copied().filter(heard).collect()
    }

    /// Each call asks the next voter, the one with the longest log first: one that has just been added may not know yet that it is
    /// a voter, and ignores the request.
    fn transfer_leadership(&mut self) {
        let raft = &self.raw.raft;
        // Each request restarts the time after which a leader that hears no majority gives up: repeated ones would keep it for ever.
        if raft.state != StateRole::Leader || !self.hears_majority() {
            return;
        }
        let matched = |id: &u64| raft.prs().get(*id).map_or(0, |progress| progress.matched);
        let mut others: Vec<u64> = self.members.get_voters().iter().copied().filter(|id| *id != self.id).collect();
        others.sort_by_key(|id| (std::cmp::Reverse(matched(id)), *id));
        if let Some(next) = others.get(self.transfers % others.len().max(1)).copied() {
            self.transfers += 1;
            self.raw.transfer_leader(next);
        }
    }

    /// The log, with all batches returned so far.
    #[must_use]
    pub fn log(&self) -> &Log {
        self.raw.store()
    }

    fn step(&mut self, from: u64, bytes: &[u8]) -> Result<(), CoreFailure> {
        let Ok(message) = Message::parse_from_bytes(bytes) else {
            self.ignore(None, "it cannot be read");
            return Ok(());
        };
        let raft = &self.raw.raft;
        let local = check::LocalState {
            id: self.id,
            sender: from,
            term: raft.term,
            committed: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            term_of: |index| raft.raft_log.term(index).ok().filter(|term| *term != 0),
        };
        match check::message(&message, &local) {
            Ok(()) => {}
            Err(MessageError::Malformed(why)) => {
                self.ignore(Some(&message), why);
                return Ok(());
            }
            Err(MessageError::WentBackwards(why)) => {
                return Err(CoreFailure(format!(
                    "this manager's log lost entries that it had acknowledged ({why}; was an old copy of its data put back?). \
                     It must not vote any more: make this node leave and join again"
                )));
            }
        }
        self.silence.insert(from, 0);
        self.lost_leader.take_if(|lost| *lost == from);
        if message.get_msg_type() == MessageType::MsgTimeoutNow {
            self.asked_by = Some(from);
        }
        if let Err(error) = self.raw.step(message) {
            tracing::debug!(from, %error, "a raft message is ignored");
        }
        Ok(())
    }

    /// Counts on from the log's last session.
    pub fn count_ignored(&mut self, before: u64) {
        self.ignored += before;
    }

    /// Counts a message that no manager sends, and logs the fewer the more there are.
    fn ignore(&mut self, message: Option<&Message>, why: &str) {
        self.ignored += 1;
        if self.ignored.is_power_of_two() {
            let (from, kind) = (message.map(|message| message.from), message.map(Message::get_msg_type));
            tracing::warn!(from, ?kind, why, ignored = self.ignored, "a raft message is ignored");
        }
    }

    fn propose(&mut self, ticket: u64, data: Vec<u8>, effects: &mut Vec<Effect>) {
        let size = data.len();
        let result = if size > MAX_ENTRY {
            Err(RaftError::TooLarge { size, limit: MAX_ENTRY })
        } else {
            self.require_leader().and_then(|()| self.raw.propose(Vec::new(), data).map_err(|_| RaftError::Busy))
        };
        self.track_proposal(ticket, result, effects);
    }

    fn change(&mut self, ticket: u64, change: MembershipChange, effects: &mut Vec<Effect>) {
        let (kind, id) = match change {
            MembershipChange::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
            MembershipChange::AddVoter(id) => (ConfChangeType::AddNode, id),
            MembershipChange::Remove(id) => (ConfChangeType::RemoveNode, id),
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
            self.require_leader().and_then(|()| self.raw.propose_conf_change(Vec::new(), request).map_err(|_| RaftError::Busy))
        };
        self.track_proposal(ticket, result, effects);
    }

    fn require_leader(&self) -> Result<(), RaftError> {
        if self.raw.raft.state == StateRole::Leader { Ok(()) } else { Err(RaftError::NotLeader { leader: self.leader() }) }
    }

    fn track_proposal(&mut self, ticket: u64, result: Result<(), RaftError>, effects: &mut Vec<Effect>) {
        match result {
            Ok(()) => {
                let raft = &self.raw.raft;
                self.waiting.insert(raft.raft_log.last_index(), (raft.term, ticket));
            }
            Err(error) => effects.push(Effect::Refuse { ticket, error }),
        }
    }

    /// Answers the proposals whose entries another leader has dropped from this log: in a quiet cluster no entry would ever come to their
    /// place, and who proposed would wait for as long as it can. Another manager may still have them, and write them.
    fn answer_dropped(&mut self, effects: &mut Vec<Effect>) {
        let dropped = self.waiting.split_off(&(self.raw.raft.raft_log.last_index() + 1));
        effects.extend(dropped.into_values().map(|(_, ticket)| Effect::Refuse { ticket, error: RaftError::TimedOut }));
    }

    /// Turns everything that raft has ready into effects.
    fn drain(&mut self, effects: &mut Vec<Effect>) -> Result<(), CoreFailure> {
        while self.raw.has_ready() {
            let mut ready = self.raw.ready();
            send(ready.take_messages(), effects)?;
            let snapshot = Some(ready.snapshot()).filter(|s| !s.is_empty()).cloned();
            let hard_state = ready.hs().cloned();
            if let Some(snapshot) = &snapshot {
                // Before it takes the place of the log: a manager that cannot read it keeps what it has.
                self.restored(snapshot, effects);
            }
            if ready.must_sync() {
                let reset = snapshot.is_some();
                let batch = LogBatch { reset, snapshot, compacted: None, entries: ready.take_entries(), hard_state };
                self.persist(batch, effects);
            } else if let Some(hard_state) = hard_state {
                // Raft finds the commit index again: it is written with the next entries, which saves half of all writes to the disk.
                let ticks = self.unsaved.take().map_or(0, |(_, ticks)| ticks);
                self.unsaved = Some((hard_state, ticks));
            }
            if ready.committed_entries().iter().any(|e| e.get_entry_type() != EntryType::EntryNormal) {
                self.save_commit(effects);
            }
            send(ready.take_persisted_messages(), effects)?;
            self.apply(ready.take_committed_entries(), effects)?;
            let mut light = self.raw.advance(ready);
            let committed = light.take_committed_entries();
            if light.commit_index().is_some() && committed.iter().any(|e| e.get_entry_type() != EntryType::EntryNormal) {
                let hard_state = Some(self.raw.raft.hard_state());
                self.persist(LogBatch { hard_state, ..LogBatch::default() }, effects);
            }
            send(light.take_messages(), effects)?;
            self.apply(committed, effects)?;
            self.raw.advance_apply();
        }
        Ok(())
    }

    fn persist(&mut self, mut batch: LogBatch, effects: &mut Vec<Effect>) {
        if !batch.is_empty() {
            let unsaved = self.unsaved.take().map(|(hard_state, _)| hard_state);
            batch.hard_state = batch.hard_state.or(unsaved);
            self.raw.mut_store().write(&batch);
            effects.push(Effect::Persist(batch));
        }
    }

    /// Raft does not require it of a change of membership. But after a crash the commit index must not be lower than one that took effect:
    /// the old membership could elect this manager alone.
    fn save_commit(&mut self, effects: &mut Vec<Effect>) {
        let hard_state = self.unsaved.take().map(|(hard_state, _)| hard_state);
        self.persist(LogBatch { hard_state, ..LogBatch::default() }, effects);
    }

    /// A manager that starts without the others shows what it knows to be committed: also what was written last, before a pause.
    fn save_old_commit(&mut self, effects: &mut Vec<Effect>) {
        let Some((_, ticks)) = &mut self.unsaved else { return };
        *ticks += 1;
        if *ticks > self.election_ticks.0 {
            self.save_commit(effects);
        }
    }

    fn restored(&mut self, snapshot: &Snapshot, effects: &mut Vec<Effect>) {
        let metadata = snapshot.get_metadata();
        self.members = metadata.get_conf_state().clone();
        self.applied = metadata.index;
        self.requested_snapshot = None;
        self.applied_bytes = 0;
        effects.push(Effect::Restore { index: metadata.index, bytes: snapshot.data.clone() });
        let later = self.waiting.split_off(&(metadata.index + 1));
        for (_, (_, ticket)) in std::mem::replace(&mut self.waiting, later) {
            effects.push(Effect::Refuse { ticket, error: RaftError::TimedOut });
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, effects: &mut Vec<Effect>) -> Result<(), CoreFailure> {
        for entry in entries {
            self.applied = entry.index;
            self.applied_bytes += entry.data.len() as u64;
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
                    // Raft replaces a change that it refuses by an empty entry.
                    effects.push(Effect::Refuse { ticket, error: RaftError::Busy });
                }
                continue;
            }
            let change = ConfChangeV2::parse_from_bytes(&entry.data)
                .map_err(|e| CoreFailure(format!("entry {index} (a change of membership) cannot be read: {e}")))?;
            match (self.raw.apply_conf_change(&change), ticket) {
                (Ok(members), ticket) => {
                    tracing::info!(index, voters = ?members.get_voters(), learners = ?members.get_learners(), "managers changed");
                    self.members = members;
                    self.leave_lead();
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

    /// A leader that its own log removes: it was elected with the entry that another leader had written. Raft has no place for one that
    /// is no member, and the others elect the next.
    fn leave_lead(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state == StateRole::Leader && raft.prs().get(self.id).is_none() {
            let term = raft.term;
            raft.become_follower(term, 0);
        }
    }

    /// Entries from one snapshot to the next from now on; `None`: as configured.
    pub fn set_snapshot_every(&mut self, entries: Option<u64>) {
        let within = |entries: u64| entries.clamp(LEAST_SNAPSHOT_EVERY, MOST_SNAPSHOT_EVERY);
        self.snapshot_every = entries.map_or(self.configured_snapshot_every, within);
    }

    fn request_snapshot(&mut self, effects: &mut Vec<Effect>) {
        let store = self.raw.store();
        // Also after a change of membership: a manager accepts no snapshot whose membership lacks it.
        let due = self.applied >= store.snapshot_index() + self.snapshot_every
            || (self.applied > store.snapshot_index() && self.applied_bytes >= self.snapshot_bytes)
            || (self.applied > store.snapshot_index() && self.members != *store.snapshot.get_metadata().get_conf_state());
        if self.requested_snapshot.is_some() || !due {
            return;
        }
        if let Some(term) = store.term_of(self.applied) {
            self.applied_bytes = 0;
            self.requested_snapshot = Some((self.applied, term, self.members.clone()));
            effects.push(Effect::Snapshot { index: self.applied });
        }
    }

    fn keep_snapshot(&mut self, index: u64, bytes: Vec<u8>, effects: &mut Vec<Effect>) {
        // None if the leader's snapshot was restored since.
        let Some((_, term, members)) = self.requested_snapshot.take_if(|(requested, _, _)| *requested == index) else { return };
        let metadata = SnapshotMetadata { conf_state: Some(members).into(), index, term, ..SnapshotMetadata::default() };
        let snapshot = Snapshot { data: bytes.into(), metadata: Some(metadata).into(), ..Snapshot::default() };
        let store = self.raw.store();
        let keep_from = store.keep_from(index, self.keep_entries, self.keep_bytes);
        let compacted = store.term_of(keep_from).filter(|_| keep_from > store.compacted.0).map(|term| (keep_from, term));
        let hard_state = Some(self.raw.raft.hard_state());
        self.persist(LogBatch { snapshot: Some(snapshot), compacted, hard_state, ..LogBatch::default() }, effects);
    }

    /// A snapshot may get lost like any message, but raft waits for its acknowledgement without a timeout.
    fn report_lost_snapshots(&mut self) {
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
            if *ticks > SNAPSHOT_TIMEOUTS * self.election_ticks.1 {
                self.snapshots_sent.remove(&id);
                self.raw.report_snapshot(id, SnapshotStatus::Failure);
            }
        }
    }

    fn note_leader(&mut self) {
        let leader = self.raw.raft.leader_id;
        if leader == 0 {
            return;
        }
        let asked_by = self.asked_by.take();
        if leader == self.last_leader {
            return;
        }
        let before = std::mem::replace(&mut self.last_leader, leader);
        let asked = asked_by == Some(before);
        self.lost_leader = Some(before).filter(|before| *before != 0 && leader == self.id && !asked);
    }

    /// Sets the election timeout, which raft otherwise draws: the voters' timeouts are some ticks apart, so that no two of them stand
    /// for election at once and split the votes. The first is one tick after the time in which a voter refuses because it has heard of
    /// the leader.
    fn set_timeout(&mut self) {
        self.note_leader();
        let (low, high) = self.election_ticks;
        let longest = (high - low).saturating_sub(1);
        let step = (longest.saturating_sub(1) / self.members.get_voters().len().max(1)).clamp(1, TURN);
        self.raw.raft.set_randomized_election_timeout(low + (1 + self.turn() * step).min(longest));
    }
}

fn send(messages: Vec<Message>, effects: &mut Vec<Effect>) -> Result<(), CoreFailure> {
    for message in messages {
        let bytes = message.write_to_bytes().map_err(|e| CoreFailure(format!("a raft message cannot be written: {e}")))?;
        effects.push(Effect::Send { to: message.to, message: bytes });
    }
    Ok(())
}
