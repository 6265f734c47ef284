//! What `skep rebalance` moves: tasks for which a node with fewer tasks of their service has room. Nothing moves by itself when a
//! node joins or returns, as in Swarm.
//!
//! The first to be even are the branches of the spread preferences, then the nodes by tasks of the service, then the nodes by all
//! tasks. Each move makes the difference at its level smaller by two, or leaves it and makes the next one smaller: there is an end.

use super::filter::Exclusions;
use super::load::Loads;
use super::needs::{LabelledServices, TaskNeeds};
use super::place::NodeRanking;
use super::spread::NodeRank;
use crate::model::constraint::label_value;
use crate::model::eligibility::takes_tasks;
use crate::model::{Node, NodeId, Service, ServiceId, Task, TaskId, Timestamp, UpdateState};
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet};

/// A task that is to move.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    pub task: TaskId,
    pub service: ServiceId,
    pub from: NodeId,
    pub to: NodeId,
}

/// What to move, in this order, and which services are left as they are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RebalancePlan {
    pub moves: Vec<Move>,
    /// Services that are not looked at, with the reason.
    pub left: Vec<(ServiceId, &'static str)>,
}

/// Plans for one service, or for all by name.
#[must_use]
pub fn plan(store: &Store, only: Option<&ServiceId>, now: Timestamp) -> RebalancePlan {
    let mut loads = Loads::default();
    for task in store.tasks() {
        loads.count(task, true);
    }
    let labelled = LabelledServices::read(store);
    let mut services: Vec<&Service> = store.services().filter(|s| only.is_none_or(|only| s.id == *only)).collect();
    services.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    let mut out = RebalancePlan::default();
    for service in services {
        let tasks: Vec<&Task> = store.tasks_of_service(&service.id).filter(|t| is_movable(t, service, store)).collect();
        let Some(first) = tasks.first() else { continue };
        let needs = TaskNeeds::of(first, store, &labelled);
        if let Some(why) = why_left(service, &needs, store) {
            out.left.push((service.id.clone(), why));
            continue;
        }
        let mut balance = Balance { store, service, needs, now, tasks: BTreeMap::new(), loads: &mut loads };
        for task in tasks {
            balance.tasks.entry(task.node_id.as_ref()).or_default().insert((task.meta.created_at, &task.id));
        }
        while let Some(next) = balance.next() {
            balance.carry_out(&next);
            out.moves.push(next);
        }
    }
    out
}

/// It serves, with the present template, on a node where tasks come and go.
fn is_movable(task: &Task, service: &Service, store: &Store) -> bool {
    let node = task.node_id.as_ref().and_then(|id| store.node(id));
    task.is_backend() && task.spec_version == service.spec_version && task.slot_node.is_none() && node.is_some_and(takes_tasks)
}

fn why_left(service: &Service, needs: &TaskNeeds, store: &Store) -> Option<&'static str> {
    let update = service.update.as_ref().map(|update| update.state);
    let is_moved = || store.tasks_of_service(&service.id).any(|t| t.is_wanted() && t.move_to.is_some());
    match () {
        () if service.spec.mode.is_job() => Some("a job ends by itself"),
        () if update.is_some_and(UpdateState::is_active) => Some("it is being updated: wait until that is over"),
        () if update.is_some_and(UpdateState::is_paused) => {
            Some("its update is paused: docker service update --force goes on with it, docker service rollback goes back")
        }
        () if needs.binpack => Some("its tasks share nodes on purpose (skep.placement.strategy=binpack)"),
        () if is_moved() => Some("its tasks are being moved already"),
        () => None,
    }
}

/// The tasks of a service and where they would be better.
struct Balance<'a, 'l> {
    store: &'a Store,
    service: &'a Service,
    needs: TaskNeeds<'a>,
    now: Timestamp,
    /// By node, those that may move and have not, oldest first.
    tasks: BTreeMap<Option<&'a NodeId>, BTreeSet<(Timestamp, &'a TaskId)>>,
    loads: &'l mut Loads,
}

/// A node, as this weighs it.
struct Weighed<'a> {
    node: &'a Node,
    /// The branch that it is in at each level of the preferences, and its tasks of the service.
    branches: Vec<(&'a str, usize)>,
    of_service: usize,
    all: usize,
    /// `None`: no room.
    rank: Option<NodeRank>,
}

impl<'a> Balance<'a, '_> {
    fn next(&self) -> Option<Move> {
        let nodes = self.weighed();
        let best = |group: &mut dyn Iterator<Item = &Weighed<'a>>| -> Option<usize> {
            let open = group.filter_map(|w| Some((w.branches.iter().map(|(_, n)| *n).collect::<Vec<_>>(), w.rank?, w)));
            let (.., best) = open.filter(|(_, rank, _)| !rank.avoid).min_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)))?;
            nodes.iter().position(|w| w.node.id == best.node.id)
        };
        let whole = best(&mut nodes.iter()).and_then(|to| self.to(&nodes, to));
        whole.or_else(|| {
            // Even among the branches: within each.
            let groups: BTreeSet<Vec<&str>> = nodes.iter().map(Weighed::values).collect();
            let mut groups = groups.iter().filter(|_| nodes.iter().any(|w| !w.branches.is_empty()));
            groups.find_map(|group| {
                let to = best(&mut nodes.iter().filter(|w| w.values() == **group))?;
                self.to(&nodes, to)
            })
        })
    }

    /// The move to this node that makes most of a difference.
    fn to(&self, nodes: &[Weighed<'a>], to: usize) -> Option<Move> {
        let to = &nodes[to];
        let mut from: Vec<&Weighed> = nodes.iter().filter(|from| from.node.id != to.node.id && from.is_fuller_than(to)).collect();
        from.sort_by_key(|w| std::cmp::Reverse((w.branches.iter().map(|(_, n)| *n).collect::<Vec<_>>(), w.of_service, w.all)));
        from.into_iter().find_map(|from| {
            let (_, task) = self.tasks.get(&Some(&from.node.id))?.last()?;
            let (from, to) = (from.node.id.clone(), to.node.id.clone());
            Some(Move { task: (*task).clone(), service: self.service.id.clone(), from, to })
        })
    }

    fn weighed(&self) -> Vec<Weighed<'a>> {
        let failures = self.loads.failures(&self.service.id, self.service.spec_version, self.now);
        let failures = failures.into_iter().map(|(node, weight)| (node.clone(), weight)).collect();
        let ranking = NodeRanking { needs: &self.needs, failures };
        let mut of_branches = BTreeMap::<Vec<&str>, usize>::new();
        let values =
            |node: &'a Node| -> Vec<&'a str> { self.needs.spread.iter().filter_map(|name| label_value(node, name)).collect() };
        let count = |node: &Node| self.loads.of(&node.id).map_or(0, |load| load.of_service(&self.service.id));
        for node in self.store.nodes() {
            let values = values(node);
            for level in 1..=values.len() {
                *of_branches.entry(values[..level].to_vec()).or_default() += count(node);
            }
        }
        let weigh = |node: &'a Node| {
            let load = self.loads.of(&node.id);
            let has_room = Exclusions::default().room(&self.needs, node, load) > 0;
            let values = values(node);
            let branches = (0..values.len()).map(|level| (values[level], of_branches[&values[..=level]])).collect();
            let rank = has_room.then(|| ranking.rank(node, load));
            Weighed { node, branches, of_service: count(node), all: load.map_or(0, |load| load.tasks), rank }
        };
        self.store.nodes().map(weigh).collect()
    }

    /// Counts the task where it will be.
    fn carry_out(&mut self, next: &Move) {
        let Some(task) = self.store.task(&next.task) else { return };
        if let Some(left) = self.tasks.get_mut(&task.node_id.as_ref()) {
            left.remove(&(task.meta.created_at, &task.id));
        }
        self.loads.count(task, false);
        self.loads.count(&Task { node_id: Some(next.to.clone()), ..task.clone() }, true);
    }
}

impl Weighed<'_> {
    fn values(&self) -> Vec<&str> {
        self.branches.iter().map(|(value, _)| *value).collect()
    }

    /// A task of this node is better there: the first level at which they differ becomes more even, or stays as it is and the
    /// nodes become more even by all tasks.
    fn is_fuller_than(&self, other: &Self) -> bool {
        let branch = self.branches.iter().zip(&other.branches).find(|(a, b)| a.0 != b.0);
        let (here, there) = branch.map_or((self.of_service, other.of_service), |(a, b)| (a.1, b.1));
        match here.saturating_sub(there) {
            0 => false,
            1 => self.all >= other.all + 2,
            _ => true,
        }
    }
}
