//! Published ports between the nodes, in the mesh namespace. TCP over IPv4 is translated to IPv6, everything else is
//! encapsulated in IPv6. The outer addresses are in the /64s of the two nodes, so the tunnel (allowed IPs) authenticates the
//! sending node.

use crate::change::{End, add_ethernet_header, decapsulate, encapsulate, nat_rewrite, set_port, to_v4, to_v6};
use crate::clients::replace_client_port;
use crate::ctx::{ethertype, is_test_run, no_link_header, raw, seconds};
use crate::flows::{
    Found, add_flow, add_reply, fill_client, find_flow, find_reply, follow_client, follow_container, leave_backend, remove_flow,
    replace_reply,
};
use crate::fragments::{find_first, record_first, remove_earlier};
use crate::maps::{BACKENDS, TARGETS, config, count, lookup, vip_packets_seen};
use crate::parse::{ETH_V4, ETH_V6, Packet, PacketKind, parse};
use crate::refuse::refuse;
use crate::verdict::Verdict;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, IN_V4, IN_V6, REPLY, REQUEST, TCP, byte, has_more, is_plain, translated};
use skep_ebpf::{
    Address, Backend, Config, Counter, Flow, INGRESS, Prefix, Reply, TAKEOVER_SILENCE, Target, elapsed, is_zero, same_node,
};

/// Sends a packet with an Ethernet header to another node; `direction` is [`REQUEST`] or [`REPLY`].
#[inline(always)]
pub fn send_to_node(ctx: &TcContext, config: &Config, direction: u32, to: Prefix) -> Result<Verdict, Verdict> {
    count(Counter::MeshOut);
    if ethertype(ctx) == ETH_V4 {
        let v4: [u32; 5] = ctx.load(ETHERNET).map_err(|_| Verdict::Drop(Counter::DropForeign))?;
        if is_plain(&v4) && !has_more(&v4) && byte(v4[2], 1) == TCP {
            to_v6(ctx, &v4, &translated(config.prefix, direction, v4[3]), &translated(to, direction, v4[4]))?;
            return Ok(Verdict::Redirect(config.tunnel));
        }
    }
    encapsulate(ctx, &translated(config.prefix, direction, 0), &translated(to, direction, 0))?;
    Ok(Verdict::Redirect(config.tunnel))
}

/// Packets of clients from the host: delivered to the container if it runs on this node, else sent to its node.
#[inline(always)]
pub fn from_host(ctx: &TcContext) -> Result<Verdict, Verdict> {
    let container = match ethertype(ctx) {
        ETH_V4 => ctx.load(ETHERNET + 16).ok(),
        ETH_V6 => ctx.load(ETHERNET + 24 + 12).ok(),
        _ => None,
    };
    let (Some(config), Some(container)) = (config(), container) else { return Err(Verdict::Drop(Counter::DropForeign)) };
    let backend = lookup(&BACKENDS, &container).ok_or(Verdict::Drop(Counter::DropBackend))?;
    if backend.ifindex != 0 {
        count(Counter::Delivered);
        return Ok(Verdict::RedirectPeer(backend.ifindex));
    }
    send_to_node(ctx, config, REQUEST, backend.prefix)
}

/// Packets from other nodes.
#[inline(always)]
pub fn from_mesh(ctx: &TcContext) -> Result<Verdict, Verdict> {
    match ethertype(ctx) {
        ETH_V6 => {}
        ETH_V4 => return translate_vip_reply(ctx),
        _ => return Ok(Verdict::Pass),
    }
    let v6: [u32; 10] = ctx.load(no_link_header()).map_err(|_| Verdict::Pass)?;
    let Some(config) = config() else { return Ok(Verdict::Pass) };
    let (sender, direction) = ([v6[2], v6[3]], v6[8]);
    if !same_node(&[v6[6], v6[7]], &config.prefix) || (direction != REQUEST && direction != REPLY) {
        return Ok(Verdict::Pass);
    }
    if v6[4] != direction {
        return Err(Verdict::Drop(Counter::DropForeign));
    }
    count(Counter::MeshIn);
    match byte(v6[1], 2) {
        TCP => to_v4(ctx, &v6, v6[5], v6[9])?,
        next @ (IN_V4 | IN_V6) => decapsulate(ctx, next)?,
        _ => return Err(Verdict::Drop(Counter::DropForeign)),
    }
    let Some(packet) = parse(ctx, ETHERNET) else { return Err(Verdict::Drop(Counter::DropForeign)) };
    if direction == REQUEST { deliver_request(ctx, packet, config, sender) } else { forward_reply(ctx, packet, config, sender) }
}

/// Delivers a client's packet from the entry node `entry` to a container of this node, and records where its reply goes.
#[inline(always)]
fn deliver_request(ctx: &TcContext, packet: &mut Packet, config: &Config, entry: Prefix) -> Result<Verdict, Verdict> {
    let Some(Backend { ifindex, owner, flags, .. }) = lookup(&BACKENDS, &packet.destination[3]).filter(|b| b.ifindex != 0) else {
        // It has ended. The client must not wait in silence.
        if !packet.is(PacketKind::Unfragmented) || refuse(raw(ctx), packet) != 0 {
            return Err(Verdict::Drop(Counter::DropBackend));
        }
        count(Counter::Refused);
        return send_to_node(ctx, config, REPLY, entry);
    };
    if flags & INGRESS == 0 {
        return Err(Verdict::Drop(Counter::DropForged));
    }
    if packet.is(PacketKind::LaterFragment) {
        count(Counter::Delivered);
        return Ok(Verdict::RedirectPeer(ifindex));
    }
    packet.fill_reverse();
    packet.tuple.via = entry;
    let known = find_reply(&packet.reverse);
    // A node may send to published ports only. What it has sent before needs no look at them.
    let target = Target { owner, port: packet.tuple.destination_port, protocol: packet.tuple.protocol, zero: 0 };
    if known.is_none() && lookup(&TARGETS, &target).is_none() {
        return Err(Verdict::Drop(Counter::DropForged));
    }
    count(Counter::Delivered);
    if let Some(known) = &known
        && same_node(&known.get().entry, &entry)
        && known.get().client_port == packet.tuple.source_port
    {
        if packet.flags != 0 {
            known.touch(seconds());
            follow_client(packet, known.established);
        }
        return Ok(Verdict::RedirectPeer(ifindex));
    }
    if let Some(flow) = find_flow(&packet.tuple) {
        let port = flow.get().client_port;
        if packet.flags != 0 {
            let now = seconds();
            flow.touch(now, ifindex);
            packet.reverse.destination_port = port;
            if let Some(reply) = find_reply(&packet.reverse) {
                reply.touch(now);
                follow_client(packet, reply.established);
            }
        }
        set_port(ctx, packet, End::Source, port)?;
        return Ok(Verdict::RedirectPeer(ifindex));
    }
    if packet.is(PacketKind::IcmpError) {
        return Ok(Verdict::RedirectPeer(ifindex));
    }
    let now = seconds();
    let client_port = packet.tuple.source_port;
    let reply = Reply { entry, client_port, seen: now, ..Reply::default() };
    let failed = Verdict::Drop(Counter::DropChange);
    // An established connection that arrives by another entry node is the same connection. A new one is a different one.
    if packet.tuple.protocol == TCP
        && !packet.is_syn()
        && let Some(known) = &known
    {
        take_over(known, packet, &reply).ok_or(failed)?;
        return Ok(Verdict::RedirectPeer(ifindex));
    }
    if known.is_some() {
        replace_client_port(&mut packet.reverse);
        let port = packet.reverse.destination_port;
        let (backend, target) = (packet.destination[3], packet.tuple.destination_port);
        let flow = Flow { backend, target, client_port: port, ifindex, owner, seen: now };
        add_flow(&packet.tuple, &flow).ok_or(Verdict::Drop(Counter::DropChange))?;
        set_port(ctx, packet, End::Source, port)?;
    }
    add_reply(&packet.reverse, &reply).ok_or(failed)?;
    Ok(Verdict::RedirectPeer(ifindex))
}

/// Makes another node the entry node of an established connection, unless the one that it has spoke just now: a segment with
/// a forged source, which the container does not accept, must not turn the replies away from the client. `packet.reverse` is the
/// tuple of the replies; overwritten.
#[inline(always)]
fn take_over(known: &Found<Reply>, packet: &mut Packet, reply: &Reply) -> Option<()> {
    let old = *known.get();
    let mut spoke = old.seen;
    if is_zero(&old.entry) {
        // The client entered by this node: the flow knows.
        let container = packet.reverse;
        packet.reverse.source = container.destination;
        packet.reverse.source_port = old.client_port;
        packet.reverse.destination = old.address;
        packet.reverse.destination_port = old.port;
        let flow = find_flow(&packet.reverse);
        spoke = flow.as_ref().map_or(reply.seen.wrapping_sub(TAKEOVER_SILENCE), |flow| flow.get().seen);
        if elapsed(reply.seen, spoke) >= TAKEOVER_SILENCE {
            remove_flow(&packet.reverse);
        }
        packet.reverse = container;
    }
    if elapsed(reply.seen, spoke) < TAKEOVER_SILENCE {
        return Some(());
    }
    replace_reply(known, &packet.reverse, reply)
}

/// Translates a container's reply from the node `from`, for a client that entered by this node, and passes it to the host.
#[inline(always)]
fn forward_reply(ctx: &TcContext, packet: &mut Packet, config: &Config, from: Prefix) -> Result<Verdict, Verdict> {
    // Only the node of a container may send with its address. (The source of an error may be a router behind the container.)
    let container: &Address = if packet.is(PacketKind::IcmpError) { &packet.tuple.source } else { &packet.source };
    if lookup(&BACKENDS, &container[3]).is_none_or(|backend| !same_node(&backend.prefix, &from)) {
        return Err(Verdict::Drop(Counter::DropForged));
    }
    translate_reply(ctx, packet)?;
    Ok(Verdict::RedirectPeer(config.mesh_end))
}

/// Reverse NAT: replaces the source of a reply by the address and port that the client asked for.
#[inline(always)]
pub fn translate_reply(ctx: &TcContext, packet: &mut Packet) -> Result<(), Verdict> {
    if packet.is(PacketKind::LaterFragment) {
        let state = find_first(packet).ok_or(Verdict::Drop(Counter::DropFlow))?;
        return Ok(nat_rewrite(ctx, packet, End::Source, &state.address, 0, 0)?);
    }
    let Some(found) = find_reply(&packet.tuple).filter(|found| is_zero(&found.get().entry)) else {
        remove_earlier(packet);
        return Err(Verdict::Drop(Counter::DropFlow));
    };
    translate_known_reply(ctx, packet, &found)
}

/// The same for a reply whose entry is known.
#[inline(always)]
pub fn translate_known_reply(ctx: &TcContext, packet: &mut Packet, found: &Found<Reply>) -> Result<(), Verdict> {
    let reply = found.get();
    record_first(packet, &reply.address, [0; 2], reply.device);
    if packet.is(PacketKind::IcmpError) {
        count(Counter::IcmpError);
        if packet.tuple.protocol != TCP && is_port_unreachable(ctx, packet) {
            // The client's next datagram asks the table again, which is without the container once that was seen.
            fill_client(packet, reply);
            leave_backend(&packet.reverse, packet.tuple.source[3]);
        }
    }
    follow_container(packet, found);
    Ok(nat_rewrite(ctx, packet, End::Source, &reply.address, reply.port, reply.client_port)?)
}

/// Whether an ICMP error says that no socket has the port.
#[inline(always)]
fn is_port_unreachable(ctx: &TcContext, packet: &Packet) -> bool {
    let wanted = if packet.family == 4 { [3, 3] } else { [1, 4] };
    ctx.load::<[u8; 2]>(packet.l4 as usize).is_ok_and(|kind| kind[0] == wanted[0] && kind[1] == wanted[1])
}

/// Traffic between containers: reverse NAT of replies to packets that no socket call had translated.
#[inline(always)]
fn translate_vip_reply(ctx: &TcContext) -> Result<Verdict, Verdict> {
    if !vip_packets_seen() {
        return Ok(Verdict::Pass);
    }
    let Some(packet) = parse(ctx, no_link_header()) else { return Ok(Verdict::Pass) };
    let Some(found) = find_reply(&packet.tuple).filter(|found| found.get().device != 0) else { return Ok(Verdict::Pass) };
    let reply = found.get();
    follow_container(packet, &found);
    add_ethernet_header(ctx)?;
    if !is_test_run() {
        packet.shift_by_ethernet_header();
    }
    nat_rewrite(ctx, packet, End::Source, &reply.address, reply.port, reply.client_port)?;
    Ok(Verdict::RedirectPeer(reply.device))
}
