//! What leaves by uplinks: replies to clients, and packets of the host and of machines behind it, which pass unchanged.

use crate::clients::route;
use crate::ctx::{ethertype, ifindex, raw, seconds};
use crate::flows::{add_flow, find_flow};
use crate::fragments::{find_first, record_first, remove_earlier};
use crate::maps::{BACKENDS, LOCALS, PORTS, UPLINKS, config, count, lookup};
use crate::parse::{ETH_V4, ETH_V6, PacketKind, parse};
use crate::verdict::Verdict;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, TCP, UDP, V4, V6, byte, is_plain, mapped};
use skep_ebpf::{Counter, Flow, Port, PortNumber, USERSPACE_MARK, V4 as Ipv4};

/// Value of `tc_index` by which `out_uplink` recognizes the packets of `to_uplink`.
const REPLY_MARK: u16 = 0x5e7e;

/// Replies to clients, from the mesh namespace.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext) -> Result<Verdict, Verdict> {
    let Some(config) = config() else { return Err(Verdict::Drop(Counter::DropForeign)) };
    let device = if config.uplink != 0 { config.uplink } else { client_device(ctx).ok_or(Verdict::Drop(Counter::DropFlow))? };
    // SAFETY: the context is a valid one, and the field may be written.
    unsafe { (*raw(ctx)).tc_index = u32::from(REPLY_MARK) };
    count(Counter::PortOut);
    Ok(Verdict::RedirectNeighbour(device))
}

/// Index of the uplink that the client is reached by: the one that the host's routes name, if it is an uplink; else the one that
/// the client's packets arrive by. (Where the host forwards no packets of the family there is no route to ask for.)
#[inline(always)]
fn client_device(ctx: &TcContext) -> Option<u32> {
    let packet = parse(ctx, ETHERNET)?;
    if packet.is(PacketKind::LaterFragment) {
        return Some(find_first(packet)?.device);
    }
    packet.fill_reverse();
    let Some(found) = find_flow(&packet.reverse) else {
        remove_earlier(packet);
        return None;
    };
    let mut device = found.get().ifindex;
    let (result, routed) = route(ctx, packet.family, &packet.source, &packet.destination, device);
    // `BPF_FIB_LKUP_RET_SUCCESS`, `_NO_NEIGH`, `_FRAG_NEEDED`: there is a route.
    if routed != device && matches!(result, 0 | 7 | 8) && lookup(&UPLINKS, &routed).is_some() {
        device = routed;
    }
    record_first(packet, &packet.source, [0; 2], device);
    Some(device)
}

/// Every packet that leaves by an uplink. The local port of a connection of the host or of a masqueraded container may be a
/// published one: such flows are recorded, so that replies to them are not taken for packets of clients.
#[inline(always)]
pub fn out_uplink(ctx: &TcContext) -> Result<Verdict, Verdict> {
    // SAFETY: the context is a valid one, and the field may be written.
    unsafe {
        if (*raw(ctx)).tc_index == u32::from(REPLY_MARK) {
            (*raw(ctx)).tc_index = 0;
            return Ok(Verdict::Pass);
        }
    }
    verify_forwarded_source(ctx)?;
    // The cheap check first, since every packet of the machine passes here: is the source port a published one?
    let (protocol, family, l4) = match ethertype(ctx) {
        ETH_V4 => {
            let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Verdict::Pass)?;
            if !is_plain(&v4) {
                return Ok(Verdict::Pass);
            }
            (byte(v4[2], 1), 4, ETHERNET + V4)
        }
        ETH_V6 => (ctx.load(ETHERNET + 6).map_err(|_| Verdict::Pass)?, 6, ETHERNET + V6),
        _ => return Ok(Verdict::Pass),
    };
    // SAFETY: the context is a valid one.
    let is_userspace = protocol == UDP && unsafe { (*raw(ctx)).mark } == USERSPACE_MARK;
    // A datagram of the userspace datapath belongs to a client: its next one may be the eBPF datapath's.
    if protocol != TCP && protocol != UDP || is_userspace {
        return Ok(Verdict::Pass);
    }
    let port: PortNumber = ctx.load(l4).map_err(|_| Verdict::Pass)?;
    if lookup(&PORTS, &Port { protocol, family, port }).is_none() {
        return Ok(Verdict::Pass);
    }
    let Some(packet) = parse(ctx, ETHERNET) else { return Ok(Verdict::Pass) };
    packet.fill_reverse();
    if packet.is(PacketKind::IcmpError) || lookup(&LOCALS, &packet.tuple.source).is_none() {
        return Ok(Verdict::Pass);
    }
    let now = seconds();
    if let Some(found) = find_flow(&packet.reverse) {
        if found.get().backend == 0 {
            found.touch(now, ifindex(ctx));
        }
        return Ok(Verdict::Pass);
    }
    let flow = Flow { seen: now, ifindex: ifindex(ctx), ..Flow::default() };
    add_flow(&packet.reverse, &flow);
    count(Counter::HostFlow);
    Ok(Verdict::Pass)
}

/// Drops forwarded packets of this node's containers with the address of a container as their source: a container could send
/// them by the engine's bridge with the address of another one. Packets that arrived by an uplink are of machines outside,
/// whose network may have the same addresses.
#[inline(always)]
fn verify_forwarded_source(ctx: &TcContext) -> Result<(), Verdict> {
    // SAFETY: the context is a valid one.
    let arrived_by = unsafe { (*raw(ctx)).ingress_ifindex };
    if arrived_by == 0 || ethertype(ctx) != ETH_V4 {
        return Ok(());
    }
    let source: Ipv4 = ctx.load(ETHERNET + 12).map_err(|_| Verdict::Pass)?;
    if lookup(&BACKENDS, &source).is_some()
        && lookup(&LOCALS, &mapped(source)).is_none()
        && lookup(&UPLINKS, &arrived_by).is_none()
    {
        return Err(Verdict::Drop(Counter::DropForged));
    }
    Ok(())
}
