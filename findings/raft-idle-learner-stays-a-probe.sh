#!/usr/bin/env bash
# raft 0.7.0 (tikv): a learner that got everything with a snapshot is probed for ever while nothing is written.
# Expected: once it has acknowledged the last entry its progress is Replicate, as that of a follower that got the same by entries.
# Instead: the progress goes from Snapshot to Probe, and only the acknowledgement of a further append makes Replicate of it. Heartbeats
# do not: 500 ticks later `matched` is the last index, and the state still Probe. One proposal ends that.
# Why it matters: who takes Replicate for "has caught up", to make a voter of a learner, waits until somebody writes. `matched` tells.
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
use raft::{eraftpb::*, storage::MemStorage, Config, ProgressState, RawNode, Storage};

fn node(id: u64, store: MemStorage) -> RawNode<MemStorage> {
    let log = slog::Logger::root(slog::Discard, slog::o!());
    RawNode::new(&Config { id, ..Default::default() }, store, &log).unwrap()
}

// Stores what is to be stored; returns the messages.
fn carry_out(node: &mut RawNode<MemStorage>) -> Vec<Message> {
    let mut mail = vec![];
    while node.has_ready() {
        let mut ready = node.ready();
        mail.extend(ready.take_messages());
        if !ready.snapshot().is_empty() {
            node.mut_store().wl().apply_snapshot(ready.snapshot().clone()).unwrap();
        }
        node.mut_store().wl().append(ready.entries()).unwrap();
        if let Some(hs) = ready.hs() {
            node.mut_store().wl().set_hardstate(hs.clone());
        }
        mail.extend(ready.take_persisted_messages());
        let mut light = node.advance(ready);
        if let Some(commit) = light.commit_index() {
            node.mut_store().wl().mut_hard_state().set_commit(commit);
        }
        mail.extend(light.take_messages());
        node.advance_apply();
    }
    mail
}

fn settle(nodes: &mut [RawNode<MemStorage>]) {
    loop {
        let mail: Vec<Message> = nodes.iter_mut().flat_map(carry_out).collect();
        if mail.is_empty() {
            return;
        }
        for m in mail {
            let to = m.to as usize - 1;
            nodes[to].step(m).unwrap();
        }
    }
}

fn main() {
    let store = MemStorage::new_with_conf_state((vec![1], vec![2]));
    let mut leader = node(1, store.clone());
    leader.campaign().unwrap();
    carry_out(&mut leader);
    leader.propose(vec![], b"before".to_vec()).unwrap();
    carry_out(&mut leader);
    let last = store.last_index().unwrap();
    // The log begins behind the last entry: who has nothing gets a snapshot, and there is nothing after it.
    store.wl().compact(last).unwrap();

    let mut nodes = vec![leader, node(2, MemStorage::new())];
    let progress = |nodes: &[RawNode<MemStorage>]| {
        let p = nodes[0].raft.prs().get(2).unwrap();
        (p.matched, p.state)
    };
    for _ in 0..500 {
        nodes.iter_mut().for_each(|n| {
            n.tick();
        });
        settle(&mut nodes);
    }
    let idle = progress(&nodes);
    assert_eq!(idle.0, last, "CHANGED: the learner has not acknowledged the snapshot");
    assert_eq!(idle.1, ProgressState::Probe, "CHANGED: idle, its progress is {:?}", idle.1);
    nodes[0].propose(vec![], b"after".to_vec()).unwrap();
    settle(&mut nodes);
    let written = progress(&nodes);
    assert_eq!(written.1, ProgressState::Replicate, "CHANGED: after a write its progress is {:?}", written.1);
    println!("raft 0.7.0: 500 ticks after a snapshot of all {last} entries (matched {}) the progress is {:?}; after one write {:?}",
        idle.0, idle.1, written.1);
}
E
cargo run --quiet
