use super::*;
use std::net::Ipv4Addr;

const A: [u8; 4] = [10, 9, 0, 1];
const B: [u8; 4] = [172, 16, 0, 2];

/// Two devices that have each other as peers, and where each one's datagrams come from.
struct Pair {
    a: Peers,
    b: Peers,
}

fn public(secret: [u8; 32]) -> WgKey {
    WgKey(PublicKey::from(&StaticSecret::from(secret)).to_bytes())
}

fn at_a() -> SocketAddr {
    "192.0.2.1:2377".parse().unwrap()
}

fn at_b() -> SocketAddr {
    "[2001:db8::2]:2377".parse().unwrap()
}

fn peer(endpoint: Option<SocketAddr>, nets: &[&str]) -> TunnelPeer {
    TunnelPeer { endpoint, allowed_ips: nets.iter().map(|net| net.parse().unwrap()).collect(), keepalive: None }
}

impl Pair {
    fn new() -> Self {
        let (a, b) = (Peers::new([1; 32]), Peers::new([2; 32]));
        a.set(public([2; 32]), &peer(Some(at_b()), &["172.16.0.2/32"]), None);
        b.set(public([1; 32]), &peer(None, &["10.9.0.1/32"]), None);
        Self { a, b }
    }

    /// Carries datagrams from A to B and the answers back and forth; the result is what arrived inside B.
    fn carry(&self, from_a: Vec<Packet>) -> Vec<Packet> {
        let mut to_b = from_a;
        let mut arrived = Vec::new();
        while !to_b.is_empty() {
            let mut to_a = Vec::new();
            for datagram in to_b.drain(..) {
                match self.b.open(datagram, at_a(), 0) {
                    Received::Nothing => {}
                    Received::Packet(packet) => arrived.push(packet),
                    Received::Answers(answers) => to_a.extend(answers.into_iter().map(|(answer, _)| answer)),
                }
            }
            for datagram in to_a {
                if let Received::Answers(answers) = self.a.open(datagram, at_b(), 0) {
                    to_b.extend(answers.into_iter().map(|(answer, _)| answer));
                }
            }
        }
        arrived
    }

    /// Sends packets from A.
    fn send(&self, packets: Vec<Packet>) -> Vec<Packet> {
        let mut packets = packets;
        let mut sealed = Vec::new();
        let towards = self.a.towards(B.into()).expect("a peer");
        assert_eq!(self.a.seal(&towards, &mut packets, &mut sealed), Some(at_b()));
        self.carry(sealed)
    }
}

fn packet(source: [u8; 4], options: usize, payload: usize) -> Packet {
    let length = u16::try_from(20 + options + payload).unwrap().to_be_bytes();
    let first = 0x45 + u8::try_from(options / 4).unwrap();
    let mut bytes = vec![first, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0];
    bytes.extend(source);
    bytes.extend(B);
    bytes.extend(vec![1; options]);
    bytes.extend(vec![7; payload]);
    Packet::copy_from(bytes.as_slice())
}

#[test]
fn packets_wait_for_the_handshake_and_arrive_without_padding_with_options_and_of_any_size() {
    let pair = Pair::new();
    let sizes = [(0, 8), (4, 100), (40, 1300), (0, 8000), (0, 60_000)];
    let first = pair.send(sizes.iter().map(|(options, payload)| packet(A, *options, *payload)).collect());
    let again = pair.send(sizes.iter().map(|(options, payload)| packet(A, *options, *payload)).collect());
    for arrived in [first, again] {
        let seen: Vec<Vec<u8>> = arrived.iter().map(|packet| packet.to_vec()).collect();
        let wanted: Vec<Vec<u8>> = sizes.iter().map(|(options, payload)| packet(A, *options, *payload).to_vec()).collect();
        assert_eq!(seen, wanted);
    }
    let at_b = pair.b.observe();
    assert_eq!(at_b[&public([1; 32])].peer.endpoint, Some(at_a()), "learned");
    assert!(at_b[&public([1; 32])].handshake_age.is_some());
}

#[test]
fn a_source_that_is_not_the_peers_is_dropped() {
    let pair = Pair::new();
    pair.send(vec![packet(A, 0, 8)]);
    assert_eq!(pair.send(vec![packet([10, 9, 0, 2], 0, 8), packet(A, 0, 9)]).len(), 1);
    // The address moves to another peer of B: no packet may carry it under A's key any more.
    pair.b.set(public([3; 32]), &peer(None, &["10.9.0.1/32"]), None);
    assert_eq!(pair.send(vec![packet(A, 0, 8)]).len(), 0);
    assert_eq!(pair.b.observe()[&public([1; 32])].peer.allowed_ips, []);
    pair.b.set(public([1; 32]), &peer(None, &["10.9.0.1/32"]), None);
    assert_eq!(pair.send(vec![packet(A, 0, 8)]).len(), 1, "the session has stayed");
    pair.b.remove(public([1; 32]));
    assert_eq!(pair.send(vec![packet(A, 0, 8)]).len(), 0);
}

/// A restarted peer whose clock was set back initiates with an older timestamp than before, and would be ignored until its clock has
/// caught up or this side has something to send. Anyone may have recorded that initiation: it moves no endpoint, and is answered once.
#[test]
fn an_initiation_with_an_old_timestamp_is_answered_by_an_own_one() {
    let pair = Pair::new();
    let towards = pair.a.towards(B.into()).expect("a peer");
    let old = LivePeer::lock(&towards).tunnel.format_handshake_initiation(true).expect("an initiation");
    std::thread::sleep(Duration::from_millis(1));
    let new = LivePeer::lock(&towards).tunnel.format_handshake_initiation(true).expect("an initiation");
    let new = pair.a.registered(&towards, 0, new.into());
    pair.carry(vec![new]);
    assert_eq!(pair.b.observe()[&public([1; 32])].peer.endpoint, Some(at_a()));

    let old: Packet = old.into();
    let repeated = Packet::copy_from(&old[..]);
    let elsewhere = "203.0.113.9:9".parse().unwrap();
    let Received::Answers(answers) = pair.b.open(old, elsewhere, 0) else { panic!("no answer") };
    let [(initiation, to)] = &answers[..] else { panic!("{} answers", answers.len()) };
    assert_eq!((initiation.len(), initiation[0], *to), (148, 1, at_a()), "an initiation, to the known endpoint");
    assert!(matches!(pair.b.open(repeated, elsewhere, 0), Received::Nothing), "not again at once");

    // The peer, which knows nothing of the sessions before, answers it.
    let restarted = Pair { a: Peers::new([1; 32]), b: pair.b };
    restarted.a.set(public([2; 32]), &peer(Some(at_b()), &["172.16.0.2/32"]), None);
    let Received::Answers(response) = restarted.a.open(Packet::copy_from(&initiation[..]), at_b(), 0) else {
        panic!("no response")
    };
    assert_eq!(response[0].0[0], 2, "a response");
    assert!(matches!(restarted.b.open(Packet::copy_from(&response[0].0[..]), at_a(), 0), Received::Answers(_)));
}

/// Nodes behind one address come back together: so many initiations in a second need no further round trip, the others a cookie.
#[test]
fn above_the_limit_of_an_address_an_initiation_needs_a_cookie_and_passes_with_it() {
    const COOKIE: u8 = 3;
    let pair = Pair::new();
    let towards = pair.a.towards(B.into()).expect("a peer");
    let initiation = || {
        let initiation = LivePeer::lock(&towards).tunnel.format_handshake_initiation(true).expect("an initiation");
        pair.a.registered(&towards, 0, initiation.into())
    };
    let answer = |datagram: Packet, from: SocketAddr| match pair.b.open(datagram, from, 0) {
        Received::Answers(mut answers) => answers.pop().map(|(answer, _)| answer),
        Received::Nothing | Received::Packet(_) => None,
    };
    let first = initiation().to_vec();
    // One that is repeated counts as any other one; whatever the port.
    for number in 0..HANDSHAKE_RATE_LIMIT {
        let from = SocketAddr::new(at_a().ip(), 1024 + u16::try_from(number).unwrap());
        let kind = answer(Packet::copy_from(&first[..]), from).map(|answer| answer[0]);
        assert_ne!(kind, Some(COOKIE), "{number}");
    }
    let other: SocketAddr = "198.51.100.1:2377".parse().unwrap();
    assert_ne!(answer(initiation(), other).expect("an answer")[0], COOKIE, "another address has a limit of its own");
    let cookie = answer(initiation(), at_a()).expect("an answer");
    assert_eq!(cookie[0], COOKIE);
    // With the cookie the initiation is answered.
    assert!(matches!(pair.a.open(cookie, at_b(), 0), Received::Nothing));
    let response = answer(initiation(), at_a()).expect("an answer");
    assert_eq!(response[0], 2, "a handshake response");
}

#[test]
fn padding_stays_below_the_mtu() {
    let peers = Peers::new([1; 32]);
    peers.set_mtu(1400);
    for (length, padded) in [(0, 0), (1, 16), (1392, 1392), (1393, 1400), (1400, 1400), (1401, 1401)] {
        assert_eq!(peers.padded(length), padded);
    }
}

/// B knows A's next key before A uses it, as a peer without addresses; A's packets arrive in order and all of them, whichever key they were
/// sealed with, and B's find the way back.
#[test]
fn a_change_of_the_key_loses_no_packet() {
    let pair = Pair::new();
    assert_eq!(pair.send(vec![packet(A, 0, 1)]).len(), 1);
    let (old, new) = (public([1; 32]), public([9; 32]));
    pair.b.set(new, &peer(Some(at_a()), &[]), None);
    pair.b.succeed(old, new);
    let towards = pair.a.towards(B.into()).expect("a peer");
    // Sealed with the old key: on its way when the new one is used, and after it.
    let seal = || {
        let mut sealed = Vec::new();
        pair.a.seal(&towards, &mut vec![packet(A, 0, 2)], &mut sealed);
        sealed
    };
    let late = seal();
    let (key, initiations) = pair.a.rekey([9; 32]);
    assert_eq!((key, initiations.len(), pair.a.private_key()), (new, 1, [9; 32]));
    assert_eq!(pair.carry(seal()).len(), 1, "there is no session of the new key yet");
    assert_eq!(pair.b.observe()[&old].peer.allowed_ips.len(), 1, "nor has B seen one");
    assert!(pair.carry(initiations.into_iter().map(|(packet, _)| packet).collect()).is_empty());
    let seen = pair.b.observe();
    assert_eq!((seen[&old].peer.allowed_ips.len(), seen[&new].peer.allowed_ips.len()), (0, 1), "with the first packet");
    assert!(seen[&new].handshake_age.is_some());
    assert_eq!(pair.carry(late).len(), 1, "an overtaken one");
    assert_eq!(pair.carry(seal()).len(), 1);
    let back = pair.b.towards(Ipv4Addr::from(A).into()).expect("a peer");
    assert_eq!(back.key, new);
    // The old key is forgotten, and opens nothing any more.
    pair.b.remove(old);
    pair.a.rekey([1; 32]);
    let again = LivePeer::lock(&towards).tunnel.format_handshake_initiation(true).expect("an initiation");
    let again = pair.a.registered(&towards, 2, again.into());
    assert!(matches!(pair.b.open(again, at_a(), 0), Received::Nothing));
    // The same key is no change.
    assert!(pair.a.rekey([1; 32]).1.is_empty());
}

/// A successor without a right to more gets no more.
#[test]
fn a_successor_gets_addresses_of_its_predecessor_alone() {
    let pair = Pair::new();
    let (old, new, other) = (public([1; 32]), public([9; 32]), public([5; 32]));
    pair.b.set(other, &peer(None, &["10.9.0.5/32"]), None);
    pair.b.set(new, &peer(Some(at_a()), &[]), None);
    pair.b.succeed(old, new);
    let (_, initiations) = pair.a.rekey([9; 32]);
    pair.carry(initiations.into_iter().map(|(packet, _)| packet).collect());
    assert_eq!(pair.send(vec![packet(A, 0, 8), packet([10, 9, 0, 5], 0, 8)]).len(), 1);
    assert_eq!(pair.b.observe()[&other].peer.allowed_ips.len(), 1);
}
