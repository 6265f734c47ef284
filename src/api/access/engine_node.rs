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

/// The name of each node: its host name, unless another node has that as its host name or as its id. A node chooses its host name
/// itself, and must not be taken for another one by it.
fn names(nodes: &[(&NodeId, &str)]) -> BTreeMap<NodeId, String> {
    let mut taken: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, hostname) in nodes {
        *taken.entry(hostname).or_default() += 1;
        *taken.entry(id.as_str()).or_default() += 1;
    }
    let name = |(id, hostname): &(&NodeId, &str)| {
        let is_unique = !hostname.is_empty() && !hostname.contains('/') && taken.get(hostname) == Some(&1);
        if is_unique { (*hostname).to_owned() } else { id.to_string() }
    };
    nodes.iter().map(|node| (node.0.clone(), name(node))).collect()
}

/// All nodes, by name.
pub fn all(store: &Store) -> Vec<EngineNode> {
    let known: Vec<(&NodeId, &str)> = store.nodes().map(|node| (&node.id, node.description.hostname.as_str())).collect();
    let mut names = names(&known);
    let mut nodes: Vec<EngineNode> = store
        .nodes()
        .map(|node| {
            let description = &node.description;
            let mut labels = description.engine_labels.clone();
            labels.extend(node.spec.labels.clone());
            EngineNode {
                id: node.id.clone(),
                name: names.remove(&node.id).unwrap_or_else(|| node.id.to_string()),
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
    let with_id = nodes.iter().find(|candidate| candidate.id.as_str() == node);
    Some((with_id.or_else(|| nodes.iter().find(|candidate| candidate.name == node))?, name))
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;

    #[test]
    fn no_node_is_named_as_another_one() {
        let ids: Vec<NodeId> = ["id1", "id2", "id3", "id4"].into_iter().map(NodeId::from).collect();
        // The second one has taken the id of the first one, the third and the fourth have one host name.
        let hosts = ["n1", "id1", "twin", "twin"];
        let nodes: Vec<(&NodeId, &str)> = ids.iter().zip(hosts).collect();
        assert_eq!(names(&nodes).into_values().collect::<Vec<_>>(), ["n1", "id2", "id3", "id4"]);
        // An id that is its own host name is its own.
        assert_eq!(names(&[(&ids[0], "id1")]).into_values().collect::<Vec<_>>(), ["id1"]);
    }

    #[test]
    fn a_reference_names_a_node_by_its_id_first() {
        let (first, mut second) = (engine_node("a"), engine_node("b"));
        second.name = first.id.to_string();
        for nodes in [[first.clone(), second.clone()], [second, first.clone()]] {
            let (node, name) = split_reference(&nodes, "/aid/web").unwrap();
            assert_eq!((&node.id, name), (&first.id, "web"));
        }
    }
}
