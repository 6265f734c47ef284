//! Nodes.

use super::tls;
use crate::api::wire;
use crate::model::{Cluster, Node, NodeId, NodeState};

/// A node, as seen while `leader` leads.
pub fn node(node: &Node, cluster: Option<&Cluster>, leader: Option<&NodeId>) -> wire::Node {
    let about = &node.description;
    wire::Node {
        id: node.id.to_string(),
        meta: node.meta.into(),
        spec: node.spec.clone(),
        description: wire::Description {
            hostname: about.hostname.clone(),
            platform: wire::Platform { architecture: about.architecture.clone(), os: about.os.clone() },
            resources: wire::Resources { nano_cpus: about.nano_cpus, memory_bytes: about.memory_bytes },
            engine: wire::EngineDescription {
                engine_version: about.engine_version.clone(),
                labels: about.engine_labels.clone(),
                plugins: about
                    .plugins
                    .iter()
                    .map(|(kind, name)| wire::Plugin { kind: kind.clone(), name: name.clone() })
                    .collect(),
            },
            tls_info: cluster.map(|c| tls::info(&c.ca_certificate)).unwrap_or_default(),
        },
        status: wire::NodeStatus {
            // Swarm knows no other word for a node that has left.
            state: match node.status.state {
                NodeState::Disconnected => NodeState::Down.as_str(),
                state => state.as_str(),
            },
            message: node.status.message.clone(),
            addr: node.status.addr.map(|a| a.to_string()),
        },
        manager_status: node.manager.as_ref().map(|manager| wire::ManagerStatus {
            leader: leader == Some(&node.id),
            reachability: match node.status.state {
                NodeState::Ready => "reachable",
                NodeState::Unknown => "unknown",
                NodeState::Down | NodeState::Disconnected => "unreachable",
            },
            addr: manager.addr.to_string(),
        }),
    }
}
