//! The swarm, and this node's membership.

use super::tls;
use crate::api::control::{LOCKED, Membership};
use crate::api::wire;
use crate::model::Cluster;
use crate::store::Store;

/// Docker's warning for two managers.
const TWO_MANAGERS: &str = "WARNING: Running Swarm in a two-manager configuration. This configuration provides
         no fault tolerance, and poses a high risk to lose control over the cluster.
         Refer to https://docs.docker.com/engine/swarm/admin_guide/ to configure the
         Swarm for fault-tolerance.";

/// The cluster; `tokens` includes its join tokens.
pub fn swarm(cluster: &Cluster, tokens: bool) -> wire::Swarm {
    let pools = &cluster.address_pools;
    wire::Swarm {
        id: cluster.id.to_string(),
        meta: cluster.meta.into(),
        spec: cluster.spec.clone(),
        tls_info: tls::info(&cluster.ca_certificate, cluster.issuing_ca().0),
        root_rotation_in_progress: cluster.ca_history.rotation.is_some(),
        default_addr_pool: (!pools.is_empty()).then(|| pools.iter().map(ToString::to_string).collect()),
        subnet_size: cluster.subnet_size,
        data_path_port: cluster.data_path_port,
        join_tokens: tokens.then(|| cluster.tokens.clone()),
    }
}

/// The `Swarm` block of `/info`; `store` is `None` unless this node is a manager.
pub fn info(membership: &Membership, store: Option<&Store>) -> wire::SwarmInfo {
    let info = membership.info();
    let mut error = String::new();
    let mut addr = info.and_then(|m| m.node_addr);
    let mut remotes = info.map(|m| {
        let mut managers: Vec<_> =
            m.managers.iter().map(|(id, addr)| wire::RemoteManager { node_id: id.to_string(), addr: addr.to_string() }).collect();
        managers.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        managers
    });
    if let Membership::Pending { node_addr, remotes: hosts, error: reason } = membership {
        error.clone_from(reason);
        addr = *node_addr;
        let named = hosts.iter().map(|h| wire::RemoteManager { node_id: String::new(), addr: h.clone() });
        remotes = (!hosts.is_empty()).then(|| named.collect());
    }
    if let Membership::Locked { node_addr } = membership {
        LOCKED.clone_into(&mut error);
        addr = *node_addr;
    }
    let cluster = store.and_then(Store::cluster);
    if matches!(membership, Membership::Manager(_)) && cluster.is_none() {
        "this manager has no state of the cluster yet".clone_into(&mut error);
    }
    let managers = store.map(|s| s.nodes().filter(|n| n.manager.is_some()).count());
    wire::SwarmInfo {
        node_id: info.map(|m| m.node_id.to_string()).unwrap_or_default(),
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
