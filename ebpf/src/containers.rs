//! What containers send, in the mesh namespace: replies of published ports, and packets to virtual addresses that no socket
//! call has translated. Everything else passes to the userspace datapath.

use crate::change::{End, RewriteFailed, nat_rewrite, set_port};
use crate::ctx::{ethertype, ifindex, raw, seconds};
use crate::flows::{add_flow, add_reply, find_flow, find_reply, follow_client, follow_container, remove_established};
use crate::fragments::{find_first, record_first, remove_earlier};
use crate::maps::{
    BACKENDS, VIP_COUNTS, VIPS, add, backend_at, config, count, lookup, note_vip_packet, subnet_of, vip_packets_seen,
};
use crate::mesh::{send_to_node, translate_known_reply};
use crate::parse::{ETH_V4, ETH_V6, Packet, PacketKind, parse};
use crate::refuse::refuse;
use crate::seen::dropped;
use crate::verdict::Verdict;
use aya_ebpf::helpers::generated::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, ICMP, ICMP6, REPLY, TCP, V4, V6, byte, has_more, is_plain, mapped};
use skep_ebpf::{Address, Backend, Counter, Flow, Reply, V4 as Ipv4, Vip, client_hash, hook_number, is_zero, slot};

/// From a container.
#[inline(always)]
pub fn from_container(ctx: &TcContext) -> Result<Verdict, Verdict> {
    let Some(packet) = parse(ctx, ETHERNET) else { return answer_echo(ctx) };
    let Some(config) = config() else { return Ok(Verdict::Pass) };
    if packet.is(PacketKind::LaterFragment) {
        let Some(state) = find_first(packet) else { return Ok(Verdict::Pass) };
        verify_source(packet)?;
        if !is_zero(&state.entry) {
            return send_to_node(ctx, config, REPLY, state.entry);
        }
        nat_rewrite(ctx, packet, End::Source, &state.address, 0, 0)?;
        return Ok(Verdict::RedirectPeer(if state.device != 0 { state.device } else { config.mesh_end }));
    }
    // From another network than `ingress` there are replies to published ports none, and to virtual addresses only where packets
    // were translated: the tables of flows need no look.
    if packet.family == 4 && config.is_off_ingress(packet.tuple.source[3]) && !vip_packets_seen() {
        return to_virtual(ctx, packet);
    }
    let Some(found) = find_reply(&packet.tuple) else {
        remove_earlier(packet);
        return to_virtual(ctx, packet);
    };
    let reply = found.get();
    verify_source(packet)?;
    if is_zero(&reply.entry) {
        translate_known_reply(ctx, packet, &found)?;
        return Ok(Verdict::RedirectPeer(if reply.device != 0 { reply.device } else { config.mesh_end }));
    }
    let entry = reply.entry;
    record_first(packet, &[0; 4], entry, 0);
    follow_container(packet, &found);
    set_port(ctx, packet, End::Destination, reply.client_port)?;
    send_to_node(ctx, config, REPLY, entry)
}

/// Checks that the source address belongs to the container that sent the packet; of an ICMP error, that it is about a packet
/// to that container. (The source of an error may be a router behind the container.)
#[inline(always)]
fn verify_source(packet: &Packet) -> Result<(), Verdict> {
    let source = if packet.is(PacketKind::IcmpError) { &packet.tuple.source } else { &packet.source };
    if lookup(&BACKENDS, &source[3]).is_some_and(|backend| backend.ifindex == packet.device) {
        return Ok(());
    }
    Err(Verdict::Drop(Counter::DropForged))
}

/// The virtual address, if the source is on its network.
#[inline(always)]
fn lookup_vip(source: Ipv4, target: &Ipv4) -> Option<Vip> {
    let vip = lookup(&VIPS, target)?;
    if source & vip.mask == vip.network {
        return Some(vip);
    }
    // Or in a further subnet of it.
    let subnet = subnet_of(&mapped(source))?;
    (subnet.network == vip.network).then_some(vip)
}

/// Translates a packet to a virtual address that no socket call has translated (a raw socket, or a namespace that the
/// container made itself).
#[inline(always)]
fn to_virtual(ctx: &TcContext, packet: &mut Packet) -> Result<Verdict, Verdict> {
    if packet.family != 4 || !packet.is(PacketKind::Unfragmented) {
        return Ok(Verdict::Pass);
    }
    let target = packet.tuple.destination[3];
    let Some(vip) = lookup_vip(packet.tuple.source[3], &target) else { return Ok(Verdict::Pass) };
    verify_source(packet)?;
    let known = find_flow(&packet.tuple);
    let current = known.as_ref().filter(|found| {
        let flow = found.get();
        let keeps = |b: Backend| flow.owner == b.owner && (b.serving != 0 || packet.tuple.protocol == TCP);
        !packet.is_syn() && lookup(&BACKENDS, &flow.backend).is_some_and(keeps)
    });
    let backend = match current {
        Some(found) => {
            let backend = found.get().backend;
            if packet.flags != 0 {
                found.touch(seconds(), packet.device);
                packet.fill_reverse();
                packet.reverse.source = mapped(backend);
                follow_client(packet, found.established);
            }
            backend
        }
        None => {
            if let Some(found) = known.filter(|found| found.established) {
                packet.fill_reverse();
                packet.reverse.source = mapped(found.get().backend);
                remove_established(&packet.tuple, &packet.reverse);
            }
            if vip.size == 0 {
                return refuse_virtual(ctx, packet);
            }
            select_backend(packet, &vip, target)?
        }
    };
    note_vip_packet(seconds());
    count(Counter::VipPacket);
    let (port, client_port) = (packet.tuple.destination_port, packet.tuple.source_port);
    nat_rewrite(ctx, packet, End::Destination, &mapped(backend), port, client_port)?;
    // The userspace datapath's routes forward it, as if the client had asked for the backend.
    Ok(Verdict::Pass)
}

/// Selects a backend for a new flow to a virtual address and records the flow in both directions.
#[inline(always)]
fn select_backend(packet: &mut Packet, vip: &Vip, target: Ipv4) -> Result<Ipv4, Verdict> {
    let key = config().map_or([0; 2], |config| config.hash_key);
    let index = slot(vip.base, vip.size, client_hash(key, &packet.tuple, false));
    let backend = backend_at(index).ok_or(Verdict::Drop(Counter::VipEmpty))?;
    let owner = lookup(&BACKENDS, &backend).ok_or(Verdict::Drop(Counter::VipEmpty))?.owner;
    packet.fill_reverse();
    packet.reverse.source = mapped(backend);
    let reply = Reply {
        address: packet.tuple.destination,
        entry: [0; 2],
        port: packet.tuple.destination_port,
        client_port: packet.tuple.source_port,
        device: packet.device,
        ..Reply::default()
    };
    add_reply(&packet.reverse, &reply).ok_or(Verdict::Drop(Counter::DropChange))?;
    let (client_port, ifindex) = (reply.client_port, packet.device);
    let flow = Flow { backend, target: reply.port, client_port, ifindex, owner, seen: seconds() };
    add_flow(&packet.tuple, &flow).ok_or(Verdict::Drop(Counter::DropChange))?;
    add(VIP_COUNTS.get_ptr_mut(target));
    Ok(backend)
}

/// Answers a packet to a virtual address without a task as a host answers one to a port without a socket: the sender must not wait
/// in silence.
#[inline(always)]
fn refuse_virtual(ctx: &TcContext, packet: &Packet) -> Result<Verdict, Verdict> {
    // Before the packet is the answer.
    dropped(ctx, const { hook_number("from_container") }, Counter::VipEmpty);
    if refuse(raw(ctx), packet) != 0 {
        return Ok(Verdict::Discard);
    }
    swap_macs(ctx)?;
    Ok(Verdict::Redirect(packet.device))
}

/// Types of `ICMPv6` messages.
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// As [`answer_echo`], over IPv6.
#[inline(always)]
fn answer_echo6(ctx: &TcContext) -> Result<Verdict, Verdict> {
    let v6: [u32; 10] = ctx.load(ETHERNET).map_err(|_| Verdict::Pass)?;
    let kind: u8 = ctx.load(ETHERNET + V6).map_err(|_| Verdict::Pass)?;
    if byte(v6[1], 2) != ICMP6 || kind != ECHO_REQUEST6 {
        return Ok(Verdict::Pass);
    }
    let (source, target) = ([v6[2], v6[3], v6[4], v6[5]], [v6[6], v6[7], v6[8], v6[9]]);
    let on = |address: &Address| subnet_of(address).and_then(|subnet| subnet.to_v4(address[3]));
    let (Some(from), Some(to)) = (on(&source), on(&target)) else { return Ok(Verdict::Pass) };
    if lookup_vip(from, &to).is_none() {
        return Ok(Verdict::Pass);
    }
    swap_macs(ctx)?;
    ctx.store(ETHERNET + 8, &[target, source], 0).map_err(|_| RewriteFailed)?;
    ctx.store(ETHERNET + V6, &ECHO_REPLY6, 0).map_err(|_| RewriteFailed)?;
    // SAFETY: the context is a valid one. The addresses have changed places in the pseudo header.
    let result =
        unsafe { bpf_l4_csum_replace(raw(ctx), (ETHERNET + V6 + 2) as u32, u64::from(ECHO_REQUEST6), u64::from(ECHO_REPLY6), 2) };
    if result < 0 {
        return Err(Verdict::Drop(Counter::DropChange));
    }
    count(Counter::VipEcho);
    Ok(Verdict::Redirect(ifindex(ctx)))
}

#[inline(always)]
fn swap_macs(ctx: &TcContext) -> Result<(), Verdict> {
    let (to, from): ([u8; 6], [u8; 6]) = (ctx.load(0).map_err(|_| Verdict::Pass)?, ctx.load(6).map_err(|_| Verdict::Pass)?);
    ctx.store(0, &from, 0).map_err(|_| RewriteFailed)?;
    ctx.store(6, &to, 0).map_err(|_| RewriteFailed)?;
    Ok(())
}

/// Answers an ICMP echo request to a virtual address.
#[inline(always)]
fn answer_echo(ctx: &TcContext) -> Result<Verdict, Verdict> {
    match ethertype(ctx) {
        ETH_V4 => {}
        ETH_V6 => return answer_echo6(ctx),
        _ => return Ok(Verdict::Pass),
    }
    let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Verdict::Pass)?;
    let kind: u8 = ctx.load(ETHERNET + V4).map_err(|_| Verdict::Pass)?;
    let (source, target) = (v4[3], v4[4]);
    if !is_plain(&v4) || has_more(&v4) || byte(v4[2], 1) != ICMP || kind != 8 || lookup_vip(source, &target).is_none() {
        return Ok(Verdict::Pass);
    }
    swap_macs(ctx)?;
    ctx.store(ETHERNET + 12, &[target, source], 0).map_err(|_| RewriteFailed)?;
    ctx.store(ETHERNET + V4, &0_u8, 0).map_err(|_| RewriteFailed)?;
    // SAFETY: the context is a valid one. An echo reply is type 0 where the request had 8.
    let result = unsafe { bpf_l4_csum_replace(raw(ctx), (ETHERNET + V4 + 2) as u32, 8, 0, 2) };
    if result < 0 {
        return Err(Verdict::Drop(Counter::DropChange));
    }
    count(Counter::VipEcho);
    Ok(Verdict::Redirect(ifindex(ctx)))
}
