//! The tunnel's peers: every other node, with the addresses it may use, and the policy for endpoints. Pure.

use crate::datapath::{TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, WgKey};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Persistent keepalive, seconds: shorter than the time-out of common NAT mappings (WireGuard's usual value).
pub const KEEPALIVE: u16 = 25;
/// How long a session lives after its handshake (WireGuard's reject-after-time). A peer without a younger handshake has no
/// session, so that the endpoint that the tunnel learned from it is worth no more than the advertised one.
pub const SESSION_LIFETIME: Duration = Duration::from_mins(3);

/// The steps after which the tunnel has exactly the other nodes as peers.
#[must_use]
pub fn peer_steps(cluster: &ClusterPart, me: &NodeId, tunnel: &TunnelState) -> Vec<TunnelStep> {
    let mut wanted: BTreeMap<WgKey, &Peer> =
        cluster.nodes.iter().filter(|node| node.node_id != *me).map(|node| (node.key, node)).collect();
    // The node's own key is never a peer, also if another entry carries it by mistake.
    if let Some(own) = cluster.node(me) {
        wanted.remove(&own.key);
    }
    // Removals first: they free an address that moves to another peer.
    let mut steps: Vec<TunnelStep> =
        tunnel.peers.keys().filter(|key| !wanted.contains_key(*key)).map(|key| TunnelStep::Remove(*key)).collect();
    for (key, node) in wanted {
        let allowed_ips = node.allowed_ips(cluster.mesh);
        let keepalive = Some(KEEPALIVE);
        let actual = tunnel.peers.get(&key);
        let endpoint = endpoint_to_set(node.endpoints.first().copied(), actual);
        let same = actual.is_some_and(|actual| {
            let mut current = actual.peer.allowed_ips.clone();
            current.sort();
            current == allowed_ips && actual.peer.keepalive == keepalive
        });
        if !same || endpoint.is_some() {
            steps.push(TunnelStep::Set(key, TunnelPeer { endpoint, allowed_ips, keepalive }));
        }
    }
    steps
}

/// The endpoint to set, `None` to keep the current one. The advertised endpoint serves the first contact only: the
/// endpoint of a live session is the one that the peer's last packets came from, also after it moved or behind a NAT.
///
/// This is the only place that decides on endpoints; the tunnel applies what it gets.
pub(super) fn endpoint_to_set(advertised: Option<SocketAddr>, actual: Option<&TunnelPeerState>) -> Option<SocketAddr> {
    let Some(actual) = actual else { return advertised };
    let advertised = advertised?;
    let Some(current) = actual.peer.endpoint else { return Some(advertised) };
    let live = actual.handshake_age.is_some_and(|age| age < SESSION_LIFETIME);
    (!live && canonical(current) != canonical(advertised)).then_some(advertised)
}

/// Without the v4-mapped form in which a dual-stack socket reports IPv4 addresses.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}
