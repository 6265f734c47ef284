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
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Initiations per second and source address above which cookies are asked for. Many nodes may be behind one address and come
/// back together.
const HANDSHAKE_RATE_LIMIT: u64 = 500;
/// Least time between initiations that answer one with an old timestamp.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How long sessions of the key before may still receive (WireGuard's reject-after-time).
const RETIRE_AFTER: Duration = Duration::from_mins(3);

/// A datagram and where to send it.
pub(super) type Outgoing = (Packet, SocketAddr);

/// A peer and its sessions.
pub(super) struct LivePeer {
    key: WgKey,
    state: Mutex<PeerState>,
    /// Another key of the same node, whose allowed-ips this one gets.
    predecessor: OnceLock<WgKey>,
    /// It has not got them yet.
    is_to_succeed: AtomicBool,
}

struct PeerState {
    tunnel: Tunn,
    /// Number of the own key that `tunnel` is of.
    generation: u32,
    /// Sessions of the own key before: they receive, and send until `tunnel` has one.
    retiring: Option<RetiringTunnel>,
    configured: TunnelPeer,
    /// When an initiation with an old timestamp was last answered by an own one.
    asked: Option<Instant>,
}

struct RetiringTunnel {
    tunnel: Tunn,
    generation: u32,
    since: Instant,
    /// The peer has not shown yet that it has a session of the new key.
    sends: bool,
}

impl PeerState {
    /// Encrypts a packet with a session that there is, of either key; the packet if there is none.
    fn encapsulate(&mut self, packet: Packet) -> Result<Packet, Packet> {
        match &mut self.retiring {
            Some(retiring) if retiring.sends && !self.tunnel.has_active_session() => {
                retiring.tunnel.encapsulate_with_session(packet)
            }
            _ => self.tunnel.encapsulate_with_session(packet),
        }
        .map(Into::into)
    }

    /// The peer has a session of this own key.
    fn has_session(&mut self, generation: u32) {
        if let Some(retiring) = self.retiring.as_mut().filter(|_| generation == self.generation) {
            retiring.sends = false;
        }
    }

    /// The sessions that an index is one of.
    fn of_generation(&mut self, generation: u32) -> Option<&mut Tunn> {
        if generation == self.generation {
            return Some(&mut self.tunnel);
        }
        self.retiring.as_mut().filter(|retiring| retiring.generation == generation).map(|retiring| &mut retiring.tunnel)
    }
}

impl LivePeer {
    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The own key.
struct OwnKey {
    secret: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
    /// Counts the keys of this device.
    generation: u32,
}

impl OwnKey {
    fn new(private: [u8; 32], generation: u32) -> Self {
        let secret = StaticSecret::from(private);
        let public = PublicKey::from(&secret);
        Self { limiter: Arc::new(RateLimiter::new(&public, HANDSHAKE_RATE_LIMIT)), secret, public, generation }
    }

    /// Without sessions.
    fn tunnel(&self, peer: WgKey, keepalive: Option<u16>, indices: &IndexTable) -> Tunn {
        let limiter = Arc::clone(&self.limiter);
        Tunn::new(self.secret.clone(), PublicKey::from(peer.0), None, keepalive, indices.clone(), limiter)
    }
}

/// All peers of the device.
pub(super) struct Peers {
    own: RwLock<OwnKey>,
    indices: IndexTable,
    table: RwLock<PeerTable>,
    /// With the number of the own key that the session is of.
    by_index: RwLock<HashMap<u32, (Arc<LivePeer>, u32)>>,
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
        Self {
            own: RwLock::new(OwnKey::new(private, 0)),
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
        let own = self.own();
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let peer = Arc::clone(table.by_key.entry(key).or_insert_with(|| {
            let tunnel = own.tunnel(key, wanted.keepalive, &self.indices);
            let configured = TunnelPeer { endpoint: wanted.endpoint, ..wanted.clone() };
            let state = PeerState { tunnel, generation: own.generation, retiring: None, configured, asked: None };
            let (predecessor, is_to_succeed) = (OnceLock::new(), AtomicBool::new(false));
            Arc::new(LivePeer { key, state: Mutex::new(state), predecessor, is_to_succeed })
        }));
        drop(own);
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
        self.by_index.write().unwrap_or_else(PoisonError::into_inner).retain(|_, (owner, _)| !Arc::ptr_eq(owner, &peer));
    }

    fn own(&self) -> RwLockReadGuard<'_, OwnKey> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For `wg show`, as root.
    pub(super) fn private_key(&self) -> [u8; 32] {
        self.own().secret.to_bytes()
    }

    /// `new` gets the allowed-ips of `old` with the first packet that it authenticates.
    pub(super) fn succeed(&self, old: WgKey, new: WgKey) {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = table.by_key.get(&new)
            && peer.predecessor.set(old).is_ok()
        {
            peer.is_to_succeed.store(true, Ordering::Release);
        }
    }

    /// Moves the allowed-ips of the peer's predecessor to it, if that is still to be done.
    fn take_over(&self, peer: &Arc<LivePeer>) {
        if !peer.is_to_succeed.load(Ordering::Acquire) || !peer.is_to_succeed.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let old = peer.predecessor.get().and_then(|old| table.by_key.get(old).cloned());
        let is_listed = table.by_key.get(&peer.key).is_some_and(|listed| Arc::ptr_eq(listed, peer));
        let Some(old) = old.filter(|_| is_listed) else { return };
        let moved = std::mem::take(&mut old.lock().configured.allowed_ips);
        for net in &moved {
            if table.by_prefix.get(*net).is_some_and(|owner| Arc::ptr_eq(owner, &old)) {
                table.by_prefix.insert(net.trunc(), Arc::clone(peer));
            }
        }
        let allowed_ips = &mut peer.lock().configured.allowed_ips;
        allowed_ips.extend(moved);
        allowed_ips.sort();
        allowed_ips.dedup();
    }

    /// Uses another private key. Returns its public half, and initiations to all peers; until one of them has answered, the sessions of
    /// the key before send to it.
    pub(super) fn rekey(&self, private: [u8; 32]) -> (WgKey, Vec<Outgoing>) {
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        let next = OwnKey::new(private, own.generation.wrapping_add(1));
        let public = WgKey(next.public.to_bytes());
        if next.public == own.public {
            return (public, Vec::new());
        }
        *own = next;
        let table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let change = |peer: &Arc<LivePeer>| {
            let state = &mut *peer.lock();
            let tunnel = own.tunnel(peer.key, state.configured.keepalive, &self.indices);
            let (tunnel, generation) =
                (std::mem::replace(&mut state.tunnel, tunnel), std::mem::replace(&mut state.generation, own.generation));
            // Of two changes within the life of a session the first one's are lost.
            state.retiring = Some(RetiringTunnel { tunnel, generation, since: Instant::now(), sends: true });
            let endpoint = state.configured.endpoint?;
            let initiation = state.tunnel.format_handshake_initiation(false)?;
            Some((self.registered(peer, state.generation, initiation.into()), endpoint))
        };
        (public, table.by_key.values().filter_map(change).collect())
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
            match state.encapsulate(packet) {
                Ok(data) => sealed.push(data),
                Err(packet) => {
                    let datagram = state.tunnel.handle_outgoing_packet(packet, None);
                    sealed.extend(datagram.map(|datagram| self.registered(peer, state.generation, datagram)));
                }
            }
        }
        Some(endpoint)
    }

    /// Takes a datagram from `from`, whose outer header had the ECN bits `ecn`.
    pub(super) fn open(&self, datagram: Packet, from: SocketAddr, ecn: u8) -> Received {
        let own = self.own();
        let message = match own.limiter.verify_packet(from, datagram) {
            Ok(message) => message,
            Err(TunnResult::WriteToNetwork(cookie)) => return Received::Answers(vec![(cookie.into(), from)]),
            Err(_) => return Received::Nothing,
        };
        let by_index = |index: u32| self.by_index.read().unwrap_or_else(PoisonError::into_inner).get(&index).cloned();
        let is_initiation = matches!(message, WgKind::HandshakeInit(_));
        let peer = match &message {
            WgKind::Data(message) => by_index(message.header.receiver_idx.get()),
            WgKind::HandshakeInit(message) => {
                let key = parse_handshake_anon(&own.secret, &own.public, message).ok().map(|half| WgKey(half.peer_static_public));
                let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
                key.and_then(|key| table.by_key.get(&key).cloned()).map(|peer| (peer, own.generation))
            }
            WgKind::HandshakeResp(message) => by_index(message.receiver_idx.get()),
            WgKind::CookieReply(message) => by_index(message.receiver_idx.get()),
        };
        drop(own);
        let Some((peer, generation)) = peer else { return Received::Nothing };
        let mut state = peer.lock();
        let Some(tunnel) = state.of_generation(generation) else { return Received::Nothing };
        match tunnel.handle_incoming_packet(message) {
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => self.ask(&peer, &mut state),
            TunnResult::Done | TunnResult::Err(_) => Received::Nothing,
            TunnResult::WriteToNetwork(answer) => {
                state.configured.endpoint = Some(from);
                let mut mtu = MtuWatcher::new(self.mtu.load(Ordering::Relaxed));
                let queued =
                    state.of_generation(generation).map(|tunnel| tunnel.get_queued_packets(&mut mtu).collect::<Vec<_>>());
                let all: Vec<WgKind> = std::iter::once(answer).chain(queued.unwrap_or_default()).collect();
                if !is_initiation {
                    state.has_session(generation);
                }
                drop(state);
                if !is_initiation {
                    self.take_over(&peer);
                }
                Received::Answers(all.into_iter().map(|answer| (self.registered(&peer, generation, answer), from)).collect())
            }
            TunnResult::WriteToTunnel(packet) => {
                state.configured.endpoint = Some(from);
                state.has_session(generation);
                drop(state);
                self.take_over(&peer);
                self.admit(&peer, packet, ecn)
            }
        }
    }

    /// The packet, if the peer may send it.
    fn admit(&self, peer: &Arc<LivePeer>, mut packet: Packet, ecn: u8) -> Received {
        // An empty one is a keepalive.
        let Some(inner) = Inner::read(&packet) else { return Received::Nothing };
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let owner = table.by_prefix.find(inner.source);
        // What was sent with the other key of the same node may arrive after it.
        let is_own = |owner: &Arc<LivePeer>| Arc::ptr_eq(owner, peer) || owner.predecessor.get() == Some(&peer.key);
        if !owner.is_some_and(is_own) {
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
        let initiation = initiation.map(|initiation| (self.registered(peer, state.generation, initiation.into()), endpoint));
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
            Some((self.registered(peer, state.generation, initiation?.into()), endpoint))
        };
        keys.iter().filter_map(|key| table.by_key.get(key)).filter_map(initiation).collect()
    }

    /// What is due: handshakes, keepalives. To be called some times per second.
    pub(super) fn tick(&self) -> Vec<Outgoing> {
        self.own().limiter.try_reset_count();
        self.by_index.write().unwrap_or_else(PoisonError::into_inner).retain(|index, _| self.indices.in_use(*index));
        let peers: Vec<Arc<LivePeer>> =
            self.table.read().unwrap_or_else(PoisonError::into_inner).by_key.values().cloned().collect();
        let due = |peer: Arc<LivePeer>| {
            let mut state = peer.lock();
            state.retiring.take_if(|retiring| retiring.since.elapsed() >= RETIRE_AFTER);
            let endpoint = state.configured.endpoint?;
            let message = state.tunnel.update_timers().ok()??;
            Some((self.registered(&peer, state.generation, message), endpoint))
        };
        peers.into_iter().filter_map(due).collect()
    }

    /// The bytes of a message. The index in a handshake will lead to its peer.
    fn registered(&self, peer: &Arc<LivePeer>, generation: u32, message: WgKind) -> Packet {
        let index = match &message {
            WgKind::HandshakeInit(message) => Some(message.sender_idx.get()),
            WgKind::HandshakeResp(message) => Some(message.sender_idx.get()),
            WgKind::Data(_) | WgKind::CookieReply(_) => None,
        };
        if let Some(index) = index {
            self.by_index.write().unwrap_or_else(PoisonError::into_inner).insert(index, (Arc::clone(peer), generation));
        }
        message.into()
    }
}

#[cfg(test)]
mod tests;
