//! Published ports between the nodes, in the mesh namespace. TCP over IPv4 is translated, everything else travels
//! unchanged inside IPv6; addresses of both kinds are in the /64s of the two nodes, so the tunnel vouches for the sender.

use crate::change::{End, decapsulate, encapsulate, link, protocol, set_port, to_v4, to_v6, turn};
use crate::clients::free_port;
use crate::maps::{BACKENDS, FLOWS, FRAGMENTS, GATE, REPLIES, config, count, look, recall};
use crate::parse::{ETH_V4, ETH_V6, Kind, Packet, parse};
use crate::way::Way;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, IN_V4, IN_V6, REPLY, REQUEST, TCP, byte, has_more, is_plain, translated};
use skep_ebpf::{Address, Backend, Config, Counter, Flow, Piece, Prefix, Reply, none, same_node};

/// Sends a packet behind an Ethernet header to another node.
#[inline(always)]
pub fn send(ctx: &TcContext, config: &Config, kind: u32, to: Prefix) -> Result<Way, Way> {
    count(Counter::MeshOut);
    if protocol(ctx) == ETH_V4 {
        let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Way::Drop(Counter::DropForeign))?;
        if is_plain(&v4) && !has_more(&v4) && byte(v4[2], 1) == TCP {
            to_v6(ctx, &v4, &translated(config.prefix, kind, v4[3]), &translated(to, kind, v4[4]))?;
            return Ok(Way::Out(config.tunnel));
        }
    }
    encapsulate(ctx, &translated(config.prefix, kind, 0), &translated(to, kind, 0))?;
    Ok(Way::Out(config.tunnel))
}

/// Clients' packets from the host: to the container here, or to its node.
#[inline(always)]
pub fn from_host(ctx: &TcContext) -> Result<Way, Way> {
    let container = match protocol(ctx) {
        ETH_V4 => ctx.load(ETHERNET + 16).ok(),
        ETH_V6 => ctx.load(ETHERNET + 24 + 12).ok(),
        _ => None,
    };
    let (Some(config), Some(container)) = (config(), container) else { return Err(Way::Drop(Counter::DropForeign)) };
    let backend = look(&BACKENDS, &container).ok_or(Way::Drop(Counter::DropBackend))?;
    if backend.ifindex != 0 {
        count(Counter::Delivered);
        return Ok(Way::Peer(backend.ifindex));
    }
    send(ctx, config, REQUEST, backend.prefix)
}

/// From another node.
#[inline(always)]
pub fn from_mesh(ctx: &TcContext) -> Result<Way, Way> {
    match protocol(ctx) {
        ETH_V6 => {}
        ETH_V4 => return answer_of_virtual(ctx),
        _ => return Ok(Way::Next),
    }
    let v6: [u32; 10] = ctx.load(0).map_err(|_| Way::Next)?;
    let Some(config) = config() else { return Ok(Way::Next) };
    let (entry, kind) = ([v6[2], v6[3]], v6[8]);
    if !same_node(&[v6[6], v6[7]], &config.prefix) || (kind != REQUEST && kind != REPLY) {
        return Ok(Way::Next);
    }
    if v6[4] != kind {
        return Err(Way::Drop(Counter::DropForeign));
    }
    count(Counter::MeshIn);
    match byte(v6[1], 2) {
        TCP => to_v4(ctx, &v6, v6[5], v6[9])?,
        next @ (IN_V4 | IN_V6) => decapsulate(ctx, next)?,
        _ => return Err(Way::Drop(Counter::DropForeign)),
    }
    let Some(packet) = parse(ctx, ETHERNET) else { return Err(Way::Drop(Counter::DropForeign)) };
    if kind == REQUEST { request(ctx, packet, entry) } else { reply(ctx, packet, config, entry) }
}

/// A client's packet that came in by the node `entry`, for a container here.
#[inline(always)]
fn request(ctx: &TcContext, packet: &mut Packet, entry: Prefix) -> Result<Way, Way> {
    let Some(Backend { ifindex, .. }) = look(&BACKENDS, &packet.destination[3]).filter(|b| b.ifindex != 0) else {
        return Err(Way::Drop(Counter::DropBackend));
    };
    count(Counter::Delivered);
    if packet.is(Kind::Later) {
        return Ok(Way::Peer(ifindex));
    }
    packet.turn_round();
    let known = recall(&REPLIES, &packet.back);
    if known.is_some_and(|known| same_node(&known.entry, &entry) && known.client_port == packet.tuple.source_port) {
        return Ok(Way::Peer(ifindex));
    }
    packet.tuple.via = entry;
    if let Some(flow) = recall(&FLOWS, &packet.tuple) {
        let port = flow.client_port;
        set_port(ctx, packet, End::Source, port)?;
        return Ok(Way::Peer(ifindex));
    }
    if packet.is(Kind::Error) {
        return Ok(Way::Peer(ifindex));
    }
    let client_port = packet.tuple.source_port;
    // A connection in its course that comes by another node now is the same connection. One that begins is not.
    let goes_on = packet.tuple.protocol == TCP && !packet.is_syn();
    if known.is_some() && !goes_on {
        free_port(&mut packet.back);
        let port = packet.back.destination_port;
        let flow = Flow { backend: packet.destination[3], target: packet.tuple.destination_port, client_port: port, ifindex };
        FLOWS.insert(&packet.tuple, flow, 0).map_err(|_| Way::Drop(Counter::DropChange))?;
        set_port(ctx, packet, End::Source, port)?;
    }
    let reply = Reply { address: [0; 4], entry, port: 0, client_port, device: 0 };
    REPLIES.insert(&packet.back, reply, 0).map_err(|_| Way::Drop(Counter::DropChange))?;
    Ok(Way::Peer(ifindex))
}

/// A container's answer from another node, for a client that came in here.
#[inline(always)]
fn reply(ctx: &TcContext, packet: &mut Packet, config: &Config, from: Prefix) -> Result<Way, Way> {
    // In the name of a container speaks its own node only. (An error may come from a router behind it.)
    let speaker: &Address = if packet.is(Kind::Error) { &packet.tuple.source } else { &packet.source };
    if look(&BACKENDS, &speaker[3]).is_none_or(|backend| !same_node(&backend.prefix, &from)) {
        return Err(Way::Drop(Counter::DropForged));
    }
    answer(ctx, packet)?;
    Ok(Way::Peer(config.mesh_end))
}

/// Gives an answer the address that its client asked.
#[inline(always)]
pub fn answer(ctx: &TcContext, packet: &mut Packet) -> Result<(), Way> {
    if packet.is(Kind::Later) {
        let piece = recall(&FRAGMENTS, &packet.fragment()).ok_or(Way::Drop(Counter::DropFlow))?;
        return Ok(turn(ctx, packet, End::Source, &piece.address, 0, 0)?);
    }
    let known = recall(&REPLIES, &packet.tuple).ok_or(Way::Drop(Counter::DropFlow))?;
    if !none(&known.entry) {
        return Err(Way::Drop(Counter::DropFlow));
    }
    let reply = *known;
    if packet.is(Kind::First) {
        let piece = Piece { address: reply.address, entry: [0; 2], device: reply.device, zero: 0 };
        let _ = FRAGMENTS.insert(packet.fragment(), piece, 0);
    }
    if packet.is(Kind::Error) {
        count(Counter::Errors);
    }
    Ok(turn(ctx, packet, End::Source, &reply.address, reply.port, reply.client_port)?)
}

/// Traffic between containers: answers of those that were asked at a virtual address without a socket call.
#[inline(always)]
fn answer_of_virtual(ctx: &TcContext) -> Result<Way, Way> {
    if GATE.get(0).is_none_or(|open| *open == 0) {
        return Ok(Way::Next);
    }
    let Some(packet) = parse(ctx, 0) else { return Ok(Way::Next) };
    let Some(reply) = recall(&REPLIES, &packet.tuple).filter(|reply| reply.device != 0) else { return Ok(Way::Next) };
    let reply = *reply;
    link(ctx)?;
    packet.moved();
    turn(ctx, packet, End::Source, &reply.address, reply.port, reply.client_port)?;
    Ok(Way::Peer(reply.device))
}
