//! Selects nodes for the tasks of one group.

use super::filter::Exclusions;
use super::group::{TaskGroup, TasksByAge, made_for};
use super::load::{Loads, NodeLoad};
use super::needs::TaskNeeds;
use super::spread::{NodeRank, SpreadBranch};
use crate::manager::limits::BATCH;
use crate::model::constraint::label_value;
use crate::model::task::EarlierFailures;
use crate::model::{Node, NodeId, ServiceId, SlotKey, Task, TaskState, Timestamp};
use crate::store::{Action, Object, Store};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Decisions so far, and what they are made from.
pub(super) struct Placer<'a> {
    store: &'a Store,
    now: Timestamp,
    nodes: Vec<&'a Node>,
    loads: &'a mut Loads,
    /// Tasks that those of the present group replace in their slots, by node.
    leaving: BTreeMap<&'a NodeId, Vec<&'a Task>>,
    /// The same by slot, if they stop before those of the group start.
    lent: BTreeMap<SlotKey, Vec<&'a Task>>,
    /// Those of them that are assignments are counted in the loads until the end of the plan.
    out: Vec<Action>,
}

impl<'a> Placer<'a> {
    /// The loads are those of the store.
    pub(super) fn new(store: &'a Store, loads: &'a mut Loads, now: Timestamp) -> Self {
        Self {
            store,
            now,
            nodes: store.nodes().collect(),
            loads,
            leaving: BTreeMap::new(),
            lent: BTreeMap::new(),
            out: Vec::new(),
        }
    }

    /// There are as many decisions as a plan has at most.
    pub(super) fn is_full(&self) -> bool {
        self.out.len() >= BATCH
    }

    /// The decisions. The loads are those of the store again.
    pub(super) fn finish(self) -> Vec<Action> {
        for action in &self.out {
            if let Action::Update(Object::Task(task)) = action
                && task.status.state == TaskState::Assigned
            {
                self.loads.count(task, false);
            }
        }
        self.out
    }

    /// Selects nodes for as many tasks of the group as have room and as the plan takes.
    pub(super) fn place(&mut self, group: &TaskGroup, needs: &TaskNeeds) {
        let store = self.store;
        self.find_leaving(group, needs.service);
        self.confirm(tasks_of(store, &group.preassigned), needs);
        for task in tasks_of(store, &group.alone) {
            // What its predecessors failed at speaks against nodes for this task alone.
            if self.assign_to_requested_node(task, needs) {
                continue;
            }
            self.select(std::iter::once(task), needs, &task.failures);
        }
        self.select(tasks_of(store, &group.plain), needs, &EarlierFailures::default());
    }

    /// Tasks that leave their slots when those of the group start, while the service is updated. They do not count where the next
    /// task of the service is best; and if they stop first, what each has is free for the task of its own slot, which waits for it,
    /// and for no other.
    fn find_leaving(&mut self, group: &TaskGroup, id: &ServiceId) {
        self.leaving.clear();
        self.lent.clear();
        let store = self.store;
        let Some(service) = store.service(id).filter(|s| s.update.as_ref().is_some_and(|update| update.state.is_active())) else {
            return;
        };
        let stop_first = !service.current_update_config().starts_first();
        let slots: BTreeSet<SlotKey> = group.tasks().filter_map(|id| store.task(id)).map(Task::slot_key).collect();
        let leaves = |t: &&Task| t.is_wanted() && !t.status.state.is_final() && slots.contains(&t.slot_key());
        for task in store.tasks_of_service(id).filter(leaves) {
            if let Some(node) = &task.node_id {
                self.leaving.entry(node).or_default().push(task);
                if stop_first {
                    self.lent.entry(task.slot_key()).or_default().push(task);
                }
            }
        }
    }

    /// The load of a node as the rank counts it: without the tasks that leave.
    fn load_without_leaving(&self, node: &NodeId) -> Option<Cow<'_, NodeLoad>> {
        let load = self.loads.of(node)?;
        Some(match self.leaving.get(node) {
            Some(leaving) => Cow::Owned(load.without(leaving)),
            None => Cow::Borrowed(load),
        })
    }

    /// The load of a node as the filters count it for a task: without the tasks whose places it is lent there.
    fn load_for(&self, task: &Task, node: &NodeId) -> Option<Cow<'_, NodeLoad>> {
        let load = self.loads.of(node)?;
        let lent: Vec<&Task> = self.lent_to(task).iter().copied().filter(|lent| lent.node_id.as_ref() == Some(node)).collect();
        Some(if lent.is_empty() { Cow::Borrowed(load) } else { Cow::Owned(load.without(&lent)) })
    }

    /// Tasks whose places are lent to one that waits until they have stopped.
    fn lent_to(&self, task: &Task) -> &[&'a Task] {
        let waits = task.desired_state < TaskState::Running;
        self.lent.get(&task.slot_key()).filter(|_| waits).map_or(&[], Vec::as_slice)
    }

    /// Numbers of the nodes that have room for a task only because of the places that it is lent there.
    fn lent_nodes(&self, task: &Task, needs: &TaskNeeds, room: &[usize]) -> Vec<usize> {
        let nodes = self.lent_to(task).iter().filter_map(|lent| lent.node_id.as_ref());
        let mut numbers: Vec<usize> = nodes.filter_map(|id| self.nodes.iter().position(|node| node.id == *id)).collect();
        numbers.dedup();
        let has_room = |number: &usize| {
            let node = self.nodes[*number];
            room[*number] == 0 && Exclusions::default().room(needs, node, self.load_for(task, &node.id).as_deref()) > 0
        };
        numbers.retain(has_room);
        numbers
    }

    /// Checks tasks that were made for a node.
    fn confirm(&mut self, tasks: impl Iterator<Item = &'a Task>, needs: &TaskNeeds) {
        for task in tasks {
            if self.is_full() {
                return;
            }
            let Some(node) = made_for(task).and_then(|id| self.store.node(id)) else { continue };
            let mut exclusions = Exclusions::default();
            if exclusions.room(needs, node, self.load_for(task, &node.id).as_deref()) > 0 {
                self.assign(task, node, needs, "scheduler confirmed task can run on preassigned node");
            } else {
                self.wait(task, &exclusions.reasons());
            }
        }
    }

    /// Gives a task the node that `skep rebalance` has made it for, if that still has room.
    fn assign_to_requested_node(&mut self, task: &Task, needs: &TaskNeeds) -> bool {
        let Some(node) = task.move_to.as_ref().filter(|_| !self.is_full()).and_then(|id| self.store.node(id)) else {
            return false;
        };
        if node.status.behind_since.is_some() {
            return false;
        }
        let has_room = Exclusions::default().room(needs, node, self.loads.of(&node.id)) > 0;
        if has_room {
            self.assign(task, node, needs, "scheduler assigned task to node");
        }
        has_room
    }

    /// Selects nodes for tasks that any node may have.
    fn select(&mut self, tasks: impl Iterator<Item = &'a Task>, needs: &TaskNeeds, own: &EarlierFailures) {
        let mut left = tasks.peekable();
        let Some(first) = left.peek().copied().filter(|_| !self.is_full()) else { return };
        let mut failures: BTreeMap<NodeId, u32> = self
            .loads
            .failures(&first.service_id, first.spec_version, self.now)
            .into_iter()
            .map(|(node, weight)| (node.clone(), weight))
            .collect();
        for (node, weight) in &own.nodes {
            let known = failures.entry(node.clone()).or_default();
            *known = (*known).max(*weight);
        }
        let ranking = NodeRanking { needs, failures };
        let mut exclusions = Exclusions::default();
        let mut room: Vec<usize> = Vec::with_capacity(self.nodes.len());
        let mut root = SpreadBranch::default();
        let values_of =
            |node: &'a Node| -> Vec<&str> { needs.spread.iter().filter_map(|name| label_value(node, name)).collect() };
        for (number, node) in self.nodes.iter().enumerate() {
            let load = self.load_without_leaving(&node.id);
            let load = load.as_deref();
            let fits = exclusions.room(needs, node, self.loads.of(&node.id));
            room.push(fits);
            let rank = (fits > 0).then(|| ranking.rank(node, load));
            root.add(&values_of(node), load.map_or(0, |load| load.of_service(needs.service)), rank, number);
        }
        root.sort();
        let mut waiting = Vec::new();
        while !self.is_full()
            && let Some(task) = left.next()
        {
            let lent = self.lent_nodes(task, needs, &room);
            for number in &lent {
                let node = self.nodes[*number];
                let rank = ranking.rank(node, self.load_without_leaving(&node.id).as_deref());
                root.offer(&values_of(node), rank, *number);
            }
            let took = root.take(&mut |number| {
                let node = self.nodes[number];
                self.assign(task, node, needs, "scheduler assigned task to node");
                room[number] = room[number].saturating_sub(1);
                (room[number] > 0).then(|| ranking.rank(node, self.load_without_leaving(&node.id).as_deref()))
            });
            for number in lent {
                root.withdraw(&values_of(self.nodes[number]), number);
            }
            if !took {
                waiting.push(task);
            }
        }
        self.explain(&waiting, needs);
    }

    /// Says of each task why it waits. What was assigned before counts.
    fn explain(&mut self, tasks: &[&Task], needs: &TaskNeeds) {
        if tasks.is_empty() {
            return;
        }
        let mut exclusions = Exclusions::default();
        for node in &self.nodes {
            exclusions.room(needs, node, self.loads.of(&node.id));
        }
        let of_all = exclusions.explain();
        for task in tasks {
            let lent: BTreeSet<&NodeId> = self.lent_to(task).iter().filter_map(|lent| lent.node_id.as_ref()).collect();
            if lent.is_empty() {
                self.wait(task, &of_all);
                continue;
            }
            let mut exclusions = exclusions.clone();
            for node in self.nodes.iter().filter(|node| lent.contains(&node.id)) {
                exclusions.forget(needs, node, self.loads.of(&node.id));
                exclusions.room(needs, node, self.load_for(task, &node.id).as_deref());
            }
            self.wait(task, &exclusions.explain());
        }
    }

    fn assign(&mut self, task: &Task, node: &Node, needs: &TaskNeeds, message: &str) {
        let mut next = task.clone();
        if !needs.generic.is_empty() {
            let idle = NodeLoad::default();
            let load = self.load_for(task, &node.id);
            let in_use = &load.as_deref().unwrap_or(&idle).generic;
            next.generic_resources = in_use.claim(&node.description, needs.generic).unwrap_or_default();
        }
        next.node_id = Some(node.id.clone());
        next.move_to = None;
        next.status.state = TaskState::Assigned;
        message.clone_into(&mut next.status.message);
        next.status.err.clear();
        next.status.timestamp = self.now;
        self.loads.count(&next, true);
        self.out.push(Action::update(next));
    }

    /// A reason that the task has already is not written again.
    fn wait(&mut self, task: &Task, reason: &str) {
        if task.status.err == reason {
            return;
        }
        let mut next = task.clone();
        reason.clone_into(&mut next.status.err);
        next.status.timestamp = self.now;
        self.out.push(Action::update(next));
    }
}

fn tasks_of<'s, 't>(store: &'s Store, set: &'t TasksByAge) -> impl Iterator<Item = &'s Task> + use<'s, 't> {
    set.iter().filter_map(|(_, _, id)| store.task(id))
}

/// Ranks nodes for the tasks of a group.
pub(super) struct NodeRanking<'a> {
    pub needs: &'a TaskNeeds<'a>,
    /// Weight of recent failures.
    pub failures: BTreeMap<NodeId, u32>,
}

impl NodeRanking<'_> {
    pub(super) fn rank(&self, node: &Node, load: Option<&NodeLoad>) -> NodeRank {
        let needs = self.needs;
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let failures = self.failures.get(&node.id).copied().unwrap_or(0);
        let (tasks, of_service) = load.map_or((0, 0), |load| (count(load.tasks), count(load.of_service(needs.service))));
        let (main, tasks) = if needs.binpack { (-fullness(node, load), -tasks) } else { (of_service, tasks) };
        NodeRank {
            avoid: failures >= EarlierFailures::AVOID || node.status.behind_since.is_some(),
            main,
            failures,
            image_absent: needs.prefer_image && !load.is_some_and(|load| load.has_image(needs.image)),
            tasks,
        }
    }
}

/// The larger share of its CPUs or memory that is reserved, in millionths.
fn fullness(node: &Node, load: Option<&NodeLoad>) -> i64 {
    let share = |used: i128, total: i64| if total > 0 { used * 1_000_000 / i128::from(total) } else { 0 };
    let Some(load) = load else { return 0 };
    let description = &node.description;
    let fullest = share(load.nano_cpus, description.nano_cpus).max(share(load.memory_bytes, description.memory_bytes));
    i64::try_from(fullest).unwrap_or(i64::MAX)
}
