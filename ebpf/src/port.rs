//! Published ports, packet by packet: TCP over IPv4. What is not a client's connection of ours is left alone.

use crate::maps::{BACKENDS, FLOWS, LOCALS, PORTS, REPLIES, SLOTS, VIPS, config, count, look, look_lru};
use crate::skb::{self, ETH_V4, ETH_V6, Refused, Segment, ifindex, protocol, raw, segment};
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, ETHERNET, ICMP, REPLY, REQUEST, SYN, TCP, V4, V6, translated, untranslated};
use skep_ebpf::{AFFINITY, Address, Config, Counter, Flow, Port, Reply, Tuple, client_hash, slot};

/// Where a packet goes.
pub enum Way {
    /// Not ours: whoever comes next decides.
    Next,
    /// Out of the other end of this veth of ours.
    Peer(u32),
    /// Out of this device, as it is.
    Out(u32),
    /// Out of this device, to the neighbour that the host's routes name.
    Neighbour(u32),
    /// Nowhere, and counted.
    Drop(Counter),
}

impl From<Refused> for Way {
    #[inline(always)]
    fn from(_: Refused) -> Self {
        Self::Drop(Counter::DropChange)
    }
}

/// The verdict of a way.
#[inline(always)]
pub fn verdict(way: Way) -> i32 {
    // SAFETY: these helpers take numbers only.
    unsafe {
        match way {
            Way::Next => -1,
            Way::Peer(ifindex) => bpf_redirect_peer(ifindex, 0) as i32,
            Way::Out(ifindex) => bpf_redirect(ifindex, 0) as i32,
            Way::Neighbour(ifindex) => bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32,
            Way::Drop(counter) => {
                count(counter);
                2
            }
        }
    }
}

/// From the world, in the host's namespace.
#[inline(always)]
pub fn from_uplink(ctx: &TcContext) -> Result<Way, Way> {
    let Some(segment) = segment(ctx) else { return Ok(Way::Next) };
    let tuple = segment.tuple;
    let Some(config) = config() else { return Ok(Way::Next) };
    let flow = if segment.flags & (SYN | ACK) == SYN {
        match new_flow(ctx, &tuple) {
            Some(flow) => flow,
            None => return Ok(Way::Next),
        }
    } else {
        // Answers to the host's own connections and to those of masqueraded containers are nobody's flow here.
        match look_lru(&FLOWS, &tuple) {
            Some(flow) => flow,
            None => return Ok(Way::Next),
        }
    };
    count(Counter::PortIn);
    skb::set_end(ctx, false, (tuple.destination, tuple.destination_port), (flow.backend, flow.target))?;
    Ok(Way::Peer(config.host_end))
}

/// Gives a client's connection its backend.
#[inline(always)]
fn new_flow(ctx: &TcContext, tuple: &Tuple) -> Option<Flow> {
    let frontend = look(&PORTS, &Port { protocol: TCP, zero: 0, port: tuple.destination_port })?;
    look(&LOCALS, &tuple.destination)?;
    if frontend.size == 0 {
        return None;
    }
    let backend = *SLOTS.get(slot(frontend.base, frontend.size, client_hash(tuple, frontend.flags & AFFINITY != 0)))?;
    look(&BACKENDS, &backend)?;
    let flow = Flow { backend, target: frontend.target, zero: 0, ifindex: ifindex(ctx) };
    let back = reversed(tuple, backend, frontend.target);
    let reply = Reply { address: tuple.destination, port: tuple.destination_port, zero: 0, entry: [0; 8] };
    REPLIES.insert(&back, &reply, 0).ok()?;
    FLOWS.insert(tuple, &flow, 0).ok()?;
    count(Counter::PortNew);
    Some(flow)
}

/// The tuple of the backend's answers.
#[inline(always)]
fn reversed(tuple: &Tuple, backend: Address, target: [u8; 2]) -> Tuple {
    Tuple {
        source: backend,
        destination: tuple.source,
        source_port: target,
        destination_port: tuple.source_port,
        protocol: tuple.protocol,
        zero: [0; 3],
    }
}

/// From the host, in the mesh namespace: to the container here, or to its node.
#[inline(always)]
pub fn from_host(ctx: &TcContext) -> Result<Way, Way> {
    let Some(segment) = segment(ctx) else { return Err(Way::Drop(Counter::DropForeign)) };
    let (Some(config), Some(backend)) = (config(), look(&BACKENDS, &segment.tuple.destination)) else {
        return Err(Way::Drop(Counter::DropBackend));
    };
    if backend.ifindex != 0 {
        count(Counter::Delivered);
        return Ok(Way::Peer(backend.ifindex));
    }
    let source = translated(config.prefix, REQUEST, segment.tuple.source);
    let destination = translated(backend.prefix, REQUEST, segment.tuple.destination);
    skb::to_v6(ctx, &segment.v4, &source, &destination)?;
    count(Counter::MeshOut);
    Ok(Way::Out(config.tunnel))
}

/// From another node, in the mesh namespace.
#[inline(always)]
pub fn from_mesh(ctx: &TcContext) -> Result<Way, Way> {
    if protocol(ctx) != ETH_V6 {
        return Ok(Way::Next);
    }
    let v6: [u8; V6] = ctx.load(0).map_err(|_| Way::Next)?;
    let (prefix, kind, to) = untranslated(&v6[24..40]);
    let (from_prefix, from_kind, from) = untranslated(&v6[8..24]);
    let Some(config) = config() else { return Ok(Way::Next) };
    if prefix != config.prefix || (kind != REQUEST && kind != REPLY) {
        return Ok(Way::Next);
    }
    if from_kind != kind || v6[6] != TCP {
        return Err(Way::Drop(Counter::DropForeign));
    }
    let ports: [u8; 4] = ctx.load(V6).map_err(|_| Way::Drop(Counter::DropForeign))?;
    let tuple = Tuple {
        source: from,
        destination: to,
        source_port: [ports[0], ports[1]],
        destination_port: [ports[2], ports[3]],
        protocol: TCP,
        zero: [0; 3],
    };
    count(Counter::MeshIn);
    if kind == REQUEST { request(ctx, &v6, &tuple, from_prefix) } else { reply(ctx, &v6, &tuple, config) }
}

/// A client's packet that came in by another node, for a container here.
#[inline(always)]
fn request(ctx: &TcContext, v6: &[u8; V6], tuple: &Tuple, entry: [u8; 8]) -> Result<Way, Way> {
    let backend = look(&BACKENDS, &tuple.destination).ok_or(Way::Drop(Counter::DropBackend))?;
    if backend.ifindex == 0 {
        return Err(Way::Drop(Counter::DropBackend));
    }
    let back = reversed(tuple, tuple.destination, tuple.destination_port);
    let known = look_lru(&REPLIES, &back);
    if known.is_none_or(|known| known.entry != entry) {
        let reply = Reply { address: [0; 4], port: [0; 2], zero: 0, entry };
        REPLIES.insert(&back, &reply, 0).map_err(|_| Way::Drop(Counter::DropChange))?;
    }
    skb::to_v4(ctx, v6, tuple.source, tuple.destination)?;
    count(Counter::Delivered);
    Ok(Way::Peer(backend.ifindex))
}

/// A container's answer from another node, for a client that came in here.
#[inline(always)]
fn reply(ctx: &TcContext, v6: &[u8; V6], tuple: &Tuple, config: &Config) -> Result<Way, Way> {
    let reply = look_lru(&REPLIES, tuple).ok_or(Way::Drop(Counter::DropFlow))?;
    if reply.entry != [0; 8] {
        return Err(Way::Drop(Counter::DropFlow));
    }
    skb::to_v4(ctx, v6, reply.address, tuple.destination)?;
    skb::set_port(ctx, ETHERNET + V4, true, tuple.source_port, reply.port)?;
    Ok(Way::Peer(config.mesh_end))
}

/// From a container, in the mesh namespace: answers of published ports, and echo requests to virtual addresses.
#[inline(always)]
pub fn from_container(ctx: &TcContext) -> Result<Way, Way> {
    let Some(Segment { v4, tuple, .. }) = segment(ctx) else { return echo(ctx) };
    let Some(reply) = look_lru(&REPLIES, &tuple) else { return Ok(Way::Next) };
    // Nobody answers in another container's name; the base plane's checks have the rest.
    if look(&BACKENDS, &tuple.source).is_none_or(|own| own.ifindex != ifindex(ctx)) {
        return Ok(Way::Next);
    }
    let Some(config) = config() else { return Ok(Way::Next) };
    if reply.entry == [0; 8] {
        skb::set_end(ctx, true, (tuple.source, tuple.source_port), (reply.address, reply.port))?;
        return Ok(Way::Peer(config.mesh_end));
    }
    let source = translated(config.prefix, REPLY, tuple.source);
    let destination = translated(reply.entry, REPLY, tuple.destination);
    skb::to_v6(ctx, &v4, &source, &destination)?;
    count(Counter::MeshOut);
    Ok(Way::Out(config.tunnel))
}

/// Answers an echo request to a virtual address in its name.
#[inline(always)]
fn echo(ctx: &TcContext) -> Result<Way, Way> {
    if protocol(ctx) != ETH_V4 {
        return Ok(Way::Next);
    }
    let head: [u8; ETHERNET + V4 + 2] = ctx.load(0).map_err(|_| Way::Next)?;
    let (v4, kind) = (ETHERNET, head[ETHERNET + V4]);
    if head[v4] != 0x45 || head[v4 + 9] != ICMP || head[v4 + 6] & 0x3f != 0 || head[v4 + 7] != 0 || kind != 8 {
        return Ok(Way::Next);
    }
    let source = [head[v4 + 12], head[v4 + 13], head[v4 + 14], head[v4 + 15]];
    let target = [head[v4 + 16], head[v4 + 17], head[v4 + 18], head[v4 + 19]];
    let Some(vip) = look(&VIPS, &target) else { return Ok(Way::Next) };
    let network = u32::from_ne_bytes(source) & u32::from_ne_bytes(vip.mask);
    if network != u32::from_ne_bytes(vip.network) {
        return Ok(Way::Next);
    }
    let mut macs = [0_u8; 12];
    macs[..6].copy_from_slice(&head[6..12]);
    macs[6..].copy_from_slice(&head[..6]);
    let mut ends = [0_u8; 8];
    ends[..4].copy_from_slice(&target);
    ends[4..].copy_from_slice(&source);
    ctx.store(0, &macs, 0).map_err(|_| Refused)?;
    ctx.store(ETHERNET + 12, &ends, 0).map_err(|_| Refused)?;
    ctx.store(ETHERNET + V4, &0_u8, 0).map_err(|_| Refused)?;
    // SAFETY: the context is a valid one. An echo reply is type 0 where the request had 8.
    let fixed = unsafe { bpf_l4_csum_replace(raw(ctx), (ETHERNET + V4 + 2) as u32, 8, 0, 2) };
    if fixed < 0 {
        return Err(Way::Drop(Counter::DropChange));
    }
    count(Counter::VipEcho);
    Ok(Way::Out(ifindex(ctx)))
}

/// From the mesh, in the host's namespace: answers to clients of this node.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext) -> Result<Way, Way> {
    if protocol(ctx) != ETH_V4 {
        return Err(Way::Drop(Counter::DropForeign));
    }
    let Some(segment) = segment(ctx) else { return Err(Way::Drop(Counter::DropForeign)) };
    let answer = segment.tuple;
    let asked = Tuple {
        source: answer.destination,
        destination: answer.source,
        source_port: answer.destination_port,
        destination_port: answer.source_port,
        ..answer
    };
    let flow = look_lru(&FLOWS, &asked).ok_or(Way::Drop(Counter::DropFlow))?;
    count(Counter::PortOut);
    Ok(Way::Neighbour(flow.ifindex))
}
