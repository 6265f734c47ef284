#!/usr/bin/env bash
# raft 0.7.0 (tikv): a second membership change gets Ok, and an empty entry is committed in its place.
# Expected: while one change is not applied yet, propose_conf_change returns an error, as propose does without a leader.
# Instead: it returns Ok. The leader puts an ordinary entry without data and without context in the change's place.
# That entry looks like the empty entry of a new leader. The context, by which the caller would know its request, is gone.
# Why it matters: two nodes that join at once are two such changes. A manager that waits for the context waits for ever.
# It must remember index and term of each change, and propose it again when something else was committed there.
# Needs cargo and a C compiler. Run time: about a minute, nearly all of it compiling.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
raft = { version = "=0.7.0", default-features = false, features = ["protobuf-codec"] }
protobuf = "=2.28.0"
slog = "=2.8.2"
[profile.dev]
debug = 0
E
cat >src/main.rs <<'E'
use raft::{eraftpb::*, storage::MemStorage, Config, RawNode};

fn add_learner(id: u64) -> ConfChange {
    let mut change = ConfChange::default();
    change.set_change_type(ConfChangeType::AddLearnerNode);
    change.node_id = id;
    change
}

// Writes and applies until nothing is left; returns what was committed.
fn settle(node: &mut RawNode<MemStorage>) -> Vec<Entry> {
    let mut all = vec![];
    while node.has_ready() {
        let mut ready = node.ready();
        let mut committed = ready.take_committed_entries();
        node.mut_store().wl().append(ready.entries()).unwrap();
        if let Some(hs) = ready.hs() {
            node.mut_store().wl().set_hardstate(hs.clone());
        }
        let mut light = node.advance(ready);
        committed.extend(light.take_committed_entries());
        for e in &committed {
            if e.get_entry_type() == EntryType::EntryConfChange {
                let mut change = ConfChange::default();
                protobuf::Message::merge_from_bytes(&mut change, &e.data).unwrap();
                let state = node.apply_conf_change(&change).unwrap();
                node.mut_store().wl().set_conf_state(state);
            }
        }
        node.advance_apply();
        all.extend(committed);
    }
    all
}

fn main() {
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let store = MemStorage::new_with_conf_state((vec![1], vec![]));
    let mut node = RawNode::new(&Config::new(1), store, &log).unwrap();
    node.campaign().unwrap();
    settle(&mut node);

    node.propose_conf_change(b"request A".to_vec(), add_learner(2)).unwrap();
    let second = node.propose_conf_change(b"request B".to_vec(), add_learner(3));
    assert!(second.is_ok(), "CHANGED: the second change is refused: {second:?}");

    let seen: Vec<_> = settle(&mut node)
        .into_iter()
        .map(|e| (e.get_entry_type(), e.data.len(), String::from_utf8(e.context.to_vec()).unwrap()))
        .collect();
    assert_eq!(seen.len(), 2, "CHANGED: {} entries were committed: {seen:?}", seen.len());
    assert_eq!((seen[0].0, &*seen[0].2), (EntryType::EntryConfChange, "request A"), "the first change is committed as proposed");
    let empty = (EntryType::EntryNormal, 0, String::new());
    assert_eq!(seen[1], empty, "CHANGED: in place of the second change there is {:?}", seen[1]);

    let learners = node.raft.prs().conf().to_conf_state().learners;
    assert_eq!(learners, [2], "CHANGED: learners are {learners:?}");
    println!("raft 0.7.0: both changes got Ok; committed (type, bytes of data, context): {seen:?}; learners: {learners:?}");
}
E
cargo run --quiet
