//! Published ports on the host's side: clients' packets come in from uplinks, answers go out. What is not a client's is
//! left alone.

use crate::change::{End, ifindex, raw, turn};
use crate::maps::{
    BACKENDS, FLOWS, FRAGMENTS, LOCALS, PORT_COUNTS, PORTS, REPLIES, SLOTS, add, config, count, is_source, look, recall,
};
use crate::parse::{ETH_V4, ETH_V6, Kind, Packet, parse};
use crate::way::Way;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, ETHERNET, RST, SYN, TCP, UDP, V4, V6, byte, container6, is_plain, mapped};
use skep_ebpf::{
    AFFINITY, Address, Config, Counter, Flow, GUARDED, NO_CLIENT, Piece, Port, PortNumber, Reply, Tuple, V4 as Ipv4, client_hash,
    none, same, slot,
};

/// What our answers carry between the two host hooks.
const OURS: u16 = 0x5e7e;
/// A socket that waits for connections.
const LISTENS: u32 = 10;

/// A container's address for clients of a family.
#[inline(always)]
pub fn container(config: &Config, family: u8, v4: Ipv4) -> Address {
    if family == 4 { mapped(v4) } else { container6(config.containers, v4) }
}

/// From the world.
#[inline(always)]
pub fn from_uplink(ctx: &TcContext) -> Result<Way, Way> {
    let Some(packet) = parse(ctx, ETHERNET) else { return Ok(Way::Next) };
    let Some(config) = config() else { return Ok(Way::Next) };
    if packet.is(Kind::Later) {
        let Some(piece) = recall(&FRAGMENTS, &packet.fragment()) else { return Ok(Way::Next) };
        turn(ctx, packet, End::Destination, &piece.address, 0, 0)?;
        count(Counter::PortIn);
        return Ok(Way::Peer(config.host_end));
    }
    let flow = match recall(&FLOWS, &packet.tuple) {
        Some(flow) if keeps(packet, flow) => *flow,
        Some(flow) if flow.backend == 0 && !packet.is_syn() => return Ok(Way::Next),
        known => match anew(ctx, packet, config, known.is_some()) {
            Some(flow) => flow,
            None => return Ok(Way::Next),
        },
    };
    let to = container(config, packet.family, flow.backend);
    if packet.is(Kind::First) {
        let piece = Piece { address: to, entry: [0; 2], device: 0, zero: 0 };
        let _ = FRAGMENTS.insert(packet.fragment(), piece, 0);
    }
    turn(ctx, packet, End::Destination, &to, flow.target, flow.client_port)?;
    count(if packet.is(Kind::Error) { Counter::Errors } else { Counter::PortIn });
    Ok(Way::Peer(config.host_end))
}

/// Whether a packet stays with what its connection was given.
#[inline(always)]
fn keeps(packet: &Packet, flow: &Flow) -> bool {
    if flow.backend == 0 {
        return false;
    }
    let Some(backend) = look(&BACKENDS, &flow.backend) else { return false };
    // What begins, and datagrams at any time, move on from a backend that takes no new clients.
    backend.serving != 0 || packet.is(Kind::Error) || (packet.tuple.protocol == TCP && !packet.is_syn())
}

/// Gives a client's connection its backend: a new one, or one that goes on and that this node does not know (any more).
/// Every node chooses the same for the latter; who does not know it either answers with RST.
#[inline(always)]
fn anew(ctx: &TcContext, packet: &mut Packet, config: &Config, known: bool) -> Option<Flow> {
    if packet.is(Kind::Error) {
        return None;
    }
    let key = Port { protocol: packet.tuple.protocol, family: packet.family, port: packet.tuple.destination_port };
    let frontend = look(&PORTS, &key)?;
    if frontend.size == 0 {
        return None;
    }
    is_local(ctx, packet)?;
    let goes_on = packet.tuple.protocol == TCP && !packet.is_syn();
    // Answers to connections of the host, and whatever a socket of the host is for.
    if goes_on && !known && (packet.flags & (SYN | RST) != 0 || packet.flags & ACK == 0 || is_hosts(ctx, packet)) {
        return None;
    }
    if is_source(NO_CLIENT, &packet.tuple.source) {
        return None;
    }
    if frontend.flags & GUARDED != 0 && !is_source(key.scope(), &packet.tuple.source) {
        return None;
    }
    let hash = client_hash(&packet.tuple, frontend.flags & AFFINITY != 0);
    let backend = *SLOTS.get(slot(frontend.base, frontend.size, hash))?;
    look(&BACKENDS, &backend)?;
    packet.turn_round();
    packet.back.source = container(config, packet.family, backend);
    packet.back.source_port = frontend.target;
    if let Some(other) = recall(&REPLIES, &packet.back) {
        let same = none(&other.entry)
            && same(&other.address, &packet.tuple.destination)
            && other.port == packet.tuple.destination_port
            && other.client_port == packet.tuple.source_port;
        // One that goes on and came by another node until now is the same connection to the container. One that begins is not.
        if !same && (!goes_on || none(&other.entry)) {
            free_port(&mut packet.back);
        }
    }
    let reply = Reply {
        address: packet.tuple.destination,
        entry: [0; 2],
        port: packet.tuple.destination_port,
        client_port: packet.tuple.source_port,
        device: 0,
    };
    REPLIES.insert(&packet.back, reply, 0).ok()?;
    let flow = Flow { backend, target: frontend.target, client_port: packet.back.destination_port, ifindex: packet.device };
    FLOWS.insert(&packet.tuple, flow, 0).ok()?;
    count(if goes_on { Counter::PortTaken } else { Counter::PortNew });
    add(PORT_COUNTS.get_ptr_mut(key));
    Some(flow)
}

/// Whether the host itself is asked. The loader's list may be late: an address may have come this moment, with its
/// connections.
#[inline(always)]
fn is_local(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let asked = &packet.tuple.destination;
    if look(&LOCALS, asked).is_some() {
        return Some(());
    }
    // `struct bpf_fib_lookup`: family, ports and length, device, …, source, destination, card addresses.
    let mut route = [0_u32; 16];
    route[2] = packet.device;
    if packet.family == 4 {
        if byte(asked[3], 0) == 127 {
            return None;
        }
        route[0] = u32::from_ne_bytes([2, 0, 0, 0]);
        (route[4], route[8]) = (packet.tuple.source[3], asked[3]);
    } else {
        route[0] = u32::from_ne_bytes([10, 0, 0, 0]);
        (route[4], route[5], route[6], route[7]) =
            (packet.tuple.source[0], packet.tuple.source[1], packet.tuple.source[2], packet.tuple.source[3]);
        (route[8], route[9], route[10], route[11]) = (asked[0], asked[1], asked[2], asked[3]);
    }
    // SAFETY: the context is a valid one; the helper reads and writes the 64 bytes.
    let told = unsafe { bpf_fib_lookup(raw(ctx).cast(), route.as_mut_ptr().cast(), 64, 0) };
    // Not to be forwarded, or this host forwards nothing.
    (told == 4 || told == 5).then_some(())
}

/// Gives the tuple of a container's answers another client port, one that nobody there uses.
#[inline(always)]
pub fn free_port(answers: &mut Tuple) {
    count(Counter::PortChanged);
    let mut tries = 0;
    while tries < 8 {
        // SAFETY: takes nothing.
        let random = unsafe { bpf_get_prandom_u32() };
        answers.destination_port = (1024 + (random >> 8) as u16 % 64_000).to_be();
        if recall(&REPLIES, answers).is_none() {
            return;
        }
        tries += 1;
    }
}

/// Whether a socket of the host has this connection.
#[inline(always)]
fn is_hosts(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: a union of plain numbers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (from, to) = (packet.tuple.source_port, packet.tuple.destination_port);
    // SAFETY: plain numbers; the socket is given back on every way.
    unsafe {
        let size = if packet.family == 4 {
            let v4 = &mut tuple.__bindgen_anon_1.ipv4;
            v4.saddr = packet.tuple.source[3];
            v4.daddr = packet.tuple.destination[3];
            (v4.sport, v4.dport) = (from, to);
            12
        } else {
            let v6 = &mut tuple.__bindgen_anon_1.ipv6;
            v6.saddr = packet.tuple.source;
            v6.daddr = packet.tuple.destination;
            (v6.sport, v6.dport) = (from, to);
            36
        };
        // u64::MAX: the namespace that the packet is in.
        let socket: *mut bpf_sock = bpf_skc_lookup_tcp(raw(ctx).cast(), &mut tuple, size, u64::MAX, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != LISTENS
    }
}

/// Answers to clients, from the mesh.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext) -> Result<Way, Way> {
    let Some(config) = config() else { return Err(Way::Drop(Counter::DropForeign)) };
    let device = if config.uplink != 0 { config.uplink } else { device_of(ctx).ok_or(Way::Drop(Counter::DropFlow))? };
    // SAFETY: the context is a valid one, and the field may be written.
    unsafe { (*raw(ctx)).tc_index = u32::from(OURS) };
    count(Counter::PortOut);
    Ok(Way::Neighbour(device))
}

/// The uplink that the client came in by.
#[inline(always)]
fn device_of(ctx: &TcContext) -> Option<u32> {
    let packet = parse(ctx, ETHERNET)?;
    if packet.is(Kind::Later) {
        return Some(recall(&FRAGMENTS, &packet.fragment())?.device);
    }
    packet.turn_round();
    let device = recall(&FLOWS, &packet.back)?.ifindex;
    if packet.is(Kind::First) {
        let piece = Piece { address: packet.source, entry: [0; 2], device, zero: 0 };
        let _ = FRAGMENTS.insert(packet.fragment(), piece, 0);
    }
    Some(device)
}

/// Whatever leaves by an uplink. Connections of the host and of masqueraded containers may have a published port's number
/// at their own end: their answers are not clients' packets.
#[inline(always)]
pub fn out_uplink(ctx: &TcContext) -> Result<Way, Way> {
    // SAFETY: the context is a valid one, and the field may be written.
    unsafe {
        if (*raw(ctx)).tc_index == u32::from(OURS) {
            (*raw(ctx)).tc_index = 0;
            return Ok(Way::Next);
        }
    }
    forged(ctx)?;
    // A glance, for every packet of the machine: is it from the number of a published port?
    let (protocol, family, l4) = match crate::change::protocol(ctx) {
        ETH_V4 => {
            let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Way::Next)?;
            if !is_plain(&v4) {
                return Ok(Way::Next);
            }
            (byte(v4[2], 1), 4, ETHERNET + V4)
        }
        ETH_V6 => (ctx.load(ETHERNET + 6).map_err(|_| Way::Next)?, 6, ETHERNET + V6),
        _ => return Ok(Way::Next),
    };
    if protocol != TCP && protocol != UDP {
        return Ok(Way::Next);
    }
    let port: PortNumber = ctx.load(l4).map_err(|_| Way::Next)?;
    if look(&PORTS, &Port { protocol, family, port }).is_none() {
        return Ok(Way::Next);
    }
    let Some(packet) = parse(ctx, ETHERNET) else { return Ok(Way::Next) };
    packet.turn_round();
    if packet.is(Kind::Error) || recall(&FLOWS, &packet.back).is_some() || look(&LOCALS, &packet.tuple.source).is_none() {
        return Ok(Way::Next);
    }
    let flow = Flow { backend: 0, target: 0, client_port: 0, ifindex: ifindex(ctx) };
    let _ = FLOWS.insert(&packet.back, flow, 0);
    count(Counter::Foreign);
    Ok(Way::Next)
}

/// A container may send whatever it likes by the engine's bridge, but no other container's address leaves this host so.
#[inline(always)]
fn forged(ctx: &TcContext) -> Result<(), Way> {
    // SAFETY: the context is a valid one.
    let forwarded = unsafe { (*raw(ctx)).ingress_ifindex } != 0;
    if !forwarded || crate::change::protocol(ctx) != ETH_V4 {
        return Ok(());
    }
    let source: Ipv4 = ctx.load(ETHERNET + 12).map_err(|_| Way::Next)?;
    if look(&BACKENDS, &source).is_some() && look(&LOCALS, &mapped(source)).is_none() {
        return Err(Way::Drop(Counter::DropForged));
    }
    Ok(())
}
