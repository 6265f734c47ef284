//! Makes visible what is dropped, refused or left to the host: counts it by hook, reason and service, and writes an event
//! while somebody watches. Off the path of every other packet.

use crate::ctx::{ethertype, ifindex, raw, seconds};
use crate::maps::{BACKENDS, LOCALS, PORTS, VIPS, add, config, count, lookup};
use crate::parse::{ETH_V4, ETH_V6};
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray, PerCpuHashMap, RingBuf};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ETHERNET, FRAGMENT, TCP, UDP, V6, byte, mapped};
use skep_ebpf::{Address, Counter, Port, RefusalEvent, RefusalKey, Watch, WatchedSecond, hook_number};

#[map]
static REFUSALS: PerCpuHashMap<RefusalKey, u64> = PerCpuHashMap::pinned(4_096, 1);
#[map]
static WATCH: Array<Watch> = Array::pinned(1, 0);
#[map]
static WATCHED: PerCpuArray<WatchedSecond> = PerCpuArray::pinned(1, 0);
#[map]
static EVENTS: RingBuf = RingBuf::pinned(65_536, 0);

const FROM_UPLINK: u32 = hook_number("from_uplink");
const FROM_MESH: u32 = hook_number("from_mesh");
/// Bits of the word that IPv4 has flags and offset of a fragment in, other than "do not fragment": the offset.
const OFFSET: u32 = 0xff1f_0000_u32.to_le();

/// Counts a packet that is dropped.
#[inline(always)]
pub fn dropped(ctx: &TcContext, hook: u32, reason: Counter) {
    count(reason);
    record(raw(ctx), hook, reason as u32, 0);
}

/// Counts a packet to a published port that `from_uplink` leaves to the host.
#[inline(always)]
pub fn left(ctx: &TcContext, reason: Counter) {
    count(reason);
    record(raw(ctx), FROM_UPLINK, reason as u32, 1);
}

/// Counts a call to a virtual address that is refused; its total is counted where it is decided.
#[inline(always)]
pub fn refused(hook: u32, reason: Counter, event: &mut RefusalEvent) {
    event.hook = hook as u8;
    event.reason = reason as u16;
    event.owner = lookup(&VIPS, &event.destination[3]).map_or(0, |vip| vip.owner);
    finish(event, 0);
}

/// A function of its own, so that it costs a program one call, and no stack while it does not run.
#[inline(never)]
fn record(skb: *mut __sk_buff, hook: u32, reason: u32, left: u32) -> u32 {
    let ctx = TcContext::new(skb);
    let mut event = RefusalEvent { hook: hook as u8, reason: reason as u16, ..RefusalEvent::default() };
    event.device = ifindex(&ctx);
    let _ = describe(&ctx, hook, &mut event);
    event.owner = owner(&event, hook);
    finish(&mut event, left);
    0
}

/// Reads addresses and ports of the packet as it is now.
#[inline(always)]
fn describe(ctx: &TcContext, hook: u32, event: &mut RefusalEvent) -> Option<()> {
    // Packets of the tunnel have no link header until this program has added one.
    let first: u8 = ctx.load(0).ok()?;
    let l3 = if hook == FROM_MESH && (first >> 4 == 4 || first >> 4 == 6) { 0 } else { ETHERNET };
    let (l4, later) = match ethertype(ctx) {
        ETH_V4 => {
            let v4: [u32; 5] = ctx.load(l3).ok()?;
            event.source = mapped(v4[3]);
            event.destination = mapped(v4[4]);
            event.protocol = byte(v4[2], 1);
            (l3 + 4 * usize::from(byte(v4[0], 0) & 15), v4[1] & OFFSET != 0)
        }
        ETH_V6 => {
            let v6: [u32; 10] = ctx.load(l3).ok()?;
            event.source = [v6[2], v6[3], v6[4], v6[5]];
            event.destination = [v6[6], v6[7], v6[8], v6[9]];
            event.protocol = byte(v6[1], 2);
            let mut l4 = l3 + V6;
            if is_extension(event.protocol) {
                let [next, length]: [u8; 2] = ctx.load(l4).ok()?;
                event.protocol = next;
                l4 += 8 * (usize::from(length) + 1);
            }
            (l4, event.protocol == FRAGMENT)
        }
        _ => return None,
    };
    if !later && (event.protocol == TCP || event.protocol == UDP) {
        let ports: [u16; 2] = ctx.load(l4).ok()?;
        event.source_port = ports[0];
        event.destination_port = ports[1];
    }
    Some(())
}

/// Whether an IPv6 header of this number precedes that of the transport protocol: hop-by-hop options, routing, destination options.
#[inline(always)]
fn is_extension(number: u8) -> bool {
    matches!(number, 0 | 43 | 60)
}

/// Counts a packet that `from_uplink` does not read and leaves to the host, if it is for a published port: it has IPv4 options or an
/// IPv6 extension header. A function of its own: as [`record`].
#[inline(never)]
pub fn unread(skb: *mut __sk_buff) -> u32 {
    let ctx = TcContext::new(skb);
    let mut event = RefusalEvent { hook: FROM_UPLINK as u8, reason: Counter::PassHeaders as u16, ..RefusalEvent::default() };
    if describe(&ctx, FROM_UPLINK, &mut event).is_none() || event.destination_port == 0 {
        return 0;
    }
    event.owner = owner(&event, FROM_UPLINK);
    if event.owner != 0 && lookup(&LOCALS, &event.destination).is_some() {
        event.device = ifindex(&ctx);
        count(Counter::PassHeaders);
        finish(&mut event, 1);
    }
    0
}

/// The service that a packet is for or from: of a published port, a virtual address or a container; 0 if there is none.
#[inline(always)]
fn owner(event: &RefusalEvent, hook: u32) -> u32 {
    let family = if is_v4(&event.destination) { 4 } else { 6 };
    let port = |port| lookup(&PORTS, &Port { protocol: event.protocol, family, port }).map(|frontend| frontend.owner);
    if hook == FROM_UPLINK {
        return port(event.destination_port).unwrap_or(0);
    }
    if let Some(vip) = lookup(&VIPS, &event.destination[3]).filter(|_| family == 4) {
        return vip.owner;
    }
    let of_container = |address: &Address| {
        let container = is_v4(address) || config().is_some_and(|c| c.containers == [address[0], address[1]]);
        lookup(&BACKENDS, &address[3]).filter(|_| container).map(|backend| backend.owner)
    };
    of_container(&event.destination).or_else(|| of_container(&event.source)).or_else(|| port(event.source_port)).unwrap_or(0)
}

#[inline(always)]
fn is_v4(address: &Address) -> bool {
    address[0] | address[1] == 0 && address[2] == mapped(0)[2]
}

#[inline(always)]
fn finish(event: &mut RefusalEvent, left: u32) {
    let key = RefusalKey { owner: event.owner, reason: event.reason, hook: event.hook, zero: 0 };
    if !counted(&key) {
        counted(&RefusalKey { owner: 0, ..key });
    }
    let Some(watch) = WATCH.get(0) else { return };
    let now = seconds();
    if watch.until <= now || left > watch.left {
        return;
    }
    let Some(state) = WATCHED.get_ptr_mut(0) else { return };
    // SAFETY: the value is this CPU's; where one of these programs interrupts another one, a count may be off by one.
    unsafe {
        if (*state).second != now {
            (*state).second = now;
            (*state).written = 0;
        }
        if (*state).written >= watch.most {
            (*state).lost += 1;
            return;
        }
        (*state).written += 1;
        event.time = bpf_ktime_get_ns();
        if EVENTS.output::<RefusalEvent>(&*event, 0).is_err() {
            (*state).lost += 1;
        }
    }
}

/// Adds one, in an entry that exists or that there is room for.
#[inline(always)]
fn counted(key: &RefusalKey) -> bool {
    let value = REFUSALS.get_ptr_mut(key);
    if value.is_some() {
        add(value);
        return true;
    }
    REFUSALS.insert(key, 1_u64, 0).is_ok()
}
