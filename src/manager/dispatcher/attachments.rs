//! The tasks of plain containers: one for each that a node reports, none for those that it reports no longer. Planned again each
//! time, like the other reports. A node that has not reported in this session keeps what it has.

use super::core::Dispatcher;
use super::registered_node::RegisteredNode;
use crate::model::{ContainerAttachment, Network, NodeId, Task, TaskId, TaskState, Timestamp};
use crate::store::{Action, FieldUpdate, Store};
use std::collections::BTreeMap;

/// Changes of one node's containers in a round: its reports must not fill the transaction that all planners share.
const PER_ROUND: usize = 32;

impl Dispatcher {
    /// Tasks to create, to correct and to remove now.
    pub(super) fn attachments(&self, store: &Store, now: Timestamp) -> Vec<Action> {
        if !store.has_new_task_fields() {
            return Vec::new();
        }
        // What the reaper forgets of a node without an engine is not made again.
        let is_up = |id: &NodeId| store.node(id).is_some_and(|node| node.status.state.may_be_up());
        let reported = |(id, node): (&NodeId, &RegisteredNode)| {
            let attachments = node.session.and(node.attachments.as_ref()).filter(|_| is_up(id))?;
            Some(changes(store, id, attachments, now).into_iter().take(PER_ROUND))
        };
        self.nodes.iter().filter_map(reported).flatten().collect()
    }
}

/// What differs between the store and what a node reports.
fn changes(store: &Store, node: &NodeId, reported: &[ContainerAttachment], now: Timestamp) -> Vec<Action> {
    let reported: BTreeMap<&TaskId, &ContainerAttachment> =
        reported.iter().map(|attachment| (&attachment.id, attachment)).collect();
    let gone = store.tasks_of_node(node).filter(|task| task.attached.is_some() && !reported.contains_key(&task.id));
    // The reaper deletes them after the allocator, which must not give their addresses to others in the same round: those wait in
    // quarantine then, until no node sends to them.
    let to_remove = |task: &Task| FieldUpdate::DesiredState { id: task.id.clone(), state: TaskState::Remove };
    let mut out: Vec<Action> = gone.map(|task| Action::Set(to_remove(task))).collect();
    for (id, attachment) in reported {
        match store.task(id) {
            None if store.node(node).is_some() => {
                let network = named(store, &attachment.network).map(|network| &network.id);
                out.push(Action::create(attachment.task(node, network, now)));
            }
            Some(task) if task.node_id.as_ref() == Some(node) && is_other(task, attachment) => {
                out.push(Action::update(Task { attached: Some(Box::new(attachment.container.clone())), ..task.clone() }));
            }
            // An id that another task has cannot be drawn by chance.
            None | Some(_) => {}
        }
    }
    out
}

fn is_other(task: &Task, attachment: &ContainerAttachment) -> bool {
    task.attached.as_ref().is_some_and(|container| **container != attachment.container)
}

/// The network that a user means, by its id or its name.
fn named<'a>(store: &'a Store, reference: &str) -> Option<&'a Network> {
    let by_id = store.network(&reference.into()).filter(|network| !network.removing);
    by_id.or_else(|| store.network_named(reference).filter(|network| network.spec.name == reference))
}
