//! The swarm, and this node's place in it.

use super::tls;
use crate::api::control::Membership;
use crate::api::wire;
use crate::model::Cluster;
use crate::store::Store;

/// The warning of a swarm that loses its quorum with either manager.
const TWO_MANAGERS: &str = "WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance.";

/// The cluster, with its join tokens only where they are asked for.
pub fn swarm(cluster: &Cluster, tokens: bool) -> wire::Swarm {
    let pools = &cluster.address_pools;
    wire::Swarm {
        id: cluster.id.to_string(),
        meta: cluster.meta.into(),
        spec: cluster.spec.clone(),
        tls_info: tls::info(&cluster.ca_certificate),
        root_rotation_in_progress: false,
        default_addr_pool: (!pools.is_empty()).then(|| pools.iter().map(ToString::to_string).collect()),
        subnet_size: cluster.subnet_size,
        data_path_port: cluster.data_path_port,
        join_tokens: tokens.then(|| cluster.tokens.clone()),
    }
}

/// The `Swarm` block of `/info`; `store` is this manager's.
pub fn info(membership: &Membership, store: Option<&Store>) -> wire::SwarmInfo {
    let member = membership.member();
    let mut error = String::new();
    let mut addr = member.and_then(|m| m.node_addr);
    let mut remotes = member.map(|m| {
        let mut managers: Vec<_> =
            m.managers.iter().map(|(id, addr)| wire::RemoteManager { node_id: id.to_string(), addr: addr.to_string() }).collect();
        managers.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        managers
    });
    if let Membership::Pending { node_addr, remotes: asked, error: why } = membership {
        error.clone_from(why);
        addr = *node_addr;
        let asked = asked.iter().map(|a| wire::RemoteManager { node_id: String::new(), addr: a.clone() });
        remotes = Some(asked.collect());
    }
    let cluster = store.and_then(Store::cluster);
    if matches!(membership, Membership::Manager(_)) && cluster.is_none() {
        "this manager has no state of the cluster yet".clone_into(&mut error);
    }
    let managers = store.map(|s| s.nodes().filter(|n| n.manager.is_some()).count());
    wire::SwarmInfo {
        node_id: member.map(|m| m.node_id.to_string()).unwrap_or_default(),
        node_addr: addr.map(|a| a.to_string()).unwrap_or_default(),
        local_node_state: membership.local_state(),
        control_available: matches!(membership, Membership::Manager(_)),
        error,
        remote_managers: remotes,
        nodes: store.map(|s| s.nodes().count()),
        managers,
        cluster: cluster.map(|c| swarm(c, false)),
        warnings: if managers == Some(2) { vec![TWO_MANAGERS] } else { Vec::new() },
    }
}
