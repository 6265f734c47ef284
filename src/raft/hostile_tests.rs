//! Messages that no manager sends: none of them ends a core by a panic, or leaves a log that cannot be opened again.

use super::check;
use super::config::RaftConfig;
use super::core::{Core, Effect, Event};
use super::log::Log;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot, SnapshotMetadata};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng as _};
use std::panic::{AssertUnwindSafe, catch_unwind};

const ME: u64 = 1;

fn config() -> RaftConfig {
    RaftConfig { snapshot_every: 20, keep_entries: 5, ..RaftConfig::new("", ME) }
}

/// Entries 11 to 15 behind a snapshot, the last of them not committed.
fn log() -> Log {
    let members = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    let metadata = SnapshotMetadata { conf_state: Some(members).into(), index: 10, term: 2, ..SnapshotMetadata::default() };
    let snapshot = Snapshot { metadata: Some(metadata).into(), ..Snapshot::default() };
    let entries = (11..16).map(|index| Entry { index, term: 3, data: b"entry"[..].into(), ..Entry::default() });
    let hard_state = HardState { term: 3, commit: 14, ..HardState::default() };
    Log { snapshot, compacted: (10, 2), entries: entries.collect(), hard_state }
}

fn received(message: &Message) -> Event {
    let bytes = message.write_to_bytes().expect("a message is written");
    Event::Message { from: message.from, bytes }
}

fn of_kind(kind: MessageType, message: Message) -> Message {
    let mut message = message;
    message.set_msg_type(kind);
    message
}

/// With two other voters, of which one is sent everything.
fn leader() -> Core {
    use MessageType as T;
    let (mut core, mut effects) = Core::new(&config(), log()).expect("a core");
    for _ in 0..100 {
        let mut events = vec![Event::Tick];
        for effect in std::mem::take(&mut effects) {
            let Effect::Send { to: 2, message } = effect else { continue };
            let sent = Message::parse_from_bytes(&message).expect("a message of raft");
            let answer =
                Message { to: ME, from: 2, term: sent.term, index: sent.index + sent.entries.len() as u64, ..Message::default() };
            events.extend(match sent.get_msg_type() {
                T::MsgRequestPreVote => Some(received(&of_kind(T::MsgRequestPreVoteResponse, answer))),
                T::MsgRequestVote => Some(received(&of_kind(T::MsgRequestVoteResponse, answer))),
                T::MsgAppend => Some(received(&of_kind(T::MsgAppendResponse, answer))),
                _ => None,
            });
        }
        effects = core.handle(events).expect("it goes on");
        if core.status().is_leader {
            return core;
        }
    }
    panic!("it does not lead: {:?}", core.status());
}

fn follower(log: Log) -> Core {
    Core::new(&config(), log).expect("a core").0
}

const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Near what is in the log, and far from it.
fn index(random: &mut StdRng) -> u64 {
    match random.random_range(0..10) {
        0 => 0,
        1 => u64::MAX - random.random_range(0..3),
        2 => 1 << random.random_range(0..64),
        3 => 100,
        _ => random.random_range(8..19),
    }
}

fn term(random: &mut StdRng) -> u64 {
    match random.random_range(0..10) {
        0 => 0,
        1 => u64::MAX - random.random_range(0..3),
        2 => 1 << random.random_range(0..64),
        _ => random.random_range(1..6),
    }
}

fn ids(random: &mut StdRng) -> Vec<u64> {
    (0..random.random_range(0..4)).map(|_| random.random_range(0..5)).collect()
}

fn entries(random: &mut StdRng, behind: u64) -> Vec<Entry> {
    let kinds = [EntryType::EntryNormal, EntryType::EntryNormal, EntryType::EntryConfChange, EntryType::EntryConfChangeV2];
    let (count, follow) = (random.random_range(0..4), random.random_bool(0.8));
    let (same, of_one_term) = (term(random), random.random_bool(0.8));
    let one = |n: u64| {
        let index = if follow { behind.wrapping_add(n) } else { index(random) };
        let term = if of_one_term { same } else { term(random) };
        let mut entry = Entry { index, term, ..Entry::default() };
        entry.set_entry_type(*kinds.choose(random).expect("some"));
        entry
    };
    (1..=count).map(one).collect()
}

fn snapshot(random: &mut StdRng) -> Snapshot {
    let mut members = ConfState { voters: ids(random), learners: ids(random), ..ConfState::default() };
    if random.random_bool(0.3) {
        members.voters_outgoing = ids(random);
        members.learners_next = ids(random);
        members.auto_leave = random.random_bool(0.5);
    }
    let metadata = SnapshotMetadata {
        conf_state: Some(members).into(),
        index: index(random),
        term: term(random),
        ..SnapshotMetadata::default()
    };
    Snapshot { metadata: Some(metadata).into(), ..Snapshot::default() }
}

fn hostile(random: &mut StdRng) -> Message {
    let kind = *KINDS.choose(random).expect("some");
    let index_of = index(random);
    let mut message = Message {
        to: ME,
        from: random.random_range(2..5),
        term: term(random),
        index: index_of,
        log_term: term(random),
        commit: index(random),
        reject: random.random_bool(0.3),
        reject_hint: index(random),
        ..Message::default()
    };
    message.set_msg_type(kind);
    if random.random_bool(0.5) {
        message.commit_term = term(random);
    }
    if random.random_bool(0.1) {
        message.request_snapshot = index(random);
    }
    if random.random_bool(0.1) {
        message.context = b"CampaignTransfer"[..].into();
    }
    if matches!(kind, MessageType::MsgAppend | MessageType::MsgReadIndexResp) {
        message.entries = entries(random, index_of).into();
    }
    if kind == MessageType::MsgSnapshot {
        message.snapshot = Some(snapshot(random)).into();
    }
    message
}

#[test]
fn no_message_ends_a_core_by_a_panic() {
    let of = |seed: u64| -> Core {
        match seed % 3 {
            0 => follower(log()),
            1 => follower(Log::default()),
            _ => leader(),
        }
    };
    let mut failed = Vec::new();
    for seed in 0..30_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut messages = Vec::new();
        let run = catch_unwind(AssertUnwindSafe(|| {
            let mut core = of(seed);
            for _ in 0..random.random_range(1..5) {
                let message = hostile(&mut random);
                let event = received(&message);
                messages.push(message);
                if core.handle([event]).is_err() {
                    return Ok(());
                }
                check::log(core.log())?;
            }
            // What a message left behind shows in what comes next.
            for _ in 0..random.random_range(0..40) {
                if core.handle([Event::Tick, Event::Propose { ticket: 0, data: vec![1] }]).is_err() {
                    return Ok(());
                }
            }
            check::log(core.log())
        }));
        match run {
            Ok(Ok(())) => {}
            Ok(Err(why)) => failed.push((seed, why, messages)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                failed.push((seed, text.unwrap_or_default(), messages));
            }
        }
    }
    let mut by_text = std::collections::BTreeMap::new();
    for (seed, text, messages) in &failed {
        by_text.entry(text.chars().take(40).collect::<String>()).or_insert((seed, text, messages));
    }
    assert!(failed.is_empty(), "{} of them, such as {by_text:#?}", failed.len());
}
