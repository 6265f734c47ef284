//! The tunnel's peers: who they are and what they may carry. Pure.

use crate::datapath::{TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use crate::model::NodeId;
use crate::model::WgKey;
use crate::model::view::{ClusterPart, Peer};
use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds between keep-alives: what keeps NAT mappings open.
pub const KEEPALIVE: u16 = 25;
/// A peer that was not heard of for this long has no session any more (WireGuard's reject-after time): its endpoint may
/// be set anew. Before that the endpoint is what the tunnel learned, and is left alone.
pub const HANDSHAKE_OLD: Duration = Duration::from_mins(3);

/// What to do so that the tunnel has exactly the other nodes as peers.
#[must_use]
pub fn peer_steps(cluster: &ClusterPart, me: &NodeId, tunnel: &TunnelState, keepalive: Option<u16>) -> Vec<TunnelStep> {
    let mut wanted: BTreeMap<WgKey, &Peer> =
        cluster.nodes.iter().filter(|node| node.node_id != *me).map(|node| (node.key, node)).collect();
    // A node's own key is never a peer, also if another entry carries it by mistake.
    if let Some(own) = cluster.node(me) {
        wanted.remove(&own.key);
    }
    // Removals first: an address that moved is free before another peer gets it.
    let mut steps: Vec<TunnelStep> =
        tunnel.peers.keys().filter(|key| !wanted.contains_key(*key)).map(|key| TunnelStep::Remove(*key)).collect();
    for (key, node) in wanted {
        let allowed_ips = node.allowed_ips(cluster.mesh);
        let actual = tunnel.peers.get(&key);
        let endpoint = endpoint(node, actual);
        let same = actual.is_some_and(|actual| {
            let mut has = actual.peer.allowed_ips.clone();
            has.sort();
            has == allowed_ips && actual.peer.keepalive == keepalive
        });
        if !same || endpoint.is_some() {
            steps.push(TunnelStep::Set(key, TunnelPeer { endpoint, allowed_ips, keepalive }));
        }
    }
    steps
}

/// The endpoint to set; `None` to leave it as it is.
fn endpoint(node: &Peer, actual: Option<&TunnelPeerState>) -> Option<std::net::SocketAddr> {
    let first = node.endpoints.first().copied()?;
    match actual {
        None => Some(first),
        Some(actual) => {
            let silent = actual.handshake_age.is_none_or(|age| age >= HANDSHAKE_OLD);
            (silent && actual.peer.endpoint.map(canonical) != Some(canonical(first))).then_some(first)
        }
    }
}

/// Without the v4-mapped form that a dual-stack socket gives.
fn canonical(endpoint: std::net::SocketAddr) -> std::net::SocketAddr {
    std::net::SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}
