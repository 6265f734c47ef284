//! Published ports in the host's namespace: packets of clients arrive by uplinks, replies leave by them. Packets that belong
//! to no client pass unchanged.

use crate::change::{End, nat_rewrite};
use crate::ctx::{ethertype, ifindex, is_for_host, raw, seconds};
use crate::maps::{
    BACKENDS, FLOWS, FRAGMENTS, LOCALS, PORT_COUNTS, PORTS, REPLIES, UPLINKS, add, backend_at, config, count, is_source, lookup,
    lookup_lru,
};
use crate::parse::{ETH_V4, ETH_V6, Packet, PacketKind, parse};
use crate::seen::left;
use crate::verdict::Verdict;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, ETHERNET, RST, SYN, TCP, UDP, V4, V6, byte, container6, is_plain, mapped};
use skep_ebpf::{
    AFFINITY, Address, Config, Counter, FRAGMENT_TIMEOUT, Flow, FragmentState, GUARDED, NO_CLIENT, NODE, Port, PortNumber, Reply,
    Tuple, V4 as Ipv4, client_hash, elapsed, is_zero, same_address, slot,
};

/// Value of `tc_index` by which `out_uplink` recognizes the packets of `to_uplink`.
const REPLY_MARK: u16 = 0x5e7e;
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
    let Some(packet) = parse(ctx, ETHERNET) else { return Ok(Verdict::Pass) };
    let Some(config) = config() else { return Ok(Verdict::Pass) };
    let now = seconds();
    if packet.is(PacketKind::LaterFragment) {
        let Some(state) = lookup_lru(&FRAGMENTS, &packet.fragment_key()) else { return Ok(Verdict::Pass) };
        if elapsed(now, state.seen) > FRAGMENT_TIMEOUT {
            return Ok(Verdict::Pass);
        }
        nat_rewrite(ctx, packet, End::Destination, &state.address, 0, 0)?;
        count(Counter::PortIn);
        return Ok(Verdict::RedirectPeer(config.host_end));
    }
    let Some(flow) = select_flow(ctx, packet, config, now)? else {
        if packet.is(PacketKind::FirstFragment) {
            // The identification may be that of an earlier datagram, whose state later fragments must not follow.
            let _ = FRAGMENTS.remove(packet.fragment_key());
        }
        return Ok(Verdict::Pass);
    };
    let to = container_address(config, packet.family, flow.backend);
    if packet.is(PacketKind::FirstFragment) {
        let state = FragmentState { address: to, entry: [0; 2], device: 0, seen: now };
        let _ = FRAGMENTS.insert(packet.fragment_key(), state, 0);
    }
    nat_rewrite(ctx, packet, End::Destination, &to, flow.target, flow.client_port)?;
    count(if packet.is(PacketKind::IcmpError) { Counter::IcmpError } else { Counter::PortIn });
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
    let known = FLOWS.get_ptr_mut(&packet.tuple);
    if let Some(entry) = known {
        // SAFETY: the entry is replaced whole; a torn one is an address that no container has.
        let flow = unsafe { *entry };
        if flow.backend == 0 {
            if !packet.is_syn() && (packet.tuple.protocol == TCP || elapsed(now, flow.seen) <= config.udp_idle) {
                return Ok(None);
            }
        } else if is_current(packet, &flow, config, now) && is_allowed(packet, &key) {
            // SAFETY: as above. Written only when it changes: the entry is shared by all CPUs.
            unsafe {
                if flow.seen != now {
                    (*entry).seen = now;
                }
                if flow.ifindex != packet.device {
                    (*entry).ifindex = packet.device;
                }
            }
            return Ok(Some(flow));
        }
    }
    Ok(new_flow(ctx, packet, config, &key, known.is_some(), now))
}

/// Whether a packet stays with the backend of its flow entry. A new connection never does: it asks the table.
#[inline(always)]
fn is_current(packet: &Packet, flow: &Flow, config: &Config, now: u32) -> bool {
    let Some(backend) = lookup(&BACKENDS, &flow.backend) else { return false };
    if flow.owner != 0 && flow.owner != backend.owner {
        return false;
    }
    if packet.is(PacketKind::IcmpError) {
        return true;
    }
    if packet.tuple.protocol == TCP {
        !packet.is_syn()
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

/// Selects a backend for a new flow, or re-selects it for an established TCP flow that this node has no entry for. Every node
/// selects the same backend for the latter; a backend without such a connection answers with RST. `None`: not a client's.
#[inline(always)]
fn new_flow(ctx: &TcContext, packet: &mut Packet, config: &Config, key: &Port, known: bool, now: u32) -> Option<Flow> {
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
    let hash = client_hash(config.hash_key, &packet.tuple, frontend.flags & AFFINITY != 0);
    let backend = backend_at(slot(frontend.base, frontend.size, hash))?;
    let owner = lookup(&BACKENDS, &backend)?.owner;
    packet.fill_reverse();
    packet.reverse.source = container_address(config, packet.family, backend);
    packet.reverse.source_port = frontend.target;
    if let Some(other) = lookup_lru(&REPLIES, &packet.reverse) {
        let same = is_zero(&other.entry)
            && same_address(&other.address, &packet.tuple.destination)
            && other.port == packet.tuple.destination_port
            && other.client_port == packet.tuple.source_port;
        // An established connection that arrived by another entry node before is the same one to the container. A new one is a
        // different one.
        if !same && (!established || is_zero(&other.entry)) {
            replace_client_port(&mut packet.reverse);
        }
    }
    let reply = Reply {
        address: packet.tuple.destination,
        entry: [0; 2],
        port: packet.tuple.destination_port,
        client_port: packet.tuple.source_port,
        device: 0,
    };
    REPLIES.insert(&packet.reverse, reply, 0).ok()?;
    let client_port = packet.reverse.destination_port;
    let flow = Flow { backend, target: frontend.target, client_port, ifindex: packet.device, owner, seen: now };
    FLOWS.insert(&packet.tuple, flow, 0).ok()?;
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
    // `struct bpf_fib_lookup`: family, ports and length, device, …, source, destination, MAC addresses.
    let mut route = [0_u32; 16];
    route[2] = packet.device;
    if packet.family == 4 {
        if byte(destination[3], 0) == 127 {
            return None;
        }
        route[0] = u32::from_ne_bytes([2, 0, 0, 0]);
        (route[4], route[8]) = (packet.tuple.source[3], destination[3]);
    } else {
        route[0] = u32::from_ne_bytes([10, 0, 0, 0]);
        (route[4], route[5], route[6], route[7]) =
            (packet.tuple.source[0], packet.tuple.source[1], packet.tuple.source[2], packet.tuple.source[3]);
        (route[8], route[9], route[10], route[11]) = (destination[0], destination[1], destination[2], destination[3]);
    }
    // SAFETY: the context is a valid one; the helper reads and writes the 64 bytes.
    let result = unsafe { bpf_fib_lookup(raw(ctx).cast(), route.as_mut_ptr().cast(), 64, 0) };
    // `BPF_FIB_LKUP_RET_NOT_FWDED` (a local address), `BPF_FIB_LKUP_RET_FWD_DISABLED` (this host does not forward).
    (result == 4 || result == 5).then_some(())
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
        if lookup_lru(&REPLIES, replies).is_none() {
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

/// Index of the uplink that the client is reached by.
#[inline(always)]
fn client_device(ctx: &TcContext) -> Option<u32> {
    let packet = parse(ctx, ETHERNET)?;
    if packet.is(PacketKind::LaterFragment) {
        return Some(lookup_lru(&FRAGMENTS, &packet.fragment_key())?.device);
    }
    packet.fill_reverse();
    let device = lookup_lru(&FLOWS, &packet.reverse)?.ifindex;
    if packet.is(PacketKind::FirstFragment) {
        let state = FragmentState { address: packet.source, entry: [0; 2], device, seen: seconds() };
        let _ = FRAGMENTS.insert(packet.fragment_key(), state, 0);
    }
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
    if protocol != TCP && protocol != UDP {
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
    if let Some(entry) = FLOWS.get_ptr_mut(&packet.reverse) {
        // SAFETY: as in `select_flow`.
        unsafe {
            if (*entry).backend == 0 && (*entry).seen != now {
                (*entry).seen = now;
            }
        }
        return Ok(Verdict::Pass);
    }
    let flow = Flow { seen: now, ifindex: ifindex(ctx), backend: 0, target: 0, client_port: 0, owner: 0 };
    let _ = FLOWS.insert(&packet.reverse, flow, 0);
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
