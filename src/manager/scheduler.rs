//! PENDING → ASSIGNED: picks a node for each task. Each filter is a rule with its own words, so that "why is my task
//! pending" is a by-product. Always spread: fewest tasks of the service, then fewest tasks.

use super::round::BATCH;
use crate::model::{Availability, Node, NodeId, NodeState, ServiceId, Task, TaskState, Timestamp};
use crate::store::{Action, Store};
use std::collections::BTreeMap;
use std::time::Duration;

/// So many failures of a service on a node within [`FAILURE_WINDOW`] put the node last.
const MAX_FAILURES: usize = 5;
const FAILURE_WINDOW: Duration = Duration::from_mins(5);

struct Filter {
    passes: fn(&Node, &Task) -> bool,
    explain: fn(usize) -> String,
}

/// In the order in which they are asked; a node counts for the first one that it fails.
const FILTERS: &[Filter] = &[
    Filter {
        passes: |node, _| node.status.state == NodeState::Ready && node.spec.availability == Availability::Active,
        explain: |n| format!("{} not available for new tasks", nodes(n)),
    },
    Filter {
        passes: |node, _| !node.description.engine_version.is_empty(),
        explain: |n| format!("no container engine on {}", nodes(n)),
    },
    Filter {
        // A node that lists no plugins at all is believed to have what it needs, as in Swarm.
        passes: |node, task| {
            let plugins = &node.description.plugins;
            let overlay = |(kind, name): &(String, String)| kind == "Network" && (name == "overlay" || name == "skep");
            task.attachments.is_empty() || plugins.is_empty() || plugins.iter().any(overlay)
        },
        explain: |n| format!("missing plugin on {}", nodes(n)),
    },
];

fn nodes(n: usize) -> String {
    if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") }
}

/// Assignments, and reasons for what stays pending.
pub fn plan(store: &Store, now: Timestamp) -> Vec<Action> {
    let mut pending: Vec<&Task> = store
        .tasks()
        .filter(|t| t.status.state == TaskState::Pending && t.node_id.is_none() && t.desired_state <= TaskState::Running)
        .collect();
    if pending.is_empty() {
        return Vec::new();
    }
    pending.sort_by(|a, b| {
        (a.meta.created_at, &a.service_id, a.slot, &a.id).cmp(&(b.meta.created_at, &b.service_id, b.slot, &b.id))
    });
    let mut load = Load::of(store, now);
    let mut out = Vec::new();
    for task in pending {
        if out.len() >= BATCH {
            break;
        }
        let mut next = task.clone();
        match pick(store, task, &load) {
            Ok(node) => {
                load.add(&task.service_id, &node);
                next.node_id = Some(node);
                next.status.state = TaskState::Assigned;
                "scheduler assigned task to node".clone_into(&mut next.status.message);
                next.status.err.clear();
            }
            Err(why) if why == task.status.err => continue,
            Err(why) => next.status.err = why,
        }
        next.status.timestamp = now;
        out.push(Action::update(next));
    }
    out
}

fn pick(store: &Store, task: &Task, load: &Load) -> Result<NodeId, String> {
    let mut failed = vec![0_usize; FILTERS.len()];
    let mut best: Option<((bool, usize, usize), &Node)> = None;
    for node in store.nodes() {
        if let Some(filter) = FILTERS.iter().position(|f| !(f.passes)(node, task)) {
            failed[filter] += 1;
            continue;
        }
        let rank = load.rank(&task.service_id, &node.id);
        if best.as_ref().is_none_or(|(lowest, _)| rank < *lowest) {
            best = Some((rank, node));
        }
    }
    best.map(|(_, node)| node.id.clone()).ok_or_else(|| explain(&failed))
}

fn explain(failed: &[usize]) -> String {
    let mut reasons: Vec<(usize, &Filter)> = failed.iter().copied().zip(FILTERS).filter(|(n, _)| *n > 0).collect();
    reasons.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let text: Vec<String> = reasons.iter().map(|(n, filter)| (filter.explain)(*n)).collect();
    if text.is_empty() { "no suitable node".to_owned() } else { format!("no suitable node ({})", text.join("; ")) }
}

/// How many tasks nodes have.
struct Load {
    total: BTreeMap<NodeId, usize>,
    of_service: BTreeMap<(ServiceId, NodeId), usize>,
    failures: BTreeMap<(ServiceId, NodeId), usize>,
}

impl Load {
    fn of(store: &Store, now: Timestamp) -> Self {
        let mut load = Self { total: BTreeMap::new(), of_service: BTreeMap::new(), failures: BTreeMap::new() };
        for task in store.tasks() {
            let Some(node) = &task.node_id else { continue };
            let failed = matches!(task.status.state, TaskState::Failed | TaskState::Rejected);
            if failed && now.since(task.status.timestamp) < FAILURE_WINDOW {
                *load.failures.entry((task.service_id.clone(), node.clone())).or_default() += 1;
            }
            if task.desired_state <= TaskState::Running && !task.status.state.is_final() {
                load.add(&task.service_id, node);
            }
        }
        load
    }

    fn add(&mut self, service: &ServiceId, node: &NodeId) {
        *self.total.entry(node.clone()).or_default() += 1;
        *self.of_service.entry((service.clone(), node.clone())).or_default() += 1;
    }

    fn rank(&self, service: &ServiceId, node: &NodeId) -> (bool, usize, usize) {
        let key = (service.clone(), node.clone());
        let get = |map: &BTreeMap<(ServiceId, NodeId), usize>| map.get(&key).copied().unwrap_or(0);
        (get(&self.failures) >= MAX_FAILURES, get(&self.of_service), self.total.get(node).copied().unwrap_or(0))
    }
}
