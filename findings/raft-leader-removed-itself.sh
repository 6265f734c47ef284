#!/usr/bin/env bash
# raft 0.7.0 (tikv): a leader that commits its own removal stays leader, and nobody can write any more.
# Expected: it steps down, as the Raft paper says, and the two voters that are left elect one of themselves.
# Instead: 500 ticks later it still leads. Its heartbeats keep the others from an election, although it is no member.
# Its own proposals are dropped with an error. A follower answers Ok to a proposal, and the entry is never committed.
# Check-quorum and pre-vote are on and change nothing. A leader transfer still works, and writing works after it.
# Why it matters: a manager that removes or demotes the leading node must hand over first and remove it afterwards.
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
use raft::{eraftpb::*, storage::MemStorage, Config, RawNode, StateRole};

struct Cluster {
    nodes: Vec<RawNode<MemStorage>>,
    written: Vec<Vec<u8>>, // data of the entries that node 3 applied
}

impl Cluster {
    fn new() -> Self {
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let nodes = (1..=3)
            .map(|id| {
                let store = MemStorage::new_with_conf_state((vec![1, 2, 3], vec![]));
                let config = Config { id, check_quorum: true, pre_vote: true, ..Default::default() };
                RawNode::new(&config, store, &log).unwrap()
            })
            .collect();
        Cluster { nodes, written: vec![] }
    }

    fn apply(&mut self, at: usize, entries: Vec<Entry>) {
        for e in entries {
            if e.get_entry_type() == EntryType::EntryConfChangeV2 {
                let mut change = ConfChangeV2::default();
                protobuf::Message::merge_from_bytes(&mut change, &e.data).unwrap();
                let state = self.nodes[at].apply_conf_change(&change).unwrap();
                self.nodes[at].mut_store().wl().set_conf_state(state);
            } else if at == 2 && !e.data.is_empty() {
                self.written.push(e.data.to_vec());
            }
        }
    }

    // Writes, sends and applies until nobody has anything to do.
    fn settle(&mut self) {
        loop {
            let mut mail = vec![];
            for at in 0..3 {
                while self.nodes[at].has_ready() {
                    let mut ready = self.nodes[at].ready();
                    mail.extend(ready.take_messages());
                    let committed = ready.take_committed_entries();
                    self.nodes[at].mut_store().wl().append(ready.entries()).unwrap();
                    if let Some(hs) = ready.hs() {
                        self.nodes[at].mut_store().wl().set_hardstate(hs.clone());
                    }
                    mail.extend(ready.take_persisted_messages());
                    self.apply(at, committed);
                    let mut light = self.nodes[at].advance(ready);
                    if let Some(commit) = light.commit_index() {
                        self.nodes[at].mut_store().wl().mut_hard_state().set_commit(commit);
                    }
                    mail.extend(light.take_messages());
                    let committed = light.take_committed_entries();
                    self.apply(at, committed);
                    self.nodes[at].advance_apply();
                }
            }
            if mail.is_empty() {
                return;
            }
            for m in mail {
                let to = m.to as usize - 1;
                let _ = self.nodes[to].step(m); // a message of a node that is no member is refused: valid
            }
        }
    }

    fn ticks(&mut self, n: usize) {
        for _ in 0..n {
            self.nodes.iter_mut().for_each(|n| {
                n.tick();
            });
            self.settle();
        }
    }
}

fn main() {
    let mut c = Cluster::new();
    c.nodes[0].campaign().unwrap();
    c.settle();
    c.nodes[0].propose(vec![], b"before".to_vec()).unwrap();
    c.settle();
    assert_eq!(c.written, [b"before"], "the cluster works before the removal");
    let term = c.nodes[0].raft.term;

    let mut change = ConfChangeV2::default();
    let mut one = ConfChangeSingle::default();
    one.set_change_type(ConfChangeType::RemoveNode);
    one.node_id = 1;
    change.mut_changes().push(one);
    c.nodes[0].propose_conf_change(vec![], change).unwrap();
    c.settle();
    c.ticks(500);

    let voters = c.nodes[1].raft.prs().conf().to_conf_state().voters;
    assert_eq!(voters.len(), 2, "CHANGED: the removal was not applied, voters are {voters:?}");
    let role = c.nodes[0].raft.state;
    assert_eq!(role, StateRole::Leader, "CHANGED: the removed leader is now {role:?}");
    let followed: Vec<_> = c.nodes[1..].iter().map(|n| n.raft.leader_id).collect();
    assert_eq!(followed, [1, 1], "CHANGED: the others follow {followed:?}");
    assert_eq!(c.nodes[1].raft.term, term, "CHANGED: there was an election");

    let own = c.nodes[0].propose(vec![], b"at the leader".to_vec()).unwrap_err();
    let other = c.nodes[1].propose(vec![], b"at a follower".to_vec());
    assert!(other.is_ok(), "CHANGED: a follower refuses: {other:?}");
    c.ticks(100);
    assert_eq!(c.written, [b"before"], "CHANGED: a write was committed after the removal");

    c.nodes[0].transfer_leader(2);
    c.ticks(5);
    assert_eq!(c.nodes[1].raft.state, StateRole::Leader, "CHANGED: the transfer does not work");
    c.nodes[1].propose(vec![], b"after".to_vec()).unwrap();
    c.settle();
    assert_eq!(c.written.len(), 2, "CHANGED: no writes after the transfer");
    println!("raft 0.7.0: 500 ticks after its removal node 1 is {role:?}, nodes 2 and 3 follow {followed:?}; its own \
        proposal: {own}; a follower's: Ok, never committed; after a transfer writes work");
}
E
cargo run --quiet
