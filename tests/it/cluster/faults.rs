//! What goes wrong, as long as it is to.

use super::world::{Due, End, Process, World};
use rand::Rng;
use rand::seq::IndexedRandom as _;
use skep::model::NodeId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Faults {
    pub active: bool,
    /// Share of messages that are lost.
    pub loss: f64,
    /// One of five messages takes up to this much longer, in milliseconds.
    pub delay_ms: u64,
    pub slow_disks: BTreeSet<u64>,
    /// Disks on which every write fails.
    full_disks: BTreeSet<u64>,
    /// Managers whose process ends during their next write, and how long they are away, in milliseconds.
    end_in_write: BTreeMap<u64, u64>,
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
        let (kind, longest) = (rng.random_range(0..20), *[30, 300, 5000].choose(rng).expect("a bound"));
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
            12 => drop(self.faults.slow_nodes.insert(node)),
            13 => drop(self.faults.full_disks.insert(id)),
            // What is sent before it is durable is out by then.
            14..=16 => drop(self.faults.end_in_write.insert(id, ms)),
            17 => {
                // The power of all goes at once, and comes back to one after the other.
                for manager in managers {
                    let ms = self.rng.random_range(10..2000);
                    self.crash_for(manager, ms);
                }
            }
            _ => {
                self.faults.slow_nodes.clear();
                self.faults.cut.clear();
                self.faults.isolated.clear();
                self.faults.slow_disks.clear();
                self.faults.full_disks.clear();
            }
        }
    }

    /// What happens to a manager's write that takes so long, in milliseconds, if it is not to end well.
    pub fn fault_of_write(&mut self, process: Process, ms: u64) {
        if self.faults.full_disks.contains(&process.0) {
            self.later(ms / 2, Due::WriteFails(process));
        } else if let Some(away) = self.faults.end_in_write.remove(&process.0) {
            let at = self.rng.random_range(0..ms);
            self.later(at, Due::EndsInWrite(process, away));
        }
    }

    /// Whether a write of this manager takes time, so that something may happen to it.
    pub fn write_is_watched(&self, id: u64) -> bool {
        self.faults.full_disks.contains(&id) || self.faults.end_in_write.contains_key(&id)
    }

    /// Production opens the log again after a second.
    pub fn write_fails(&mut self, process: Process) {
        if self.is_running(process) {
            self.crash(process.0, false);
            self.later(1000, Due::Boot(process.0));
        }
    }

    pub fn ends_in_write(&mut self, process: Process, ms: u64) {
        if self.is_running(process) {
            self.crash_for(process.0, ms);
        }
    }

    /// Ends a manager's process; it starts again after a while.
    pub fn crash_for(&mut self, id: u64, ms: u64) {
        if self.managers[&id].running.is_some() {
            let durable = self.rng.random_bool(0.5);
            self.crash(id, durable);
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
