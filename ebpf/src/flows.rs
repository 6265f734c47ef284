//! The tables of flows. A TCP connection begins in tables that forget the least recently used entry, and moves to others that
//! forget nothing once both ends have it: neither SYNs nor datagrams, however many, push out an idle connection. After RST or
//! both FINs it moves back, so that the last segments pass.

use crate::maps::{SYN_FLOWS, SYN_REPLIES, TCP_FLOWS, TCP_REPLIES, UDP_FLOWS, UDP_REPLIES, count};
use crate::parse::Packet;
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{ACK, FIN, RST, SYN, TCP};
use skep_ebpf::{ANSWERED, CLIENT_FIN, CONTAINER_FIN, Counter, Flow, NO_ROOM, Reply, SYN_ACKED, Tuple, is_zero};

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
    if tuple.protocol != TCP {
        return UDP_REPLIES.get_ptr_mut(tuple).map(|value| Found { value, established: false });
    }
    if let Some(value) = TCP_REPLIES.get_ptr_mut(tuple) {
        return Some(Found { value, established: true });
    }
    SYN_REPLIES.get_ptr_mut(tuple).map(|value| Found { value, established: false })
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
    let reply = &Reply { expected: found.get().expected, flags: found.get().flags, ..*reply };
    if found.established { TCP_REPLIES.insert(tuple, reply, 0).ok() } else { add_reply(tuple, reply) }
}

/// Removes the flow of a TCP connection whose client enters by another node now.
#[inline(always)]
pub fn remove_flow(tuple: &Tuple) {
    let _ = TCP_FLOWS.remove(tuple);
    let _ = SYN_FLOWS.remove(tuple);
}

/// Removes an established connection: its tuple is another one's now. `client` and `container` are the tuples of its packets.
#[inline(always)]
pub fn remove_established(client: &Tuple, container: &Tuple) {
    let _ = TCP_REPLIES.remove(container);
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
pub fn follow_client(ctx: &TcContext, packet: &Packet, established: bool) {
    if packet.flags & (FIN | RST) != 0 {
        if let Some(reply) = find_reply(&packet.reverse) {
            end(reply.get_mut(), &packet.tuple, &packet.reverse, packet.flags, CLIENT_FIN);
        }
    } else if !established && packet.flags & (SYN | ACK) == ACK {
        if let Ok(acknowledges) = ctx.load::<u32>(packet.l4 as usize + 8) {
            establish(&packet.tuple, &packet.reverse, acknowledges);
        }
    }
}

/// Follows the state of a connection by a packet of the container, whose tuple is that of the reply entry. Overwrites
/// `packet.reverse`.
#[inline(always)]
pub fn follow_container(ctx: &TcContext, packet: &mut Packet, found: &Found<Reply>) {
    if packet.flags == 0 || found.established && packet.flags & (FIN | RST) == 0 {
        return;
    }
    let reply = found.get_mut();
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
    } else if let Ok(sequence) = ctx.load::<u32>(packet.l4 as usize + 4) {
        reply.expected = u32::from_be(sequence).wrapping_add(1).to_be();
        reply.flags |= SYN_ACKED;
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

/// Moves a connection to the tables of established ones, if the client's segment shows that it is one. If there is no room it
/// stays where it is, and works. The flow comes first and goes last: the daemon removes reply entries without a flow.
#[inline(never)]
fn establish(client: &Tuple, container: &Tuple, acknowledges: u32) -> u32 {
    let reply = SYN_REPLIES.get_ptr_mut(container);
    if let Some(reply) = reply {
        // SAFETY: as in `Found::get`.
        if !unsafe { (*reply).is_established_by(acknowledges) } {
            return 0;
        }
    } else if TCP_REPLIES.get_ptr_mut(container).is_none() {
        return 0;
    }
    if let Some(flow) = SYN_FLOWS.get_ptr_mut(client) {
        // SAFETY: as above.
        if TCP_FLOWS.insert(client, unsafe { &*flow }, 0).is_err() {
            return no_room(reply);
        }
        if reply.is_none() {
            let _ = SYN_FLOWS.remove(client);
        }
    }
    let Some(value) = reply else { return 0 };
    // SAFETY: as above.
    if TCP_REPLIES.insert(container, unsafe { &*value }, 0).is_err() {
        let _ = TCP_FLOWS.remove(client);
        return no_room(reply);
    }
    let _ = SYN_REPLIES.remove(container);
    let _ = SYN_FLOWS.remove(client);
    count(Counter::Established);
    1
}

#[inline(always)]
fn no_room(reply: Option<*mut Reply>) -> u32 {
    // SAFETY: as in `Found::get`.
    unsafe {
        if let Some(reply) = reply
            && (*reply).flags & NO_ROOM == 0
        {
            (*reply).flags |= NO_ROOM;
            count(Counter::FlowsFull);
        }
    }
    0
}

/// Notes a FIN of one end, or RST. After RST and after both FINs the connection moves out of the tables of established ones.
/// (After RST with a false sequence number it goes on: the container's next answer brings it back.)
#[inline(never)]
fn end(reply: &mut Reply, client: &Tuple, container: &Tuple, flags: u8, fin: u32) -> u32 {
    if flags & RST != 0 {
        reply.flags &= !(SYN_ACKED | ANSWERED);
    } else {
        reply.flags |= fin;
        if !reply.is_closed() {
            return 0;
        }
    }
    if let Some(value) = TCP_REPLIES.get_ptr_mut(container) {
        // SAFETY: as in `Found::get`.
        unsafe {
            (*value).flags &= !(SYN_ACKED | ANSWERED | NO_ROOM);
            let _ = SYN_REPLIES.insert(container, &*value, 0);
        }
        let _ = TCP_REPLIES.remove(container);
        count(Counter::Ended);
    }
    if let Some(value) = TCP_FLOWS.get_ptr_mut(client) {
        // SAFETY: as above.
        let _ = SYN_FLOWS.insert(client, unsafe { &*value }, 0);
        let _ = TCP_FLOWS.remove(client);
    }
    0
}
