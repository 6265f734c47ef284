//! Nodes.

use super::tls;
use crate::api::wire;
use crate::manager::root_rotation::{is_left_out, is_silent, is_waited_for};
use crate::model::{Cluster, Node, NodeId, NodeState};
use crate::trust::CaDigest;

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
            tls_info: cluster.map(|cluster| tls_info(node, cluster)).unwrap_or_default(),
        },
        status: wire::NodeStatus {
            // Docker has no other state for a node that has left.
            state: match node.status.state {
                NodeState::Disconnected => NodeState::Down.as_str(),
                state => state.as_str(),
            },
            message: message(node, cluster),
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

/// The root that all nodes trust, and the one that has issued the node's certificate. A change of the root waits for no node that is down:
/// such a node is shown with the certificate that it gets when it is back, as `docker swarm ca --rotate` would wait for it otherwise.
fn tls_info(node: &Node, cluster: &Cluster) -> wire::TlsInfo {
    let issuing = cluster.issuing_ca().0;
    if cluster.ca_history.is_empty() || is_left_out(cluster, node) {
        return tls::info(&cluster.ca_certificate, issuing);
    }
    let retired = cluster.ca_history.retired.iter().map(|root| root.certificate.as_str());
    let mut known = [issuing, &cluster.ca_certificate].into_iter().chain(retired);
    let is_of = |pem: &&str| CaDigest::of_pem(pem).is_ok_and(|digest| digest.to_string() == node.description.issuer);
    tls::info(&cluster.ca_certificate, known.find(is_of).unwrap_or_default())
}

fn message(node: &Node, cluster: Option<&Cluster>) -> String {
    let message = &node.status.message;
    let text = match cluster {
        Some(cluster) if is_left_out(cluster, node) => {
            "its certificate is of a root CA that was replaced, and is renewed when the node is back"
        }
        Some(cluster) if is_waited_for(cluster, node) && is_silent(node) => {
            "the change of the root CA waits for this node: its skep does not say who has issued its certificate, so upgrade or remove it"
        }
        _ => return message.clone(),
    };
    if message.is_empty() { text.to_owned() } else { format!("{message}; {text}") }
}
