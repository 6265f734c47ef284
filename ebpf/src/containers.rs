//! What containers send, in the mesh namespace: answers of published ports, and what goes to virtual addresses without a
//! socket call. Everything else goes on to the userspace datapath.

use crate::change::{End, Refused, ifindex, protocol, raw, set_port, turn};
use crate::maps::{BACKENDS, FLOWS, FRAGMENTS, GATE, REPLIES, SLOTS, VIP_COUNTS, VIPS, add, config, count, look, recall};
use crate::mesh::{answer, send};
use crate::parse::{ETH_V4, Kind, Packet, parse};
use crate::way::Way;
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, ICMP, REPLY, TCP, V4, byte, has_more, is_plain, mapped};
use skep_ebpf::{Counter, Flow, Piece, Reply, V4 as Ipv4, Vip, client_hash, none, slot};

/// From a container.
#[inline(always)]
pub fn from_container(ctx: &TcContext) -> Result<Way, Way> {
    let Some(packet) = parse(ctx, ETHERNET) else { return echo(ctx) };
    let Some(config) = config() else { return Ok(Way::Next) };
    if packet.is(Kind::Later) {
        let Some(piece) = recall(&FRAGMENTS, &packet.fragment()) else { return Ok(Way::Next) };
        let piece = *piece;
        own(packet)?;
        if !none(&piece.entry) {
            return send(ctx, config, REPLY, piece.entry);
        }
        turn(ctx, packet, End::Source, &piece.address, 0, 0)?;
        return Ok(Way::Peer(if piece.device != 0 { piece.device } else { config.mesh_end }));
    }
    let Some(reply) = recall(&REPLIES, &packet.tuple) else { return to_virtual(ctx, packet) };
    let reply = *reply;
    own(packet)?;
    if none(&reply.entry) {
        answer(ctx, packet)?;
        return Ok(Way::Peer(if reply.device != 0 { reply.device } else { config.mesh_end }));
    }
    if packet.is(Kind::First) {
        let piece = Piece { address: [0; 4], entry: reply.entry, device: 0, zero: 0 };
        let _ = FRAGMENTS.insert(packet.fragment(), piece, 0);
    }
    set_port(ctx, packet, End::Destination, reply.client_port)?;
    send(ctx, config, REPLY, reply.entry)
}

/// Nobody answers in another container's name.
#[inline(always)]
fn own(packet: &Packet) -> Result<(), Way> {
    if look(&BACKENDS, &packet.source[3]).is_some_and(|own| own.ifindex == packet.device) {
        return Ok(());
    }
    Err(Way::Drop(Counter::DropForged))
}

/// The virtual address, if the asking address is on its network.
#[inline(always)]
fn asked(source: Ipv4, target: &Ipv4) -> Option<Vip> {
    let vip = look(&VIPS, target)?;
    (source & vip.mask == vip.network).then_some(vip)
}

/// A packet to a virtual address: no socket call turned it to a backend (a namespace inside a container's, a raw socket).
#[inline(always)]
fn to_virtual(ctx: &TcContext, packet: &mut Packet) -> Result<Way, Way> {
    if packet.family != 4 || !packet.is(Kind::Whole) {
        return Ok(Way::Next);
    }
    let target = packet.tuple.destination[3];
    let Some(vip) = asked(packet.tuple.source[3], &target) else { return Ok(Way::Next) };
    own(packet)?;
    let known = recall(&FLOWS, &packet.tuple).filter(|flow| {
        look(&BACKENDS, &flow.backend).is_some_and(|b| b.serving != 0 || (packet.tuple.protocol == TCP && !packet.is_syn()))
    });
    let backend = match known {
        Some(flow) => flow.backend,
        None => given(packet, &vip, target)?,
    };
    count(Counter::VipPacket);
    let (port, client_port) = (packet.tuple.destination_port, packet.tuple.source_port);
    turn(ctx, packet, End::Destination, &mapped(backend), port, client_port)?;
    // On by the userspace datapath's routes, as if the backend had been asked.
    Ok(Way::Next)
}

#[inline(always)]
fn given(packet: &mut Packet, vip: &Vip, target: Ipv4) -> Result<Ipv4, Way> {
    if vip.size == 0 {
        return Err(Way::Drop(Counter::VipEmpty));
    }
    let at = slot(vip.base, vip.size, client_hash(&packet.tuple, false));
    let backend = *SLOTS.get(at).ok_or(Way::Drop(Counter::VipEmpty))?;
    packet.turn_round();
    packet.back.source = mapped(backend);
    let reply = Reply {
        address: packet.tuple.destination,
        entry: [0; 2],
        port: packet.tuple.destination_port,
        client_port: packet.tuple.source_port,
        device: packet.device,
    };
    REPLIES.insert(&packet.back, reply, 0).map_err(|_| Way::Drop(Counter::DropChange))?;
    let flow = Flow { backend, target: reply.port, client_port: reply.client_port, ifindex: packet.device };
    FLOWS.insert(&packet.tuple, flow, 0).map_err(|_| Way::Drop(Counter::DropChange))?;
    let _ = GATE.set(0, 1, 0);
    add(VIP_COUNTS.get_ptr_mut(target));
    Ok(backend)
}

/// Answers an echo request to a virtual address in its name.
#[inline(always)]
fn echo(ctx: &TcContext) -> Result<Way, Way> {
    if protocol(ctx) != ETH_V4 {
        return Ok(Way::Next);
    }
    let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Way::Next)?;
    let kind: u8 = ctx.load(ETHERNET + V4).map_err(|_| Way::Next)?;
    let (source, target) = (v4[3], v4[4]);
    if !is_plain(&v4) || has_more(&v4) || byte(v4[2], 1) != ICMP || kind != 8 || asked(source, &target).is_none() {
        return Ok(Way::Next);
    }
    let (to, from): ([u8; 6], [u8; 6]) = (ctx.load(0).map_err(|_| Way::Next)?, ctx.load(6).map_err(|_| Way::Next)?);
    ctx.store(0, &from, 0).map_err(|_| Refused)?;
    ctx.store(6, &to, 0).map_err(|_| Refused)?;
    ctx.store(ETHERNET + 12, &[target, source], 0).map_err(|_| Refused)?;
    ctx.store(ETHERNET + V4, &0_u8, 0).map_err(|_| Refused)?;
    // SAFETY: the context is a valid one. An echo reply is type 0 where the request had 8.
    let fixed = unsafe { bpf_l4_csum_replace(raw(ctx), (ETHERNET + V4 + 2) as u32, 8, 0, 2) };
    if fixed < 0 {
        return Err(Way::Drop(Counter::DropChange));
    }
    count(Counter::VipEcho);
    Ok(Way::Out(ifindex(ctx)))
}
