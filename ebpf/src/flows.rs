//! The tables of flows. A TCP connection begins in tables that forget the least recently used entry, and moves to others that
//! forget nothing once both ends have it: neither SYNs nor datagrams, however many, push out an idle connection. After RST or
//! both FINs it moves back, so that the last segments pass.

use crate::maps::{
    EARLIER_SYN_FLOWS, EARLIER_SYN_REPLIES, EARLIER_TCP_FLOWS, EARLIER_TCP_REPLIES, EARLIER_UDP_FLOWS, EARLIER_UDP_REPLIES,
    SOURCE_COUNTS, SYN_FLOWS, SYN_REPLIES, TCP_FLOWS, TCP_REPLIES, UDP_FLOWS, UDP_REPLIES, config, count, has_earlier_flows,
};
use crate::parse::Packet;
use skep_ebpf::packet::{ACK, FIN, RST, SYN, TCP};
use skep_ebpf::{
    ACKED, ANSWERED, Address, CLIENT_FIN, CONTAINER_FIN, Counter, Flow, NO_ROOM, Reply, SYN_ACKED, SYN_KNOWN, Tuple, V4, is_zero,
    source_bucket,
};

/// Update an entry only if there is none.
const BPF_NOEXIST: u64 = 1;

/// How many connections of one client are protected. Set by the loader; a constant to the verifier.
#[unsafe(no_mangle)]
static FLOWS_PER_SOURCE: u32 = u32::MAX;

/// An entry, and whether it is in the table of established connections.
pub struct Found<T> {
    value: *mut T,
    pub established: bool,
}

impl<T> Found<T> {
    /// The entry. Values are replaced whole or a word at a time: a torn one is an address that no container has.
    #[inline(always)]
    pub fn get(&self) -> &'static T {
        // SAFETY: entries are not reused while a program runs that has looked them up, or hold another entry of this table.
        unsafe { &*self.value }
    }

    #[inline(always)]
    fn get_mut(&self) -> &'static mut T {
        // SAFETY: as above.
        unsafe { &mut *self.value }
    }
}

impl Found<Flow> {
    /// Notes that a packet of the client came by a device. Written only when it changes: entries are shared by all CPUs.
    #[inline(always)]
    pub fn touch(&self, now: u32, device: u32) {
        let flow = self.get_mut();
        if flow.seen != now {
            flow.seen = now;
        }
        if flow.ifindex != device {
            flow.ifindex = device;
        }
    }
}

impl Found<Reply> {
    /// Notes that a packet of the client came by its entry node.
    #[inline(always)]
    pub fn touch(&self, now: u32) {
        let reply = self.get_mut();
        if reply.seen != now {
            reply.seen = now;
        }
    }
}

/// Looks a flow up by the client's tuple.
#[inline(always)]
pub fn find_flow(tuple: &Tuple) -> Option<Found<Flow>> {
    let found = find_flow_of_today(tuple);
    if found.is_none() && has_earlier_flows() && carry_flow(tuple) != 0 {
        return find_flow_of_today(tuple);
    }
    found
}

#[inline(always)]
fn find_flow_of_today(tuple: &Tuple) -> Option<Found<Flow>> {
    if tuple.protocol != TCP {
        return UDP_FLOWS.get_ptr_mut(tuple).map(|value| Found { value, established: false });
    }
    if let Some(value) = TCP_FLOWS.get_ptr_mut(tuple) {
        return Some(Found { value, established: true });
    }
    SYN_FLOWS.get_ptr_mut(tuple).map(|value| Found { value, established: false })
}

/// Looks a reply entry up by the container's tuple.
#[inline(always)]
pub fn find_reply(tuple: &Tuple) -> Option<Found<Reply>> {
    let found = find_reply_of_today(tuple);
    if found.is_none() && has_earlier_flows() && carry_reply(tuple) != 0 {
        return find_reply_of_today(tuple);
    }
    found
}

#[inline(always)]
fn find_reply_of_today(tuple: &Tuple) -> Option<Found<Reply>> {
    if tuple.protocol != TCP {
        return UDP_REPLIES.get_ptr_mut(tuple).map(|value| Found { value, established: false });
    }
    if let Some(value) = TCP_REPLIES.get_ptr_mut(tuple) {
        return Some(Found { value, established: true });
    }
    SYN_REPLIES.get_ptr_mut(tuple).map(|value| Found { value, established: false })
}

/// Copies a flow from the earlier tables, which hooks whose programs are not replaced yet still write: a connection may begin at
/// one of them, and its next packet come to a program with the tables of today. Returns 0 if it is in none.
#[inline(never)]
fn carry_flow(tuple: &Tuple) -> u32 {
    // SAFETY: as in `Found::get`, of all three.
    unsafe {
        if tuple.protocol != TCP {
            let Some(flow) = EARLIER_UDP_FLOWS.get(tuple) else { return 0 };
            return UDP_FLOWS.insert(tuple, flow, BPF_NOEXIST).is_ok().into();
        }
        if let Some(flow) = EARLIER_TCP_FLOWS.get(tuple) {
            return TCP_FLOWS.insert(tuple, flow, BPF_NOEXIST).is_ok().into();
        }
        let Some(flow) = EARLIER_SYN_FLOWS.get(tuple) else { return 0 };
        SYN_FLOWS.insert(tuple, flow, BPF_NOEXIST).is_ok().into()
    }
}

/// The same of a reply entry.
#[inline(never)]
fn carry_reply(tuple: &Tuple) -> u32 {
    // SAFETY: as in `Found::get`, of all three.
    unsafe {
        if tuple.protocol != TCP {
            let Some(reply) = EARLIER_UDP_REPLIES.get(tuple) else { return 0 };
            return UDP_REPLIES.insert(tuple, reply, BPF_NOEXIST).is_ok().into();
        }
        if let Some(reply) = EARLIER_TCP_REPLIES.get(tuple) {
            return TCP_REPLIES.insert(tuple, reply, BPF_NOEXIST).is_ok().into();
        }
        let Some(reply) = EARLIER_SYN_REPLIES.get(tuple) else { return 0 };
        SYN_REPLIES.insert(tuple, reply, BPF_NOEXIST).is_ok().into()
    }
}

/// Adds a flow that is not established.
#[inline(always)]
pub fn add_flow(tuple: &Tuple, flow: &Flow) -> Option<()> {
    if tuple.protocol == TCP { SYN_FLOWS.insert(tuple, flow, 0) } else { UDP_FLOWS.insert(tuple, flow, 0) }.ok()
}

/// Adds a reply entry that is not established.
#[inline(always)]
pub fn add_reply(tuple: &Tuple, reply: &Reply) -> Option<()> {
    if tuple.protocol == TCP { SYN_REPLIES.insert(tuple, reply, 0) } else { UDP_REPLIES.insert(tuple, reply, 0) }.ok()
}

/// Replaces a reply entry by one with another entry node, in the table that it is in. The state of the connection stays.
#[inline(always)]
pub fn replace_reply(found: &Found<Reply>, tuple: &Tuple, reply: &Reply) -> Option<()> {
    let reply = &Reply { expected: found.get().expected, flags: found.get().flags & !SYN_KNOWN, ..*reply };
    if found.established { TCP_REPLIES.insert(tuple, reply, 0).ok() } else { add_reply(tuple, reply) }
}

/// Removes the flow of a TCP connection whose client enters by another node now.
#[inline(always)]
pub fn remove_flow(tuple: &Tuple) {
    let _ = TCP_FLOWS.remove(tuple);
    let _ = SYN_FLOWS.remove(tuple);
}

/// Owner of no backend: the next datagram of a flow that has it asks the table again.
const NO_OWNER: u32 = u32::MAX;

/// Has the next datagram of a client ask the table again, if its flow is to this container still: an error may come late. The entry
/// stays, because it knows the device that leads to the client.
#[inline(always)]
pub fn leave_backend(tuple: &Tuple, backend: V4) {
    let Some(flow) = UDP_FLOWS.get_ptr_mut(tuple) else { return };
    // SAFETY: an entry of the map, valid for the run of the program.
    unsafe {
        if (*flow).backend == backend {
            (*flow).owner = NO_OWNER;
        }
    }
}

/// Removes an established connection: its tuple is another one's now. `client` and `container` are the tuples of its packets.
#[inline(always)]
pub fn remove_established(client: &Tuple, container: &Tuple) {
    if TCP_REPLIES.remove(container).is_ok() {
        uncount_source(&container.destination);
    }
    let _ = TCP_FLOWS.remove(client);
}

/// Forgets the FINs of an earlier connection of the same tuple, by the container's.
#[inline(always)]
pub fn begin_again(container: &Tuple) {
    if let Some(value) = TCP_REPLIES.get_ptr_mut(container) {
        // SAFETY: as in `Found::get`.
        unsafe { (*value).flags &= !(CLIENT_FIN | CONTAINER_FIN) };
    }
}

/// Follows the state of a connection by a packet of the client: `packet.tuple` is that of its flow, `packet.reverse` that of the
/// reply entry.
#[inline(always)]
pub fn follow_client(packet: &Packet, established: bool) {
    if packet.flags & (FIN | RST) != 0 {
        // A forged one that the container does not accept must not end the protection of an idle connection.
        if let Some(reply) = find_reply(&packet.reverse).filter(|reply| reply.get().is_in_window(packet.sequence)) {
            end(reply.get_mut(), &packet.tuple, &packet.reverse, packet.flags, CLIENT_FIN);
        }
    } else if !established && packet.flags & (SYN | ACK) == ACK {
        establish(&packet.tuple, &packet.reverse, packet.acknowledges);
    }
}

/// Follows the state of a connection by a packet of the container, whose tuple is that of the reply entry. Overwrites
/// `packet.reverse`.
#[inline(always)]
pub fn follow_container(packet: &mut Packet, found: &Found<Reply>) {
    if packet.flags == 0 {
        return;
    }
    let reply = found.get_mut();
    if packet.flags & (SYN | RST | ACK) == ACK && (reply.expected != packet.acknowledges || reply.flags & ACKED == 0) {
        reply.expected = packet.acknowledges;
        reply.flags |= ACKED;
    }
    if found.established && packet.flags & (FIN | RST) == 0 {
        return;
    }
    if packet.flags & (FIN | RST) != 0 {
        fill_client(packet, reply);
        end(reply, &packet.reverse, &packet.tuple, packet.flags, CONTAINER_FIN);
    }
    if found.established || packet.flags & RST != 0 {
        return;
    }
    if packet.flags & SYN == 0 {
        if reply.flags & ANSWERED == 0 {
            reply.flags |= ANSWERED;
        }
    } else {
        reply.expected = u32::from_be(packet.sequence).wrapping_add(1).to_be();
        reply.flags = reply.flags & !ACKED | SYN_ACKED;
    }
}

/// Writes the tuple of the client's packets to `packet.reverse`, of a packet of the container.
#[inline(always)]
pub fn fill_client(packet: &mut Packet, reply: &Reply) {
    packet.fill_reverse();
    packet.reverse.source_port = reply.client_port;
    if is_zero(&reply.entry) {
        packet.reverse.destination = reply.address;
        packet.reverse.destination_port = reply.port;
    } else {
        packet.reverse.via = reply.entry;
    }
}

/// The count that a client's established connections are in.
#[inline(always)]
fn source_count(client: &Address) -> Option<*mut u32> {
    SOURCE_COUNTS.get_ptr_mut(source_bucket(config()?.hash_key, client))
}

/// Counts one connection of a client less. (Not atomic: the daemon corrects what two CPUs at once miss.)
#[inline(always)]
fn uncount_source(client: &Address) {
    if let Some(count) = source_count(client) {
        // SAFETY: a word of a map.
        unsafe { *count = (*count).saturating_sub(1) };
    }
}

/// Whether a client has as many protected connections as one may have.
#[inline(always)]
fn is_crowded(count: Option<*mut u32>) -> bool {
    // SAFETY: reads a constant, and a word of a map.
    count.is_some_and(|count| unsafe { *count >= core::ptr::read_volatile(&FLOWS_PER_SOURCE) })
}

/// Moves a connection to the tables of established ones, if the client's segment shows that it is one. If there is no room it
/// stays where it is, and works. The flow comes first and goes last: the daemon removes reply entries without a flow.
#[inline(never)]
fn establish(client: &Tuple, container: &Tuple, acknowledges: u32) -> u32 {
    if has_earlier_flows() && find_reply_of_today(container).is_none() {
        carry_reply(container);
    }
    let reply = SYN_REPLIES.get_ptr_mut(container);
    if let Some(reply) = reply {
        // SAFETY: as in `Found::get`.
        if !unsafe { (*reply).is_established_by(acknowledges) } {
            return 0;
        }
    } else if TCP_REPLIES.get_ptr_mut(container).is_none() {
        return 0;
    }
    let of_client = source_count(&container.destination);
    if reply.is_some() && is_crowded(of_client) {
        return no_room(reply, Counter::FlowsOfSource);
    }
    if let Some(flow) = SYN_FLOWS.get_ptr_mut(client) {
        // SAFETY: as above.
        if TCP_FLOWS.insert(client, unsafe { &*flow }, 0).is_err() {
            return no_room(reply, Counter::FlowsFull);
        }
        if reply.is_none() {
            let _ = SYN_FLOWS.remove(client);
        }
    }
    let Some(value) = reply else { return 0 };
    // SAFETY: as above.
    if TCP_REPLIES.insert(container, unsafe { &*value }, 0).is_err() {
        let _ = TCP_FLOWS.remove(client);
        return no_room(reply, Counter::FlowsFull);
    }
    if let Some(of_client) = of_client {
        // SAFETY: a word of a map; as in `uncount_source`.
        unsafe { *of_client += 1 };
    }
    let _ = SYN_REPLIES.remove(container);
    let _ = SYN_FLOWS.remove(client);
    count(Counter::Established);
    1
}

#[inline(always)]
fn no_room(reply: Option<*mut Reply>, reason: Counter) -> u32 {
    // SAFETY: as in `Found::get`.
    unsafe {
        if let Some(reply) = reply
            && (*reply).flags & NO_ROOM == 0
        {
            (*reply).flags |= NO_ROOM;
            count(reason);
        }
    }
    0
}

/// Notes a FIN of one end, or RST. After RST and after both FINs the connection moves out of the tables of established ones.
/// (After RST with a false sequence number it goes on: the container's next answer brings it back.)
#[inline(never)]
fn end(reply: &mut Reply, client: &Tuple, container: &Tuple, flags: u8, fin: u32) -> u32 {
    if flags & RST != 0 {
        reply.flags &= !(SYN_ACKED | ANSWERED | SYN_KNOWN);
    } else {
        reply.flags |= fin;
        if !reply.is_closed() {
            return 0;
        }
    }
    if let Some(value) = TCP_REPLIES.get_ptr_mut(container) {
        // SAFETY: as in `Found::get`.
        unsafe {
            (*value).flags &= !(SYN_ACKED | ANSWERED | NO_ROOM | SYN_KNOWN);
            let _ = SYN_REPLIES.insert(container, &*value, 0);
        }
        let _ = TCP_REPLIES.remove(container);
        uncount_source(&container.destination);
        count(Counter::Ended);
    }
    if let Some(value) = TCP_FLOWS.get_ptr_mut(client) {
        // SAFETY: as above.
        let _ = SYN_FLOWS.insert(client, unsafe { &*value }, 0);
        let _ = TCP_FLOWS.remove(client);
    }
    0
}
