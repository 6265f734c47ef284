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
    let mut wanted: BTreeMap<WgKey, &Peer> = BTreeMap::new();
    for node in cluster.nodes.iter().filter(|node| node.node_id != *me) {
        for key in node.keys() {
            let owner = wanted.entry(key).or_insert(node);
            if owns(node, owner, tunnel.peers.get(&key)) {
                *owner = node;
            }
        }
    }
    // The node's own keys are never peers, also if another entry carries one by mistake.
    for own in cluster.node(me).into_iter().flat_map(Peer::keys) {
        wanted.remove(&own);
    }
    attempts.0.retain(|key, _| wanted.contains_key(key));
    // Removals first: they free an address that moves to another peer.
    let mut steps: Vec<TunnelStep> =
        tunnel.peers.keys().filter(|key| !wanted.contains_key(*key)).map(|key| TunnelStep::Remove(*key)).collect();
    for (key, node) in wanted {
        if key != key_in_use(node, tunnel) {
            steps.extend(steps_of_other_key(key, node, tunnel));
            continue;
        }
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

/// Whether a key is this node's rather than the other one's. The store refuses a key that another node has; one of before may have two
/// nodes with one key. Then the key stays with the node that it is in use for: a node that joins must not get the packets of
/// another one. Without that, with the one of the lower subnet, which mostly has joined first.
fn owns(node: &Peer, other: &Peer, actual: Option<&TunnelPeerState>) -> bool {
    let has = |node: &Peer| actual.is_some_and(|actual| actual.peer.allowed_ips.contains(&node.subnet.into()));
    !has(other) && (has(node) || node.subnet < other.subnet)
}

/// The key that the packets of a node are encrypted for: the next one as soon as the node has shown that it uses it.
#[must_use]
pub fn key_in_use(node: &Peer, tunnel: &TunnelState) -> WgKey {
    let shown = |key: &WgKey| {
        let peer = tunnel.peers.get(key);
        peer.is_some_and(|peer| peer.handshake_age.is_some() || !peer.peer.allowed_ips.is_empty())
    };
    node.next.map(|next| next.key).filter(shown).unwrap_or(node.key)
}

/// Whether a node may change to its next key at any moment, or has and this tunnel has not followed.
pub(super) fn is_changing(cluster: &ClusterPart, me: &NodeId, tunnel: &TunnelState) -> bool {
    let mut others = cluster.nodes.iter().filter(|node| node.node_id != *me);
    others.any(|node| node.next.is_some_and(|next| key_in_use(node, tunnel) != next.key))
}

/// A node's key that it does not use yet, or not any more. The first is a peer without allowed-ips, so that the node can make a handshake as
/// soon as it uses it; this side tries too. From the second they have moved: it only goes on to receive.
fn steps_of_other_key(key: WgKey, node: &Peer, tunnel: &TunnelState) -> Vec<TunnelStep> {
    let known_endpoint = tunnel.peers.get(&node.key).and_then(|peer| peer.peer.endpoint);
    let endpoint = known_endpoint.or_else(|| node.endpoints.first().copied());
    match tunnel.peers.get(&key) {
        None => {
            let staged = TunnelPeer { endpoint, allowed_ips: Vec::new(), keepalive: Some(KEEPALIVE) };
            let set = TunnelStep::Set(key, staged);
            if key == node.key { vec![set] } else { vec![set, TunnelStep::Succeed { old: node.key, new: key }] }
        }
        Some(staged) if key != node.key && staged.handshake_age.is_none() && staged.peer.endpoint != endpoint => {
            endpoint.map(|to| TunnelStep::Redirect(key, Redirect { observed: staged.peer.endpoint, to })).into_iter().collect()
        }
        Some(_) => Vec::new(),
    }
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
