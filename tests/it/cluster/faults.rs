//! What goes wrong, as long as it is to.

use super::world::{Due, End, World};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use skep::model::NodeId;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Faults {
    pub active: bool,
    /// Share of messages that are lost.
    pub loss: f64,
    /// One of five messages takes up to this much longer, in milliseconds.
    pub delay_ms: u64,
    pub slow_disks: BTreeSet<u64>,
    /// Nodes that take seconds to apply a view.
    pub slow_nodes: BTreeSet<NodeId>,
    /// Ways on which everything is lost.
    cut: BTreeSet<(End, End)>,
    /// Ends that nothing reaches or leaves.
    isolated: BTreeSet<End>,
    /// Raft ids of managers that were removed.
    pub removed: BTreeSet<u64>,
    /// Clients promote and demote nodes.
    pub changes_members: bool,
}

impl Faults {
    pub fn is_cut(&self, from: &End, to: &End) -> bool {
        self.isolated.contains(from) || self.isolated.contains(to) || self.cut.contains(&(from.clone(), to.clone()))
    }
}

impl World {
    pub fn start_faults(&mut self) {
        self.faults.active = true;
        self.later(500, Due::Fault);
    }

    pub fn fault(&mut self) {
        if !self.faults.active {
            return;
        }
        let pause = self.rng.random_range(200..2500);
        self.later(pause, Due::Fault);
        let managers: Vec<u64> = self.managers.keys().copied().collect();
        let nodes: Vec<_> = self.nodes.keys().cloned().collect();
        let rng = &mut self.rng;
        let id = *managers.choose(rng).expect("a manager");
        let other = *managers.choose(rng).expect("a manager");
        let node = nodes.choose(rng).expect("a node").clone();
        // Some are so short that an election still goes on.
        let (kind, longest) = (rng.random_range(0..16), *[30, 300, 5000].choose(rng).expect("a bound"));
        let ms = rng.random_range(10..longest);
        self.note(&("fault", kind, id, other, &node));
        match kind {
            0..=2 => self.crash_for(id, ms),
            3 => {
                if let Some(leader) = self.leader() {
                    self.crash_for(leader, ms);
                }
            }
            4 => drop(self.faults.cut.insert((End::Manager(id), End::Manager(other)))),
            5 => drop(self.faults.isolated.insert(End::Manager(id))),
            6 => drop(self.faults.cut.insert((End::Manager(id), End::Node(node)))),
            7 => drop(self.faults.isolated.insert(End::Node(node))),
            8 => drop(self.faults.slow_disks.insert(id)),
            9 => self.faults.loss = f64::from(self.rng.random_range(0..8_u32)) / 100.0,
            10 => self.faults.delay_ms = self.rng.random_range(0..400),
            11 => {
                // A clock is set, forward or back.
                let ahead = self.rng.random_range(0..20_000);
                self.managers.get_mut(&id).unwrap().ahead_ms = ahead;
            }
            12..=13 => drop(self.faults.slow_nodes.insert(node)),
            _ => {
                self.faults.slow_nodes.clear();
                self.faults.cut.clear();
                self.faults.isolated.clear();
                self.faults.slow_disks.clear();
            }
        }
    }

    /// Ends a manager's process; it starts again after a while.
    pub fn crash_for(&mut self, id: u64, ms: u64) {
        if self.managers[&id].running.is_some() {
            self.crash(id);
            self.later(ms, Due::Boot(id));
        }
    }

    /// Everything works again, and all managers run.
    pub fn end_faults(&mut self) {
        let removed = std::mem::take(&mut self.faults.removed);
        self.faults = Faults { removed, ..Faults::default() };
        for id in self.managers.keys().copied().collect::<Vec<_>>() {
            self.boot(id);
        }
    }
}
