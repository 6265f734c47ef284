//! Published ports in the host's namespace: packets of clients arrive by uplinks. Packets that belong to no client pass
//! unchanged.

use crate::change::{End, nat_rewrite, remove_priority_tag};
use crate::ctx::{is_for_host, raw, seconds};
use crate::flows::{
    Found, add_flow, add_reply, begin_again, find_flow, find_reply, follow_client, remove_established, replace_reply,
};
use crate::fragments::{find_first, record_first, remove_earlier};
use crate::maps::{BACKENDS, LOCALS, PORT_COUNTS, PORTS, add, backend_at, config, count, is_source, is_taking_over, lookup};
use crate::parse::{Packet, PacketKind, parse};
use crate::seen::{left, unread};
use crate::verdict::Verdict;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, ETHERNET, FIN, RST, SYN, TCP, UDP, byte, container6, mapped};
use skep_ebpf::{
    AFFINITY, Address, Config, Counter, Flow, Frontend, GUARDED, NO_CLIENT, NODE, Port, Reply, SYN_KNOWN, TAKEOVER_SILENCE,
    Tuple, V4 as Ipv4, client_hash, elapsed, is_zero, same_address, slot,
};

/// State of a listening socket.
const TCP_LISTEN: u32 = 10;

/// The address by which clients of a family reach a container.
#[inline(always)]
pub fn container_address(config: &Config, family: u8, v4: Ipv4) -> Address {
    if family == 4 { mapped(v4) } else { container6(config.containers, v4) }
}

/// Packets that arrive by an uplink.
#[inline(always)]
pub fn from_uplink(ctx: &TcContext) -> Result<Verdict, Verdict> {
    if !is_for_host(ctx) {
        return Ok(Verdict::Pass);
    }
    let Some(packet) = parse(ctx, ETHERNET) else {
        unread(raw(ctx));
        return Ok(Verdict::Pass);
    };
    let Some(config) = config() else { return Ok(Verdict::Pass) };
    let now = seconds();
    if packet.is(PacketKind::LaterFragment) {
        let Some(state) = find_first(packet) else { return Ok(Verdict::Pass) };
        nat_rewrite(ctx, packet, End::Destination, &state.address, 0, 0)?;
        count(Counter::PortIn);
        remove_priority_tag(ctx)?;
        return Ok(Verdict::RedirectPeer(config.host_end));
    }
    let Some(flow) = select_flow(ctx, packet, config, now)? else {
        remove_earlier(packet);
        return Ok(Verdict::Pass);
    };
    let to = container_address(config, packet.family, flow.backend);
    record_first(packet, &to, [0; 2], 0);
    nat_rewrite(ctx, packet, End::Destination, &to, flow.target, flow.client_port)?;
    count(if packet.is(PacketKind::IcmpError) { Counter::IcmpError } else { Counter::PortIn });
    remove_priority_tag(ctx)?;
    Ok(Verdict::RedirectPeer(config.host_end))
}

/// The flow entry of a client's packet, an existing or a new one. `None`: not a client's packet.
#[inline(always)]
fn select_flow(ctx: &TcContext, packet: &mut Packet, config: &Config, now: u32) -> Result<Option<Flow>, Verdict> {
    let key = Port { protocol: packet.tuple.protocol, family: packet.family, port: packet.tuple.destination_port };
    if packet.tuple.protocol == UDP {
        if packet.tuple.destination_port == config.tunnel_port {
            return Ok(None);
        }
        let sender = Port { port: packet.tuple.source_port, ..key };
        if lookup(&PORTS, &sender).is_some() && is_source(NODE, &packet.tuple.source) && lookup(&PORTS, &key).is_some() {
            return Err(Verdict::Drop(Counter::DropLoop));
        }
    }
    let known = find_flow(&packet.tuple);
    if let Some(found) = &known {
        let flow = *found.get();
        if flow.backend == 0 {
            if !packet.is_syn() && (packet.tuple.protocol == TCP || elapsed(now, flow.seen) <= config.udp_idle) {
                return Ok(None);
            }
        } else if is_current(packet, &flow, config, now) && is_allowed(packet, &key) {
            found.touch(now, packet.device);
            if packet.flags & (FIN | RST) != 0 || packet.flags != 0 && !found.established {
                fill_container(packet, config, &flow);
                follow_client(packet, found.established);
            }
            return Ok(Some(flow));
        }
    }
    let Some(frontend) = published_port(ctx, packet, &key, known.is_some()) else { return Ok(None) };
    if known.is_none() && packet.tuple.protocol == TCP && !packet.is_syn() && is_taking_over(now) {
        // Its entry is on its way: the client sends again. Another backend would reset the connection.
        return Err(Verdict::Drop(Counter::DropFlow));
    }
    Ok(new_flow(packet, config, &key, &frontend, known, now))
}

/// Writes the tuple of the container's replies to `packet.reverse`.
#[inline(always)]
fn fill_container(packet: &mut Packet, config: &Config, flow: &Flow) {
    packet.fill_reverse();
    packet.reverse.source = container_address(config, packet.family, flow.backend);
    packet.reverse.source_port = flow.target;
    packet.reverse.destination_port = flow.client_port;
}

/// Whether a packet stays with the backend of its flow entry. A new connection never does: it asks the table. A SYN that is sent
/// again is none, and stays with the backend that may have answered the first one.
#[inline(always)]
fn is_current(packet: &mut Packet, flow: &Flow, config: &Config, now: u32) -> bool {
    let Some(backend) = lookup(&BACKENDS, &flow.backend) else { return false };
    if flow.owner != 0 && flow.owner != backend.owner {
        return false;
    }
    if packet.is(PacketKind::IcmpError) {
        return true;
    }
    if packet.tuple.protocol == TCP {
        if !packet.is_syn() {
            return true;
        }
        fill_container(packet, config, flow);
        find_reply(&packet.reverse).is_some_and(|reply| {
            let reply = reply.get();
            is_zero(&reply.entry) && reply.is_begun_by(packet.sequence, backend.serving != 0)
        })
    } else {
        backend.serving != 0 && elapsed(now, flow.seen) <= config.udp_idle
    }
}

/// Whether the source may use the port. Asked for each packet, so that a flow ends with the right to it.
#[inline(always)]
fn is_allowed(packet: &Packet, key: &Port) -> bool {
    packet.is(PacketKind::IcmpError)
        || lookup(&PORTS, key).is_none_or(|frontend| frontend.flags & GUARDED == 0)
        || is_source(key.scope(), &packet.tuple.source)
}

/// The published port that a packet of a client is for. `None`: not a client's. `known`: it has a flow entry.
#[inline(always)]
fn published_port(ctx: &TcContext, packet: &Packet, key: &Port, known: bool) -> Option<Frontend> {
    if packet.is(PacketKind::IcmpError) {
        return None;
    }
    let frontend = lookup(&PORTS, key)?;
    is_local(ctx, packet)?;
    if frontend.size == 0 {
        left(ctx, Counter::PassNoBackend);
        return None;
    }
    let established = packet.tuple.protocol == TCP && !packet.is_syn();
    // Replies to connections of the host, and packets of a connection that a socket of the host has.
    if established && !known && (packet.flags & (SYN | RST) != 0 || packet.flags & ACK == 0 || is_host_connection(ctx, packet)) {
        return None;
    }
    if is_source(NO_CLIENT, &packet.tuple.source) {
        left(ctx, Counter::PassNoClient);
        return None;
    }
    if frontend.flags & GUARDED != 0 && !is_source(key.scope(), &packet.tuple.source) {
        left(ctx, Counter::PassNotAllowed);
        return None;
    }
    Some(frontend)
}

/// Selects a backend for a new flow, or re-selects it for an established TCP flow that this node has no entry for. Every node
/// selects the same backend for the latter; a backend without such a connection answers with RST. `None`: there is no backend.
#[inline(always)]
fn new_flow(
    packet: &mut Packet,
    config: &Config,
    key: &Port,
    frontend: &Frontend,
    known: Option<Found<Flow>>,
    now: u32,
) -> Option<Flow> {
    let established = packet.tuple.protocol == TCP && !packet.is_syn();
    let hash = client_hash(config.hash_key, &packet.tuple, frontend.flags & AFFINITY != 0);
    let backend = backend_at(slot(frontend.base, frontend.size, hash))?;
    let owner = lookup(&BACKENDS, &backend)?.owner;
    if let Some(found) = known.filter(|found| found.established) {
        let flow = *found.get();
        fill_container(packet, config, &flow);
        if !established && flow.backend == backend && flow.target == frontend.target && flow.owner == owner {
            // The container knows whether the earlier connection is over.
            found.touch(now, packet.device);
            begin_again(&packet.reverse);
            count(Counter::PortNew);
            add(PORT_COUNTS.get_ptr_mut(key));
            return Some(flow);
        }
        remove_established(&packet.tuple, &packet.reverse);
    }
    let mut flow = Flow {
        backend,
        target: frontend.target,
        client_port: packet.tuple.source_port,
        ifindex: packet.device,
        owner,
        seen: now,
    };
    fill_container(packet, config, &flow);
    let mut reply = Reply {
        address: packet.tuple.destination,
        port: packet.tuple.destination_port,
        client_port: packet.tuple.source_port,
        ..Reply::default()
    };
    if packet.is_syn() {
        (reply.seen, reply.flags) = (packet.sequence, SYN_KNOWN);
    }
    let mut recorded = false;
    if let Some(found) = find_reply(&packet.reverse) {
        let other = found.get();
        let same = is_zero(&other.entry)
            && same_address(&other.address, &packet.tuple.destination)
            && other.port == packet.tuple.destination_port
            && other.client_port == packet.tuple.source_port;
        recorded = same && established;
        // An established connection that arrived by another entry node before is the same one to the container. A new one is a
        // different one.
        if !same && established && !is_zero(&other.entry) {
            if elapsed(now, other.seen) < TAKEOVER_SILENCE {
                // Delivered, but the replies stay with the entry node that spoke just now: this segment's source may be forged.
                return Some(flow);
            }
            replace_reply(&found, &packet.reverse, &reply)?;
            recorded = true;
        } else if !same {
            replace_client_port(&mut packet.reverse);
            flow.client_port = packet.reverse.destination_port;
        }
    }
    if !recorded {
        add_reply(&packet.reverse, &reply)?;
    }
    add_flow(&packet.tuple, &flow)?;
    count(if established { Counter::PortReselected } else { Counter::PortNew });
    add(PORT_COUNTS.get_ptr_mut(key));
    Some(flow)
}

/// Whether the destination is an address of the host. The loader's list may be late: an address may just have been added,
/// together with its connections (failover), so the routing table is checked too.
#[inline(always)]
fn is_local(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let destination = &packet.tuple.destination;
    if lookup(&LOCALS, destination).is_some() {
        return Some(());
    }
    if packet.family == 4 && byte(destination[3], 0) == 127 {
        return None;
    }
    let (result, _) = route(ctx, packet.family, &packet.tuple.source, destination, packet.device);
    // `BPF_FIB_LKUP_RET_NOT_FWDED` (a local address), `BPF_FIB_LKUP_RET_FWD_DISABLED` (this host does not forward).
    (result == 4 || result == 5).then_some(())
}

/// Looks the route up of a packet that arrives by a device: `BPF_FIB_LKUP_RET_*`, and the device that it would leave by.
#[inline(always)]
pub fn route(ctx: &TcContext, family: u8, source: &Address, destination: &Address, device: u32) -> (i64, u32) {
    // `struct bpf_fib_lookup`: family, ports and length, device, …, source, destination, MAC addresses.
    let mut route = [0_u32; 16];
    route[2] = device;
    if family == 4 {
        route[0] = u32::from_ne_bytes([2, 0, 0, 0]);
        (route[4], route[8]) = (source[3], destination[3]);
    } else {
        route[0] = u32::from_ne_bytes([10, 0, 0, 0]);
        (route[4], route[5], route[6], route[7]) = (source[0], source[1], source[2], source[3]);
        (route[8], route[9], route[10], route[11]) = (destination[0], destination[1], destination[2], destination[3]);
    }
    // SAFETY: the context is a valid one; the helper reads and writes the 64 bytes.
    let result = unsafe { bpf_fib_lookup(raw(ctx).cast(), route.as_mut_ptr().cast(), 64, 0) };
    (result, route[2])
}

/// Replaces the client's port in the tuple of a container's replies by one that no other connection to the container uses.
#[inline(always)]
pub fn replace_client_port(replies: &mut Tuple) {
    count(Counter::PortChanged);
    let mut tries = 0;
    while tries < 8 {
        // SAFETY: takes no argument.
        let random = unsafe { bpf_get_prandom_u32() };
        replies.destination_port = (1024 + (random >> 8) as u16 % 64_000).to_be();
        if find_reply(replies).is_none() {
            return;
        }
        tries += 1;
    }
}

/// Whether a socket of the host has this connection.
#[inline(always)]
fn is_host_connection(ctx: &TcContext, packet: &Packet) -> bool {
    // SAFETY: a union of plain numbers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (from, to) = (packet.tuple.source_port, packet.tuple.destination_port);
    // SAFETY: plain numbers; the reference to the socket is released before each return.
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
        // `BPF_F_CURRENT_NETNS`: the namespace that the packet is in.
        let socket: *mut bpf_sock = bpf_skc_lookup_tcp(raw(ctx).cast(), &mut tuple, size, u64::MAX, 0);
        if socket.is_null() {
            return false;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state != TCP_LISTEN
    }
}
