//! Cores on a simulated network: messages are lost, duplicated and delayed, managers crash between any two effects and
//! restart with what was durable. Checked after every step: one leader per term, no two managers apply different entries,
//! none applies an entry twice or skips one. Everything depends on a seed, so a failure is repeatable.

use ::raft::eraftpb::{Message, MessageType};
use bytes::Bytes;
use protobuf::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::raft::{Core, Effect, Event, Log, MembershipChange, RaftConfig, RaftError, RaftStatus};
use std::collections::{BTreeMap, BTreeSet};

const SNAPSHOT_EVERY: u64 = 20;
const KEEP: u64 = 5;

fn config(id: u64) -> RaftConfig {
    RaftConfig { snapshot_every: SNAPSHOT_EVERY, keep_entries: KEEP, ..RaftConfig::new("", id) }
}

/// One manager: its disk, and what is lost when it crashes.
struct SimulatedManager {
    disk: Log,
    core: Core,
    /// Entries applied, by index.
    applied: BTreeMap<u64, Bytes>,
    restores: usize,
}

struct SimulatedNetwork {
    seed: u64,
    random: StdRng,
    managers: BTreeMap<u64, SimulatedManager>,
    in_flight: Vec<(u64, u64, Vec<u8>)>,
    /// Managers whose messages are all lost.
    disconnected: BTreeSet<u64>,
    /// Probability that a message is lost, and that one is duplicated, in percent.
    loss: u32,
    /// Leaders by term.
    leaders: BTreeMap<u64, u64>,
    /// Applied by any manager, by index: all must agree.
    history: BTreeMap<u64, Bytes>,
    tickets: u64,
    proposed: BTreeMap<u64, Bytes>,
    answered: BTreeMap<u64, Result<u64, RaftError>>,
    /// Tickets without an answer, with the manager that must give it. Those of a manager that has crashed get none.
    open: BTreeMap<u64, u64>,
    /// Hash of all effects, to compare two runs.
    trace: u64,
}

impl SimulatedNetwork {
    fn new(seed: u64) -> Self {
        let mut network = Self {
            seed,
            random: StdRng::seed_from_u64(seed),
            managers: BTreeMap::new(),
            in_flight: Vec::new(),
            disconnected: BTreeSet::new(),
            loss: 0,
            leaders: BTreeMap::new(),
            history: BTreeMap::new(),
            tickets: 0,
            proposed: BTreeMap::new(),
            answered: BTreeMap::new(),
            open: BTreeMap::new(),
            trace: 0,
        };
        network.boot(1, Log::bootstrap(1, Vec::new()));
        network
    }

    /// Three voters, the second and third of which joined.
    fn with_three_voters(seed: u64) -> Self {
        let mut network = Self::new(seed);
        for id in [2, 3] {
            network.boot(id, Log::default());
            network.change(MembershipChange::AddVoter(id));
            network.settle(|n| n.managers.values().all(|h| h.core.status().voters.len() as u64 == id || h.applied.is_empty()));
        }
        network.settle(SimulatedNetwork::agree);
        network
    }

    fn boot(&mut self, id: u64, disk: Log) {
        self.open.retain(|_, at| *at != id);
        let (core, effects) = Core::new(&config(id), disk.clone()).expect("a core starts from its own log");
        self.managers.insert(id, SimulatedManager { disk, core, applied: BTreeMap::new(), restores: 0 });
        self.carry_out(id, effects, usize::MAX);
    }

    fn status(&self, id: u64) -> RaftStatus {
        self.managers[&id].core.status()
    }

    fn leader(&self) -> Option<u64> {
        self.managers
            .iter()
            .filter(|(id, h)| !self.disconnected.contains(id) && h.core.status().is_leader)
            .map(|(id, _)| *id)
            .next_back()
    }

    fn agree(&self) -> bool {
        let last = self.managers.values().map(|h| h.core.log().last()).max();
        self.leader().is_some() && self.managers.values().all(|h| Some(h.core.status().applied) == last)
    }

    fn handle(&mut self, id: u64, event: Event) {
        let effects = self.managers.get_mut(&id).expect("manager").core.handle([event]).expect("no core fails");
        self.carry_out(id, effects, usize::MAX);
    }

    /// Carries out the first `until` effects; if there were more, the manager has crashed before the next one.
    fn carry_out(&mut self, id: u64, effects: Vec<Effect>, until: usize) {
        for (done, effect) in effects.into_iter().enumerate() {
            if done == until {
                let disk = self.managers[&id].disk.clone();
                self.boot(id, disk);
                return;
            }
            self.trace = self.trace.rotate_left(5).wrapping_mul(31) ^ digest(id, &effect);
            let manager = self.managers.get_mut(&id).expect("manager");
            match effect {
                Effect::Persist(batch) => manager.disk.write(&batch),
                Effect::Send { to, message } => {
                    let kind = Message::parse_from_bytes(&message).expect("a message of raft").get_msg_type();
                    assert_eq!(skep::raft::is_snapshot(&message), kind == MessageType::MsgSnapshot, "{kind:?}");
                    assert_eq!(skep::raft::sender(&message), Some(id), "{kind:?}");
                    self.send(id, to, message);
                }
                Effect::Restore { index, bytes } => {
                    manager.applied = decode(&bytes);
                    manager.restores += 1;
                    assert!(manager.applied.keys().next_back().is_none_or(|last| *last <= index));
                }
                Effect::Apply { index, data, ticket } => {
                    assert!(manager.applied.keys().next_back().is_none_or(|last| *last < index), "{id} applies {index} again");
                    manager.applied.insert(index, data.clone());
                    if let Some(ticket) = ticket {
                        assert_eq!(self.proposed[&ticket], data, "the answer is for what was proposed");
                        self.answer(id, ticket, Ok(index));
                    }
                    assert_eq!(*self.history.entry(index).or_insert(data.clone()), data, "{id} applies another entry {index}");
                }
                Effect::Changed { ticket, index } => self.answer(id, ticket, Ok(index)),
                Effect::Refuse { ticket, error } => self.answer(id, ticket, Err(error)),
                Effect::Snapshot { index } => {
                    let bytes = encode(&manager.applied);
                    self.handle(id, Event::Snapshot { index, bytes });
                }
            }
        }
        self.check(id);
    }

    fn check(&mut self, id: u64) {
        let manager = &self.managers[&id];
        assert_eq!(manager.disk, *manager.core.log(), "the core's log is on the disk");
        let compacted = manager.disk.last() - u64::try_from(manager.disk.len()).expect("small");
        let kept = manager.core.status().applied - compacted;
        assert!(kept <= SNAPSHOT_EVERY + KEEP, "{kept} applied entries are kept: the log is not compacted");
        let known = self.history.range(..=manager.core.status().applied).map(|(i, d)| (*i, d.clone()));
        assert!(manager.applied.iter().map(|(i, d)| (*i, d.clone())).eq(known), "{id} skipped an entry");
        let status = manager.core.status();
        if status.is_leader {
            let first = *self.leaders.entry(status.term).or_insert(id);
            assert_eq!(first, id, "two leaders in term {}", status.term);
        }
    }

    fn answer(&mut self, id: u64, ticket: u64, answer: Result<u64, RaftError>) {
        assert!(self.answered.insert(ticket, answer).is_none(), "ticket {ticket} is answered twice");
        assert_eq!(self.open.remove(&ticket), Some(id), "ticket {ticket} is not one that {id} has");
    }

    fn send(&mut self, from: u64, to: u64, message: Vec<u8>) {
        if self.disconnected.contains(&from) || self.disconnected.contains(&to) || !self.managers.contains_key(&to) {
            return;
        }
        if self.random.random_range(0..100) < self.loss {
            return;
        }
        if self.random.random_range(0..100) < self.loss {
            self.in_flight.push((from, to, message.clone()));
        }
        self.in_flight.push((from, to, message));
    }

    fn deliver(&mut self, index: usize) {
        let (from, to, message) = self.in_flight.swap_remove(index);
        if !self.disconnected.contains(&from) && !self.disconnected.contains(&to) {
            self.handle(to, Event::Message { from, bytes: message });
        }
    }

    /// One tick for every manager, then delivers all messages in order.
    fn round(&mut self) {
        for id in self.managers.keys().copied().collect::<Vec<_>>() {
            self.handle(id, Event::Tick);
        }
        let mut bound = 10_000;
        while !self.in_flight.is_empty() && bound > 0 {
            bound -= 1;
            let (from, to, message) = self.in_flight.remove(0);
            if !self.disconnected.contains(&from) && !self.disconnected.contains(&to) {
                self.handle(to, Event::Message { from, bytes: message });
            }
        }
    }

    fn settle(&mut self, done: impl Fn(&Self) -> bool) {
        for _ in 0..2_000 {
            if done(self) {
                return;
            }
            self.round();
        }
        let all: Vec<_> = self.managers.values().map(|h| h.core.status()).collect();
        panic!("seed {}: not settled after 2000 ticks: {all:?}", self.seed);
    }

    fn propose(&mut self, id: u64) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        let data = format!("entry of ticket {ticket}").into_bytes();
        self.proposed.insert(ticket, data.clone().into());
        self.open.insert(ticket, id);
        self.handle(id, Event::Propose { ticket, data });
        ticket
    }

    fn ask_change(&mut self, id: u64, ticket: u64, change: MembershipChange) {
        self.open.insert(ticket, id);
        self.handle(id, Event::Change { ticket, change });
    }

    fn change(&mut self, change: MembershipChange) {
        self.settle(|n| n.leader().is_some());
        self.tickets += 1;
        let (ticket, leader) = (self.tickets, self.leader().expect("leader"));
        self.ask_change(leader, ticket, change);
        self.settle(|n| n.answered.contains_key(&ticket));
        self.answered[&ticket].clone().expect("the change is made");
    }

    /// One random step.
    fn random_step(&mut self) {
        let id = self.random.random_range(1..=3);
        match self.random.random_range(0..100) {
            0..60 if !self.in_flight.is_empty() => {
                let index = self.random.random_range(0..self.in_flight.len());
                self.deliver(index);
            }
            60..64 => {
                // All messages for one manager, in one call.
                let (here, rest) = std::mem::take(&mut self.in_flight).into_iter().partition(|(_, to, _)| *to == id);
                self.in_flight = rest;
                let mut here: Vec<(u64, u64, Vec<u8>)> = here;
                here.retain(|(from, to, _)| !self.disconnected.contains(from) && !self.disconnected.contains(to));
                let events = here.into_iter().map(|(from, _, bytes)| Event::Message { from, bytes });
                let effects = self.managers.get_mut(&id).expect("manager").core.handle(events).expect("no core fails");
                let until = if self.random.random_range(0..10) == 0 { self.random.random_range(0..6) } else { usize::MAX };
                self.carry_out(id, effects, until);
            }
            0..75 => self.handle(id, Event::Tick),
            75..93 => {
                self.propose(self.leader().unwrap_or(id));
            }
            93..94 => {
                // A crash between two effects of one call, or after the last one.
                let until = self.random.random_range(0..4);
                self.tickets += 1;
                let event = Event::Propose { ticket: self.tickets, data: b"crash".to_vec() };
                self.proposed.insert(self.tickets, Bytes::from_static(b"crash"));
                self.open.insert(self.tickets, id);
                let effects =
                    self.managers.get_mut(&id).expect("manager").core.handle([event, Event::Tick]).expect("no core fails");
                let crash = effects.len() > until;
                self.carry_out(id, effects, until);
                if !crash {
                    let disk = self.managers[&id].disk.clone();
                    self.boot(id, disk);
                }
            }
            94..96 => {
                self.disconnected.clear();
                self.disconnected.insert(id);
            }
            _ => self.disconnected.clear(),
        }
    }
}

fn digest(id: u64, effect: &Effect) -> u64 {
    let text = format!("{id} {effect:?}");
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn encode(applied: &BTreeMap<u64, Bytes>) -> Vec<u8> {
    let plain: BTreeMap<u64, Vec<u8>> = applied.iter().map(|(i, d)| (*i, d.to_vec())).collect();
    serde_json::to_vec(&plain).expect("plain data")
}

fn decode(bytes: &[u8]) -> BTreeMap<u64, Bytes> {
    if bytes.is_empty() {
        return BTreeMap::new();
    }
    let plain: BTreeMap<u64, Vec<u8>> = serde_json::from_slice(bytes).expect("a snapshot of this test");
    plain.into_iter().map(|(i, d)| (i, d.into())).collect()
}

#[test]
fn one_manager_leads_immediately_and_again_after_a_restart() {
    let mut network = SimulatedNetwork::new(1);
    assert!(network.status(1).is_leader, "without a single tick");
    let ticket = network.propose(1);
    assert_eq!(network.answered[&ticket], Ok(3), "after the snapshot at 1 and the leader's own entry at 2");
    let disk = network.managers[&1].disk.clone();
    network.boot(1, disk);
    assert!(network.status(1).is_leader);
    assert_eq!(network.managers[&1].applied.len(), 1);
    assert_eq!(network.status(1).voters, [1]);
}

#[test]
fn three_managers_replicate_and_elect_another_leader() {
    let mut network = SimulatedNetwork::with_three_voters(2);
    assert_eq!(network.status(3).voters, [1, 2, 3]);
    let first = network.leader().expect("leader");
    let ticket = network.propose(first);
    network.settle(|n| n.answered.contains_key(&ticket));
    assert!(network.answered[&ticket].is_ok());

    network.disconnected.insert(first);
    network.settle(|n| n.leader().is_some());
    let second = network.leader().expect("leader");
    assert_ne!(first, second);
    let lost = network.propose(first);
    let kept = network.propose(second);
    network.settle(|n| n.answered.contains_key(&kept));
    assert!(network.answered[&kept].is_ok());

    network.disconnected.clear();
    network.settle(SimulatedNetwork::agree);
    assert!(network.answered[&lost].is_err(), "{:?}", network.answered[&lost]);
}

#[test]
fn a_follower_refuses_and_names_the_leader() {
    let mut network = SimulatedNetwork::with_three_voters(3);
    let leader = network.leader().expect("leader");
    let follower = (1..=3).find(|id| *id != leader).expect("follower");
    let ticket = network.propose(follower);
    assert_eq!(network.answered[&ticket], Err(RaftError::NotLeader { leader: Some(leader) }));
}

#[test]
fn a_lagging_follower_gets_a_snapshot_even_if_the_first_is_lost() {
    let mut network = SimulatedNetwork::with_three_voters(4);
    let leader = network.leader().expect("leader");
    let behind = (1..=3).find(|id| *id != leader).expect("follower");
    let restores = network.managers[&behind].restores;
    network.disconnected.insert(behind);
    for _ in 0..SNAPSHOT_EVERY * 4 {
        network.propose(leader);
        network.round();
    }
    network.disconnected.clear();
    // The manager is connected again, and the first snapshot sent to it is lost.
    for _ in 0..1_000 {
        network.handle(leader, Event::Tick);
        let before = network.in_flight.len();
        network.in_flight.retain(|(_, _, message)| message.len() < 1_000);
        if network.in_flight.len() < before {
            break;
        }
        while !network.in_flight.is_empty() {
            let large = network.in_flight.iter().position(|(_, _, message)| message.len() >= 1_000);
            if let Some(large) = large {
                network.in_flight.remove(large);
                break;
            }
            network.deliver(0);
        }
    }
    network.settle(SimulatedNetwork::agree);
    assert!(network.managers[&behind].restores > restores, "it caught up with a snapshot");
    assert_eq!(network.managers[&behind].applied, network.managers[&leader].applied);
}

#[test]
fn a_removed_manager_does_not_disturb_and_the_last_voter_stays() {
    let mut network = SimulatedNetwork::with_three_voters(5);
    let leader = network.leader().expect("leader");
    let removed = (1..=3).find(|id| *id != leader).expect("follower");
    network.change(MembershipChange::Remove(removed));
    let (term, voters) = (network.status(leader).term, network.status(leader).voters);
    assert!(!voters.contains(&removed));
    for _ in 0..200 {
        network.round();
    }
    assert_eq!((network.leader(), network.status(leader).term), (Some(leader), term));
    let other = voters.into_iter().find(|id| *id != leader).expect("follower");
    network.change(MembershipChange::Remove(other));
    network.ask_change(leader, 9_000, MembershipChange::Remove(leader));
    assert!(matches!(network.answered[&9_000], Err(RaftError::BadChange(_))));
}

#[test]
fn a_learner_gets_the_log_and_is_promoted() {
    let mut network = SimulatedNetwork::new(6);
    network.boot(2, Log::default());
    network.change(MembershipChange::AddLearner(2));
    network.settle(SimulatedNetwork::agree);
    assert_eq!((network.status(2).voters, network.status(2).learners), (vec![1], vec![2]));
    network.change(MembershipChange::AddVoter(2));
    network.settle(SimulatedNetwork::agree);
    assert_eq!((network.status(2).voters, network.status(2).learners), (vec![1, 2], vec![]));
}

#[test]
fn a_leader_that_is_cut_off_gives_up_also_while_it_is_to_hand_over() {
    let mut network = SimulatedNetwork::with_three_voters(12);
    let leader = network.leader().expect("leader");
    network.disconnected.insert(leader);
    for _ in 0..30 {
        network.handle(leader, Event::TransferLeadership);
        network.handle(leader, Event::Tick);
        network.handle(leader, Event::Tick);
    }
    assert_eq!(network.status(leader).leader, None);
    network.disconnected.clear();
    network.settle(SimulatedNetwork::agree);
}

#[test]
fn a_leader_that_its_own_log_removes_gives_up() {
    let mut network = SimulatedNetwork::with_three_voters(13);
    let leader = network.leader().expect("leader");
    let [removed, other] = [1, 2].map(|n| (leader - 1 + n) % 3 + 1);
    // The entry that removes it reaches that manager alone, and it is elected with it.
    network.disconnected.insert(other);
    network.ask_change(leader, 9_001, MembershipChange::Remove(removed));
    while let Some(index) = network.in_flight.iter().position(|(_, to, _)| *to == removed) {
        network.deliver(index);
    }
    network.in_flight.clear();
    network.disconnected = [leader].into();
    let term = network.status(leader).term;
    for _ in 0..200 {
        network.round();
    }
    let after = network.status(removed);
    assert!(after.term > term && !after.voters.contains(&removed) && !after.is_leader, "it was elected: {after:?}");
    network.disconnected.clear();
    network.settle(|network| network.leader().is_some_and(|id| id != removed));
    assert_eq!(network.status(other).voters.len(), 2);
}

#[test]
fn a_manager_that_does_not_vote_forgets_a_leader_that_is_silent() {
    let mut network = SimulatedNetwork::new(6);
    network.boot(2, Log::default());
    network.change(MembershipChange::AddLearner(2));
    network.settle(SimulatedNetwork::agree);
    assert_eq!(network.status(2).leader, Some(1));
    network.disconnected.insert(1);
    for _ in 0..40 {
        network.handle(2, Event::Tick);
    }
    // What it has may be old: it says so to those who read, and refuses to write.
    assert_eq!(network.status(2).leader, None);
    let ticket = network.propose(2);
    assert_eq!(network.answered[&ticket], Err(RaftError::NotLeader { leader: None }));
    network.disconnected.clear();
    network.settle(|network| network.status(2).leader == Some(1));
}

#[test]
fn a_manager_that_crashed_right_after_a_second_one_was_added_does_not_lead_alone() {
    let mut network = SimulatedNetwork::new(7);
    network.boot(2, Log::default());
    network.disconnected.insert(2);
    network.disconnected.insert(1);
    // The only voter so far commits the change.
    network.ask_change(1, 1, MembershipChange::AddVoter(2));
    assert!(network.answered[&1].is_ok());
    let disk = network.managers[&1].disk.clone();
    network.boot(1, disk);
    assert_eq!(network.status(1).voters, [1, 2]);
    for _ in 0..100 {
        network.round();
        assert!(!network.status(1).is_leader, "one of two voters is no majority");
    }
    network.disconnected.clear();
    network.settle(SimulatedNetwork::agree);
}

#[test]
fn an_old_copy_of_a_log_is_detected() {
    let mut network = SimulatedNetwork::with_three_voters(8);
    let leader = network.leader().expect("leader");
    let victim = (1..=3).find(|id| *id != leader).expect("follower");
    let old = network.managers[&victim].disk.clone();
    for _ in 0..5 {
        network.propose(leader);
        network.round();
    }
    let (mut core, _) = Core::new(&config(victim), old).expect("an old log is valid");
    let mut failure = None;
    for _ in 0..50 {
        network.handle(leader, Event::Tick);
        for (from, to, bytes) in std::mem::take(&mut network.in_flight) {
            if to == victim && failure.is_none() {
                failure = core.handle([Event::Message { from, bytes }]).err();
            }
        }
    }
    let text = failure.expect("the core stops").to_string();
    assert!(text.contains("leave and join again"), "{text}");
}

#[test]
fn garbage_is_ignored() {
    let mut network = SimulatedNetwork::with_three_voters(9);
    let leader = network.leader().expect("leader");
    let mut random = StdRng::seed_from_u64(9);
    network.handle(leader, Event::Tick);
    network.handle(leader, Event::Tick);
    let samples: Vec<_> = network.in_flight.iter().map(|(_, _, message)| message.clone()).collect();
    assert!(!samples.is_empty());
    for round in 0..2_000 {
        let mut bytes: Vec<u8> = if round % 2 == 0 {
            (0..random.random_range(0..60)).map(|_| random.random()).collect()
        } else {
            samples[random.random_range(0..samples.len())].clone()
        };
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        // No panic. (A forged heartbeat may stop a core, but only managers can send one.)
        let (mut core, _) = Core::new(&config(leader), network.managers[&leader].disk.clone()).expect("core");
        let from = skep::raft::sender(&bytes).unwrap_or(1);
        let _ = core.handle([Event::Message { from, bytes }]);
    }
}

#[test]
fn random_failures_violate_no_guarantee() {
    let (seeds, mut total, mut snapshots, mut terms) = (40, 0, 0, 0);
    for seed in 0..seeds {
        let mut network = SimulatedNetwork::with_three_voters(100 + u64::try_from(seed).expect("small"));
        network.loss = u32::try_from(seed % 4 * 10).expect("small");
        for _ in 0..1_500 {
            network.random_step();
        }
        network.loss = 0;
        network.disconnected.clear();
        network.settle(SimulatedNetwork::agree);
        let leader = network.leader().expect("leader");
        let ticket = network.propose(leader);
        network.settle(|n| n.answered.contains_key(&ticket));
        assert!(network.answered[&ticket].is_ok());
        // Who proposes waits until then: without an answer for the whole timeout.
        network.settle(|n| n.open.is_empty());
        let written = network.answered.iter().filter(|(_, r)| r.is_ok());
        for (ticket, index) in written {
            let Some(data) = network.proposed.get(ticket) else { continue };
            assert_eq!(network.history.get(index.as_ref().expect("ok")), Some(data), "an acknowledged entry stays");
        }
        total += network.history.len();
        snapshots += network.managers.values().map(|h| h.restores).sum::<usize>();
        terms += network.leaders.len();
    }
    // Otherwise the test exercised too little.
    assert!(
        total > seeds * 50 && snapshots > seeds * 3 && terms > seeds * 3,
        "{total} entries, {snapshots} restores, {terms} terms"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut network = SimulatedNetwork::with_three_voters(seed);
        network.loss = 10;
        for _ in 0..2_000 {
            network.random_step();
        }
        network.trace
    };
    assert_eq!(run(77), run(77));
    assert_ne!(run(77), run(78));
}
