//! From what a peer has to what it shall have: pure.

use super::super::{TunnelPeer, TunnelPeerState};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::time::Duration;

/// A session older than this is refused by both ends (WireGuard's reject-after-time).
const SESSION_LIFE: Duration = Duration::from_mins(3);

/// How long a new device greets the peers that it is given: they may still talk to a session of the one before it, and
/// would for 15 s before they doubt it. Later the newcomer greets: handshakes that cross would cost 5 s.
pub(super) const YOUNG: Duration = Duration::from_secs(30);

/// Allowed-ips in one netlink message: it holds 8 KiB, one IPv6 entry takes 40 bytes, and the peer itself some.
const CHUNK: usize = 160;

/// The endpoint to set, if any: a hint is for the first contact, and a live session knows better where its peer is.
pub(super) fn endpoint_to_set(wanted: &TunnelPeer, actual: Option<&TunnelPeerState>) -> Option<std::net::SocketAddr> {
    let Some(actual) = actual else { return wanted.endpoint };
    let alive = actual.handshake_age.is_some_and(|age| age < SESSION_LIFE);
    if (alive && actual.peer.endpoint.is_some()) || wanted.endpoint == actual.peer.endpoint {
        return None;
    }
    wanted.endpoint
}

/// Changes of one kernel peer.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Change {
    /// See [`endpoint_to_set`].
    pub endpoint: Option<std::net::SocketAddr>,
    /// Seconds, 0 for none; `None`: as it is.
    pub keepalive: Option<u16>,
    /// In pieces that fit a message each. An address that another peer has moves here.
    pub add: Vec<Vec<IpNet>>,
    /// To take away, in pieces.
    pub remove: Vec<Vec<IpNet>>,
}

/// What leads from `actual` (`None`: no such peer) to `wanted`.
pub(super) fn change(wanted: &TunnelPeer, actual: Option<&TunnelPeerState>) -> Change {
    let want: BTreeSet<IpNet> = wanted.allowed_ips.iter().map(IpNet::trunc).collect();
    let have: BTreeSet<IpNet> = actual.map(|actual| actual.peer.allowed_ips.iter().copied().collect()).unwrap_or_default();
    let pieces = |nets: Vec<IpNet>| nets.chunks(CHUNK).map(<[IpNet]>::to_vec).collect::<Vec<_>>();
    Change {
        endpoint: endpoint_to_set(wanted, actual),
        keepalive: (wanted.keepalive != actual.and_then(|actual| actual.peer.keepalive)).then(|| wanted.keepalive.unwrap_or(0)),
        add: pieces(want.difference(&have).copied().collect()),
        remove: pieces(have.difference(&want).copied().collect()),
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

    #[test]
    fn a_live_session_keeps_its_learned_endpoint() {
        let wanted = peer(Some("192.0.2.1:1"), &[]);
        let learned = |age| state(peer(Some("192.0.2.2:2"), &[]), age);
        assert_eq!(endpoint_to_set(&wanted, None), wanted.endpoint);
        assert_eq!(endpoint_to_set(&wanted, Some(&learned(Some(10)))), None);
        assert_eq!(endpoint_to_set(&wanted, Some(&learned(Some(200)))), wanted.endpoint);
        assert_eq!(endpoint_to_set(&wanted, Some(&learned(None))), wanted.endpoint);
        assert_eq!(endpoint_to_set(&wanted, Some(&state(peer(None, &[]), Some(1)))), wanted.endpoint);
        assert_eq!(endpoint_to_set(&peer(None, &[]), Some(&learned(None))), None);
    }

    #[test]
    fn only_the_difference_is_sent_and_in_pieces() {
        let have = state(peer(None, &["10.0.0.1/32", "10.0.0.2/32"]), None);
        let change_small = change(&peer(None, &["10.0.0.2/32", "10.0.0.3/24"]), Some(&have));
        assert_eq!(change_small.add, [["10.0.0.0/24".parse().unwrap()]]);
        assert_eq!(change_small.remove, [["10.0.0.1/32".parse().unwrap()]]);
        assert_eq!(change_small.keepalive, None);

        let many: Vec<IpNet> = (0..1000u128).map(|n| IpNet::new(std::net::Ipv6Addr::from(n).into(), 128).unwrap()).collect();
        let wanted = TunnelPeer { endpoint: None, allowed_ips: many, keepalive: Some(25) };
        let first = change(&wanted, None);
        assert_eq!(first.add.iter().map(Vec::len).sum::<usize>(), 1000);
        assert!(first.add.iter().all(|piece| piece.len() <= CHUNK));
        assert_eq!(first.keepalive, Some(25));
        assert_eq!(change(&wanted, Some(&state(wanted.clone(), None))), Change::default());
    }
}
