//! Nodes for tests.

use super::{CandidateNode, PlacedContainer};
use crate::api::access::engine_node::EngineNode;
use crate::model::{Availability, NodeState};

/// A node with 4 CPUs and 8 GB at 192.0.2.1.
pub fn engine_node(name: &str) -> EngineNode {
    EngineNode {
        id: format!("{name}id").as_str().into(),
        name: name.to_owned(),
        addr: Some("192.0.2.1".parse().unwrap()),
        state: NodeState::Ready,
        engine_lost: false,
        availability: Availability::Active,
        nano_cpus: 4_000_000_000,
        memory: 8_000_000_000,
        engine_version: "28.5.2".to_owned(),
        labels: [].into(),
    }
}

/// A node with these labels, as `key=value` words.
pub fn candidate(name: &str, labels: &str) -> CandidateNode {
    let labels = labels.split_whitespace().filter_map(|word| word.split_once('='));
    CandidateNode {
        node: engine_node(name),
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        containers: Vec::new(),
        images: Vec::new(),
    }
}

/// A running container.
pub fn container(name: &str) -> PlacedContainer {
    PlacedContainer { id: format!("{name}0000"), name: name.to_owned(), running: true, ..PlacedContainer::default() }
}
