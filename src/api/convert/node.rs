//! Nodes.

use super::tls;
use crate::api::wire;
use crate::model::{Cluster, Node, NodeId, NodeState};

/// A node; `leader` is the leader of the managers, if known.
pub fn node(node: &Node, cluster: Option<&Cluster>, leader: Option<&NodeId>) -> wire::Node {
    let description = &node.description;
    wire::Node {
        id: node.id.to_string(),
        meta: node.meta.into(),
        spec: node.spec.clone(),
        description: wire::Description {
            hostname: description.hostname.clone(),
            platform: wire::Platform { architecture: description.architecture.clone(), os: description.os.clone() },
            resources: wire::Resources {
                nano_cpus: description.nano_cpus,
                memory_bytes: description.memory_bytes,
                generic_resources: description.generic_resources.clone(),
            },
            engine: wire::EngineDescription {
                engine_version: description.engine_version.clone(),
                labels: description.engine_labels.clone(),
                plugins: description
                    .plugins
                    .iter()
                    .map(|(kind, name)| wire::Plugin { kind: kind.clone(), name: name.clone() })
                    .collect(),
            },
            tls_info: cluster.map(|c| tls::info(&c.ca_certificate)).unwrap_or_default(),
        },
        status: wire::NodeStatus {
            // Docker has no other state for a node that has left.
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
