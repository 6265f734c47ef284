//! The difference between the configuration of a peer and its state. Pure.

use super::super::{Redirect, TunnelPeer, TunnelPeerState, TunnelStep};
use crate::model::WgKey;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

/// For how long a new device initiates a handshake with each peer that gets an endpoint: the peer may still use its session
/// with the previous device, and would for 15 s before it initiates a handshake itself. Afterwards the device does not: a peer
/// that joins initiates the first one, and of two handshakes that cross both are dropped, which costs 5 s.
pub(super) const INITIATE_PERIOD: Duration = Duration::from_secs(30);

/// Allowed-ips in one netlink message: it holds 8 KiB, one IPv6 entry takes 40 bytes, and the peer itself some.
const CHUNK: usize = 160;

/// The endpoint to set: that of the step, unless the device has it already. Whether a step names an endpoint is the policy of
/// `overlay`; a step without one keeps the current endpoint.
pub(super) fn endpoint_change(wanted: &TunnelPeer, actual: Option<&TunnelPeerState>) -> Option<SocketAddr> {
    let current = actual.and_then(|actual| actual.peer.endpoint);
    wanted.endpoint.filter(|endpoint| Some(*endpoint) != current)
}

/// How long a session lives after its handshake (WireGuard's reject-after-time).
const SESSION_LIFETIME: Duration = Duration::from_mins(3);

/// Whether a redirect still applies to the peer as it is now: neither its endpoint nor its session are newer than the observation.
pub(super) fn redirects(redirect: &Redirect, actual: Option<&TunnelPeerState>) -> bool {
    actual.is_some_and(|actual| {
        actual.peer.endpoint == redirect.observed && actual.handshake_age.is_none_or(|age| age >= SESSION_LIFETIME)
    })
}

/// The configuration that peers have after the step; what a new process has to get to continue.
pub(super) fn apply_step(peers: &mut BTreeMap<WgKey, TunnelPeer>, step: &TunnelStep) {
    match step {
        TunnelStep::Set(key, peer) => {
            let current = peers.get(key).and_then(|peer| peer.endpoint);
            peers.insert(*key, TunnelPeer { endpoint: peer.endpoint.or(current), ..peer.clone() });
        }
        TunnelStep::Redirect(key, redirect) => {
            if let Some(peer) = peers.get_mut(key).filter(|peer| peer.endpoint == redirect.observed) {
                peer.endpoint = Some(redirect.to);
            }
        }
        TunnelStep::Remove(key) => drop(peers.remove(key)),
        // The daemon moves them itself, if the process ends before it has.
        TunnelStep::Succeed { .. } => {}
    }
}

/// The changes of one kernel peer.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct PeerChange {
    /// See [`endpoint_change`].
    pub endpoint: Option<SocketAddr>,
    /// Seconds, 0 for none; `None` keeps the current one.
    pub keepalive: Option<u16>,
    /// In chunks that fit a message each. An address of another peer moves to this one.
    pub add: Vec<Vec<IpNet>>,
    /// In chunks as well.
    pub remove: Vec<Vec<IpNet>>,
}

/// The changes from `actual` (`None` if there is no such peer) to `wanted`.
pub(super) fn peer_change(wanted: &TunnelPeer, actual: Option<&TunnelPeerState>) -> PeerChange {
    let desired: BTreeSet<IpNet> = wanted.allowed_ips.iter().map(IpNet::trunc).collect();
    let current: BTreeSet<IpNet> = actual.map(|actual| actual.peer.allowed_ips.iter().copied().collect()).unwrap_or_default();
    let chunks = |nets: Vec<IpNet>| nets.chunks(CHUNK).map(<[IpNet]>::to_vec).collect::<Vec<_>>();
    PeerChange {
        endpoint: endpoint_change(wanted, actual),
        keepalive: (wanted.keepalive != actual.and_then(|actual| actual.peer.keepalive)).then(|| wanted.keepalive.unwrap_or(0)),
        add: chunks(desired.difference(&current).copied().collect()),
        remove: chunks(current.difference(&desired).copied().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(endpoint: Option<&str>, nets: &[&str]) -> TunnelPeer {
        TunnelPeer {
            endpoint: endpoint.map(|text| text.parse().unwrap()),
            allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(),
            keepalive: None,
        }
    }
    fn state(peer: TunnelPeer, age: Option<u64>) -> TunnelPeerState {
        TunnelPeerState { peer, handshake_age: age.map(Duration::from_secs), rx_bytes: 0, tx_bytes: 0 }
    }

    /// Without the endpoint of a step there is none to set; with one it is set, also over that of a live session.
    #[test]
    fn the_endpoint_of_a_step_is_set_whatever_the_session_and_without_one_the_current_stays() {
        let wanted = peer(Some("192.0.2.1:1"), &[]);
        let none = peer(None, &[]);
        for age in [Some(1), Some(200), None] {
            let learned = state(peer(Some("192.0.2.2:2"), &[]), age);
            assert_eq!(peer_change(&wanted, Some(&learned)).endpoint, wanted.endpoint, "session {age:?} s old");
            assert_eq!(peer_change(&none, Some(&learned)).endpoint, None, "session {age:?} s old");
            assert_eq!(peer_change(&wanted, Some(&state(wanted.clone(), age))).endpoint, None, "it has the endpoint already");
        }
        assert_eq!(peer_change(&wanted, None).endpoint, wanted.endpoint);

        let key = WgKey([1; 32]);
        let mut peers = BTreeMap::new();
        apply_step(&mut peers, &TunnelStep::Set(key, wanted.clone()));
        apply_step(&mut peers, &TunnelStep::Set(key, peer(None, &["10.0.0.1/32"])));
        assert_eq!(peers[&key], peer(Some("192.0.2.1:1"), &["10.0.0.1/32"]));
        apply_step(&mut peers, &TunnelStep::Set(key, peer(Some("192.0.2.2:2"), &[])));
        assert_eq!(peers[&key], peer(Some("192.0.2.2:2"), &[]));
        apply_step(&mut peers, &TunnelStep::Remove(key));
        assert!(peers.is_empty());
    }

    /// What the tunnel learned between the observation and the step is newer than the step.
    #[test]
    fn a_redirect_yields_to_what_was_learned_since_the_observation() {
        let (old, new, other): (SocketAddr, SocketAddr, SocketAddr) =
            ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap(), "192.0.2.3:3".parse().unwrap());
        let redirect = Redirect { observed: Some(old), to: new };
        for (endpoint, age, applies) in [
            ("192.0.2.1:1", None, true),
            ("192.0.2.1:1", Some(180), true),
            ("192.0.2.1:1", Some(1), false),
            ("192.0.2.3:3", None, false),
            ("192.0.2.3:3", Some(0), false),
        ] {
            let actual = state(peer(Some(endpoint), &[]), age);
            assert_eq!(redirects(&redirect, Some(&actual)), applies, "{endpoint} {age:?}");
        }
        assert!(!redirects(&redirect, None), "removed since");

        let key = WgKey([1; 32]);
        let step = TunnelStep::Redirect(key, redirect);
        let mut peers = BTreeMap::from([(key, peer(Some("192.0.2.1:1"), &[]))]);
        apply_step(&mut peers, &step);
        assert_eq!(peers[&key].endpoint, Some(new));
        peers.insert(key, peer(Some("192.0.2.3:3"), &[]));
        apply_step(&mut peers, &step);
        assert_eq!(peers[&key].endpoint, Some(other));
    }

    #[test]
    fn only_the_difference_is_sent_and_in_chunks() {
        let current = state(peer(None, &["10.0.0.1/32", "10.0.0.2/32"]), None);
        let small = peer_change(&peer(None, &["10.0.0.2/32", "10.0.0.3/24"]), Some(&current));
        assert_eq!(small.add, [["10.0.0.0/24".parse().unwrap()]]);
        assert_eq!(small.remove, [["10.0.0.1/32".parse().unwrap()]]);
        assert_eq!(small.keepalive, None);

        let many: Vec<IpNet> = (0..1000u128).map(|n| IpNet::new(std::net::Ipv6Addr::from(n).into(), 128).unwrap()).collect();
        let wanted = TunnelPeer { endpoint: None, allowed_ips: many, keepalive: Some(25) };
        let first = peer_change(&wanted, None);
        assert_eq!(first.add.iter().map(Vec::len).sum::<usize>(), 1000);
        assert!(first.add.iter().all(|chunk| chunk.len() <= CHUNK));
        assert_eq!(first.keepalive, Some(25));
        assert_eq!(peer_change(&wanted, Some(&state(wanted.clone(), None))), PeerChange::default());
    }
}
