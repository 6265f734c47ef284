//! The peers with their sessions: which one a packet belongs to, and what the protocol makes of it. gotatun does the protocol;
//! this file knows no socket. Any thread may call it; a peer is locked while it is used.

use super::super::{Redirect, TunnelPeer, TunnelPeerState};
use super::difference::redirects;
use super::inner::{Inner, carry_mark};
use super::prefixes::Prefixes;
use crate::model::WgKey;
use gotatun::noise::errors::WireGuardError;
use gotatun::noise::handshake::parse_handshake_anon;
use gotatun::noise::index_table::IndexTable;
use gotatun::noise::rate_limiter::RateLimiter;
use gotatun::noise::{Tunn, TunnResult};
use gotatun::packet::{Packet, WgKind};
use gotatun::tun::MtuWatcher;
use gotatun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Initiations per second and source address above which cookies are asked for. Many nodes may be behind one address and come
/// back together.
const HANDSHAKE_RATE_LIMIT: u64 = 500;
/// Least time between initiations that answer one with an old timestamp.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A datagram and where to send it.
pub(super) type Outgoing = (Packet, SocketAddr);

/// A peer and its sessions.
pub(super) struct LivePeer {
    key: WgKey,
    state: Mutex<PeerState>,
}

struct PeerState {
    tunnel: Tunn,
    configured: TunnelPeer,
    /// When an initiation with an old timestamp was last answered by an own one.
    asked: Option<Instant>,
}

impl LivePeer {
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All peers of the device.
pub(super) struct Peers {
    secret: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
    indices: IndexTable,
    table: RwLock<PeerTable>,
    by_index: RwLock<HashMap<u32, Arc<LivePeer>>>,
    /// Of the device, bytes: bounds the padding.
    mtu: AtomicU16,
}

#[derive(Default)]
struct PeerTable {
    by_key: BTreeMap<WgKey, Arc<LivePeer>>,
    by_prefix: Prefixes<Arc<LivePeer>>,
}

/// What a datagram meant.
pub(super) enum Received {
    /// Nothing to do.
    Nothing,
    /// An IP packet for the device.
    Packet(Packet),
    /// Answers, in order.
    Answers(Vec<Outgoing>),
}

impl Peers {
    pub(super) fn new(private: [u8; 32]) -> Self {
        let secret = StaticSecret::from(private);
        let public = PublicKey::from(&secret);
        Self {
            limiter: Arc::new(RateLimiter::new(&public, HANDSHAKE_RATE_LIMIT)),
            secret,
            public,
            indices: IndexTable::from_os_rng(),
            table: RwLock::default(),
            by_index: RwLock::default(),
            mtu: AtomicU16::new(u16::MAX),
        }
    }

    pub(super) fn set_mtu(&self, mtu: u32) {
        self.mtu.store(u16::try_from(mtu).unwrap_or(u16::MAX), Ordering::Relaxed);
    }

    /// Bytes to send for a packet of `length` bytes: padded to a multiple of 16, but not above the MTU.
    pub(super) fn padded(&self, length: usize) -> usize {
        length.next_multiple_of(16).min(usize::from(self.mtu.load(Ordering::Relaxed))).max(length)
    }

    /// Adds the peer, or changes it in place: its sessions stay. `endpoint` is set if there is one.
    pub(super) fn set(&self, key: WgKey, wanted: &TunnelPeer, endpoint: Option<SocketAddr>) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let peer = Arc::clone(table.by_key.entry(key).or_insert_with(|| {
            let tunnel = Tunn::new(
                self.secret.clone(),
                PublicKey::from(key.0),
                None,
                wanted.keepalive,
                self.indices.clone(),
                Arc::clone(&self.limiter),
            );
            let configured = TunnelPeer { endpoint: wanted.endpoint, ..wanted.clone() };
            Arc::new(LivePeer { key, state: Mutex::new(PeerState { tunnel, configured, asked: None }) })
        }));
        let mut state = peer.lock();
        if state.configured.keepalive != wanted.keepalive {
            state.tunnel.set_persistent_keepalive(wanted.keepalive);
        }
        let endpoint = endpoint.or(state.configured.endpoint);
        let earlier = std::mem::replace(&mut state.configured, TunnelPeer { endpoint, ..wanted.clone() });
        drop(state);
        let wanted: BTreeSet<IpNet> = wanted.allowed_ips.iter().map(IpNet::trunc).collect();
        for net in earlier.allowed_ips.iter().filter(|net| !wanted.contains(&net.trunc())) {
            if table.by_prefix.get(*net).is_some_and(|owner| Arc::ptr_eq(owner, &peer)) {
                table.by_prefix.remove(*net);
            }
        }
        for net in wanted {
            table.by_prefix.insert(net, Arc::clone(&peer));
        }
    }

    /// Sets the endpoint unless the peer's own is newer. Returns whether it did.
    pub(super) fn redirect(&self, key: WgKey, redirect: &Redirect) -> bool {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = table.by_key.get(&key) else { return false };
        let mut state = peer.lock();
        let actual = TunnelPeerState {
            peer: state.configured.clone(),
            handshake_age: state.tunnel.time_since_last_handshake(),
            rx_bytes: 0,
            tx_bytes: 0,
        };
        let applies = redirects(redirect, Some(&actual));
        if applies {
            state.configured.endpoint = Some(redirect.to);
        }
        applies
    }

    pub(super) fn remove(&self, key: WgKey) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = table.by_key.remove(&key) else { return };
        table.by_prefix.retain(|_, owner| !Arc::ptr_eq(owner, &peer));
        self.by_index.write().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| !Arc::ptr_eq(owner, &peer));
    }

    /// The state of all peers. An address that moved to another peer is only at that one.
    pub(super) fn observe(&self) -> BTreeMap<WgKey, TunnelPeerState> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let state = |peer: &Arc<LivePeer>| {
            let state = peer.lock();
            let (handshake_age, tx, rx, _, _) = state.tunnel.stats();
            let mut configured = state.configured.clone();
            let owns = |net: &IpNet| table.by_prefix.get(*net).is_some_and(|owner| Arc::ptr_eq(owner, peer));
            configured.allowed_ips = configured.allowed_ips.iter().map(IpNet::trunc).filter(owns).collect();
            configured.allowed_ips.sort();
            configured.keepalive = configured.keepalive.filter(|seconds| *seconds > 0);
            TunnelPeerState { peer: configured, handshake_age, rx_bytes: rx as u64, tx_bytes: tx as u64 }
        };
        table.by_key.iter().map(|(key, peer)| (*key, state(peer))).collect()
    }

    /// The peer that packets to this address go to.
    pub(super) fn towards(&self, destination: IpAddr) -> Option<Arc<LivePeer>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).by_prefix.find(destination).cloned()
    }

    /// Encrypts padded packets to a peer into `sealed` and empties `packets`. Without a session they wait for one, and `sealed` gets the
    /// initiation of a handshake. Returns where to send what is in `sealed`; without an endpoint the packets are lost.
    pub(super) fn seal(&self, peer: &Arc<LivePeer>, packets: &mut Vec<Packet>, sealed: &mut Vec<Packet>) -> Option<SocketAddr> {
        let mut state = peer.lock();
        let Some(endpoint) = state.configured.endpoint else {
            packets.clear();
            return None;
        };
        for packet in packets.drain(..) {
            match state.tunnel.encapsulate_with_session(packet) {
                Ok(data) => sealed.push(data.into()),
                Err(packet) => {
                    let datagram = state.tunnel.handle_outgoing_packet(packet, None);
                    sealed.extend(datagram.map(|datagram| self.registered(peer, datagram)));
                }
            }
        }
        Some(endpoint)
    }

    /// Takes a datagram from `from`, whose outer header had the ECN bits `ecn`.
    pub(super) fn open(&self, datagram: Packet, from: SocketAddr, ecn: u8) -> Received {
        let message = match self.limiter.verify_packet(from, datagram) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => return Received::Answers(vec![(cookie.into(), from)]),
            Err(_) => return Received::Nothing,
        };
        let by_index = |index: u32| self.by_index.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        let peer = match &message {
            WgKind::Data(message) => by_index(message.header.receiver_idx.get()),
            WgKind::HandshakeInit(message) => {
                let key =
                    parse_handshake_anon(&self.secret, &self.public, message).ok().map(|half| WgKey(half.peer_static_public));
                let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
                key.and_then(|key| table.by_key.get(&key).cloned())
            }
            WgKind::HandshakeResp(message) => by_index(message.receiver_idx.get()),
            WgKind::CookieReply(message) => by_index(message.receiver_idx.get()),
        };
        let Some(peer) = peer else { return Received::Nothing };
        let mut state = peer.lock();
        match state.tunnel.handle_incoming_packet(message) {
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => self.ask(&peer, &mut state),
            TunnResult::Done | TunnResult::Err(_) => Received::Nothing,
            TunnResult::WriteToNetwork(answer) => {
                state.configured.endpoint = Some(from);
                let mut mtu = MtuWatcher::new(self.mtu.load(Ordering::Relaxed));
                let all: Vec<WgKind> = std::iter::once(answer).chain(state.tunnel.get_queued_packets(&mut mtu)).collect();
                Received::Answers(all.into_iter().map(|answer| (self.registered(&peer, answer), from)).collect())
            }
            TunnResult::WriteToTunnel(packet) => {
                state.configured.endpoint = Some(from);
                drop(state);
                self.admit(&peer, packet, ecn)
            }
        }
    }

    /// The packet, if the peer may send it.
    fn admit(&self, peer: &Arc<LivePeer>, mut packet: Packet, ecn: u8) -> Received {
        // An empty one is a keepalive.
        let Some(inner) = Inner::read(&packet) else { return Received::Nothing };
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if !table.by_prefix.find(inner.source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
            tracing::trace!(peer = %peer.key.to_base64(), source = %inner.source, "not an address of this peer");
            return Received::Nothing;
        }
        packet.truncate(inner.length);
        if carry_mark(&mut packet, inner, ecn) { Received::Packet(packet) } else { Received::Nothing }
    }

    /// The peer's clock was set back and it was restarted since: it would be ignored until this side begins. The initiation goes to the
    /// endpoint that is known, because the one that came in may be a repetition by anyone.
    fn ask(&self, peer: &Arc<LivePeer>, state: &mut PeerState) -> Received {
        let Some(endpoint) = state.configured.endpoint else { return Received::Nothing };
        if state.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN) {
            return Received::Nothing;
        }
        state.asked = Some(Instant::now());
        let initiation = state.tunnel.format_handshake_initiation(true);
        let initiation = initiation.map(|initiation| (self.registered(peer, initiation.into()), endpoint));
        Received::Answers(initiation.into_iter().collect())
    }

    /// Initiates a handshake with each of these peers that has no session.
    pub(super) fn initiate(&self, keys: &[WgKey]) -> Vec<Outgoing> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let initiation = |peer: &Arc<LivePeer>| {
            let mut state = peer.lock();
            let endpoint = state.configured.endpoint?;
            let initiation =
                if state.tunnel.has_active_session() { None } else { state.tunnel.format_handshake_initiation(false) };
            Some((self.registered(peer, initiation?.into()), endpoint))
        };
        keys.iter().filter_map(|key| table.by_key.get(key)).filter_map(initiation).collect()
    }

    /// What is due: handshakes, keepalives. To be called some times per second.
    pub(super) fn tick(&self) -> Vec<Outgoing> {
        self.limiter.try_reset_count();
        self.by_index.write().unwrap_or_else(PoisonError::into_inner).retain(|index, _| self.indices.in_use(*index));
        let peers: Vec<Arc<LivePeer>> =
            self.table.read().unwrap_or_else(PoisonError::into_inner).by_key.values().cloned().collect();
        let due = |peer: Arc<LivePeer>| {
            let mut state = peer.lock();
            let endpoint = state.configured.endpoint?;
            let message = state.tunnel.update_timers().ok()??;
            Some((self.registered(&peer, message), endpoint))
        };
        peers.into_iter().filter_map(due).collect()
    }

    /// The bytes of a message. The index in a handshake will lead to its peer.
    fn registered(&self, peer: &Arc<LivePeer>, message: WgKind) -> Packet {
        let index = match &message {
            WgKind::HandshakeInit(message) => Some(message.sender_idx.get()),
            WgKind::HandshakeResp(message) => Some(message.sender_idx.get()),
            WgKind::Data(_) | WgKind::CookieReply(_) => None,
        };
        if let Some(index) = index {
            self.by_index.write().unwrap_or_else(PoisonError::into_inner).insert(index, Arc::clone(peer));
        }
        message.into()
    }
}

#[cfg(test)]
mod tests;
