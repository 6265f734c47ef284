//! The tunnel's peers: every other node, with the addresses it may use, and the policy for endpoints. Pure.

use crate::datapath::{Redirect, TunnelPeer, TunnelPeerState, TunnelState, TunnelStep};
use crate::model::view::{ClusterPart, Peer};
use crate::model::{NodeId, WgKey};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Persistent keepalive, seconds: shorter than the time-out of common NAT mappings (WireGuard's usual value).
pub const KEEPALIVE: u16 = 25;
/// How long a session lives after its handshake (WireGuard's reject-after-time). A peer without a younger handshake has no
/// session, so that the endpoint that the tunnel learned from it is worth no more than the advertised one.
pub const SESSION_LIFETIME: Duration = Duration::from_mins(3);

/// How long an endpoint is tried before the next one that the peer advertises: two initiations.
const TRY: Duration = Duration::from_secs(11);

/// Since when each peer without a session is sent to its present endpoint.
#[derive(Clone, Default, Debug)]
pub struct Attempts(BTreeMap<WgKey, (SocketAddr, Instant)>);

/// The steps after which the tunnel has exactly the other nodes as peers.
#[must_use]
pub fn peer_steps(
    cluster: &ClusterPart,
    me: &NodeId,
    tunnel: &TunnelState,
    attempts: &mut Attempts,
    now: Instant,
) -> Vec<TunnelStep> {
    let mut wanted: BTreeMap<WgKey, &Peer> =
        cluster.nodes.iter().filter(|node| node.node_id != *me).map(|node| (node.key, node)).collect();
    // The node's own key is never a peer, also if another entry carries it by mistake.
    if let Some(own) = cluster.node(me) {
        wanted.remove(&own.key);
    }
    attempts.0.retain(|key, _| wanted.contains_key(key));
    // Removals first: they free an address that moves to another peer.
    let mut steps: Vec<TunnelStep> =
        tunnel.peers.keys().filter(|key| !wanted.contains_key(*key)).map(|key| TunnelStep::Remove(*key)).collect();
    for (key, node) in wanted {
        let allowed_ips = node.allowed_ips(cluster.mesh, &cluster.pairs);
        let keepalive = Some(KEEPALIVE);
        let actual = tunnel.peers.get(&key);
        let endpoint = attempts.endpoint_to_set(key, &node.endpoints, actual, now);
        let same = actual.is_some_and(|actual| {
            let mut current = actual.peer.allowed_ips.clone();
            current.sort();
            current == allowed_ips && actual.peer.keepalive == keepalive
        });
        if !same {
            // An existing peer may learn an endpoint before this step is applied: it is set by a step that yields.
            let endpoint = endpoint.filter(|_| actual.is_none());
            steps.push(TunnelStep::Set(key, TunnelPeer { endpoint, allowed_ips, keepalive }));
        }
        if let (Some(to), Some(actual)) = (endpoint, actual) {
            steps.push(TunnelStep::Redirect(key, Redirect { observed: actual.peer.endpoint, to }));
        }
    }
    steps
}

impl Attempts {
    /// The endpoint to set, `None` to keep the current one. The advertised endpoints serve the first contact only: the endpoint
    /// of a live session is the one that the peer's last packets came from, also after it moved or behind a NAT. Without a
    /// session they are tried in turn.
    ///
    /// This is the only place that decides on endpoints; the tunnel applies what it gets.
    pub(super) fn endpoint_to_set(
        &mut self,
        key: WgKey,
        advertised: &[SocketAddr],
        actual: Option<&TunnelPeerState>,
        now: Instant,
    ) -> Option<SocketAddr> {
        if actual.is_some_and(|actual| {
            actual.peer.endpoint.is_some() && actual.handshake_age.is_some_and(|age| age < SESSION_LIFETIME)
        }) {
            self.0.remove(&key);
            return None;
        }
        let first = *advertised.first()?;
        let current = actual.and_then(|actual| actual.peer.endpoint).map(canonical);
        let place = advertised.iter().position(|endpoint| Some(canonical(*endpoint)) == current);
        let next = match (place, current) {
            (Some(place), Some(current)) => {
                let (tried, since) = *self.0.entry(key).or_insert((current, now));
                let is_over = tried == current && now.saturating_duration_since(since) >= TRY && advertised.len() > 1;
                if tried != current {
                    self.0.insert(key, (current, now));
                }
                is_over.then(|| advertised[(place + 1) % advertised.len()])
            }
            _ => Some(first),
        };
        if let Some(next) = next {
            self.0.insert(key, (canonical(next), now));
        }
        next
    }
}

/// Without the v4-mapped form in which a dual-stack socket reports IPv4 addresses.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}
