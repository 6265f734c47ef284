//! The nodes as the access point sees them. Pure.

use crate::model::{Availability, NodeId, NodeState};
use crate::store::Store;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A node, with the name by which its containers are named: its host name, or its id if several have that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineNode {
    pub id: NodeId,
    pub name: String,
    pub addr: Option<IpAddr>,
    pub state: NodeState,
    pub engine_lost: bool,
    pub availability: Availability,
    pub nano_cpus: i64,
    pub memory: i64,
    pub engine_version: String,
    /// Labels of its engine; those of the node win.
    pub labels: BTreeMap<String, String>,
}

impl EngineNode {
    /// Why the node is not asked at all.
    pub fn unreachable(&self) -> Option<&'static str> {
        match self.state {
            NodeState::Ready | NodeState::Unknown if self.engine_lost => Some("its Docker Engine does not answer"),
            NodeState::Ready | NodeState::Unknown => None,
            NodeState::Down => Some("it is down"),
            NodeState::Disconnected => Some("it has left the swarm"),
        }
    }
    /// The address that clients reach its published ports at.
    pub fn ip(&self) -> String {
        self.addr.map(|addr| addr.to_string()).unwrap_or_default()
    }
    /// Whether a reference names this node.
    pub fn is_named(&self, reference: &str) -> bool {
        self.name == reference || self.id.as_str() == reference
    }
}

/// All nodes, by name.
pub fn all(store: &Store) -> Vec<EngineNode> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in store.nodes() {
        *counts.entry(node.description.hostname.as_str()).or_default() += 1;
    }
    let mut nodes: Vec<EngineNode> = store
        .nodes()
        .map(|node| {
            let (description, hostname) = (&node.description, node.description.hostname.as_str());
            let is_unique = !hostname.is_empty() && !hostname.contains('/') && counts.get(hostname) == Some(&1);
            let mut labels = description.engine_labels.clone();
            labels.extend(node.spec.labels.clone());
            EngineNode {
                id: node.id.clone(),
                name: if is_unique { hostname.to_owned() } else { node.id.to_string() },
                addr: node.status.addr,
                state: node.status.state,
                engine_lost: description.engine_lost,
                availability: node.spec.availability,
                nano_cpus: description.nano_cpus,
                memory: description.memory_bytes,
                engine_version: description.engine_version.clone(),
                labels,
            }
        })
        .collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    nodes
}

/// The node that `node/name` begins with, and the rest.
pub fn split_reference<'a>(nodes: &'a [EngineNode], reference: &'a str) -> Option<(&'a EngineNode, &'a str)> {
    let (node, name) = reference.trim_start_matches('/').split_once('/')?;
    Some((nodes.iter().find(|candidate| candidate.is_named(node))?, name))
}
