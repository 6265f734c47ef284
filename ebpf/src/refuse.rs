//! Answers a packet of a client for a container that this node does not have, as a host answers one to a port without
//! a socket: the packet becomes RST or "port unreachable", in place.

use crate::ctx::{ethertype, raw};
use crate::parse::{ETH_V4, Packet};
use aya_ebpf::bindings::{__sk_buff, BPF_F_ADJ_ROOM_FIXED_GSO, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::generated::{bpf_skb_adjust_room, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;
use skep_ebpf::packet::{self, ACK, ETHERNET, FIN, ICMP, ICMP6, RST, SYN, TCP, UDP, V4, V6, byte, fold, header_checksum, sum};

/// Length of a TCP header without options.
const TCP_HEADER: usize = 20;
/// IPv4 flag "do not fragment", in the second word of a header.
const DO_NOT_FRAGMENT: u32 = 0x4000_u32.to_be();

/// Makes the refusal of a packet that has an Ethernet header; its addresses are those of the packet, swapped. 0 if it is made;
/// the packet is to be dropped otherwise.
#[inline(never)]
pub fn refuse(skb: *mut __sk_buff, packet: &Packet) -> i32 {
    let ctx = TcContext::new(skb);
    let made = match packet.tuple.protocol {
        TCP if packet.flags & RST == 0 => reset(&ctx, packet),
        UDP => unreachable(&ctx, packet),
        _ => None,
    };
    if made.is_some() { 0 } else { -1 }
}

#[inline(always)]
fn store<T>(ctx: &TcContext, offset: usize, bytes: &T) -> Option<()> {
    ctx.store(offset, bytes, 0).ok()
}

#[inline(always)]
fn shorten(ctx: &TcContext, length: usize) -> Option<()> {
    // SAFETY: the context is a valid one.
    (unsafe { bpf_skb_change_tail(raw(ctx), length as u32, 0) } == 0).then_some(())
}

/// Two halves of a word, as packets hold them.
#[inline(always)]
fn halves(first: u16, second: u16) -> u32 {
    (u32::from(first) << 16 | u32::from(second)).to_be()
}

/// RST with the sequence number that the client expects (RFC 9293, 3.5.2).
#[inline(always)]
fn reset(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let l4 = packet.l4 as usize;
    let tcp: [u32; 5] = ctx.load(l4).ok()?;
    let length = transport_length(ctx, packet)?;
    let header = u32::from(byte(tcp[3], 0) >> 4) * 4;
    // A checksum that the kernel has yet to complete covers addresses, length and protocol only, and must stay so. (A complete
    // one is the same number once in 65,536 times; that RST is lost, and the client's next packet is answered.)
    let is_partial = fold(pseudo(packet, length, TCP)) == tcp[4] as u16;
    let (sequence, acknowledges, flags) = if packet.flags & ACK != 0 {
        (tcp[2], 0, RST)
    } else {
        let ends = u32::from(packet.flags & SYN != 0) + u32::from(packet.flags & FIN != 0);
        let next = u32::from_be(tcp[1]).wrapping_add(length.wrapping_sub(header)).wrapping_add(ends);
        (0, next.to_be(), RST | ACK)
    };
    let ports = halves(u16::from_be(packet.tuple.destination_port), u16::from_be(packet.tuple.source_port));
    let mut answer = [ports, sequence, acknowledges, halves(0x5000 | u16::from(flags), 0), 0];
    let covered = pseudo(packet, TCP_HEADER as u32, TCP);
    let checksum = if is_partial { fold(covered) } else { !fold(covered + sum(&answer)) };
    answer[4] = u32::from(checksum);
    shorten(ctx, l4 + TCP_HEADER)?;
    write_ip(ctx, packet, TCP_HEADER as u16, TCP)?;
    store(ctx, l4, &answer)
}

/// "Port unreachable", with the header of the datagram.
#[inline(always)]
fn unreachable(ctx: &TcContext, packet: &Packet) -> Option<()> {
    let udp: [u32; 2] = ctx.load(packet.l4 as usize).ok()?;
    if packet.family == 4 {
        let quoted: [u32; 5] = ctx.load(ETHERNET).ok()?;
        let mut icmp = [halves(0x0303, 0), 0];
        icmp[0] |= as_second_half(!fold(sum(&icmp) + sum(&quoted) + sum(&udp)));
        shorten(ctx, ETHERNET + V4 + 8)?;
        grow(ctx, V4 + 8)?;
        write_ip(ctx, packet, (8 + V4 + 8) as u16, ICMP)?;
        store(ctx, ETHERNET + V4, &icmp)
    } else {
        let quoted: [u32; 10] = ctx.load(ETHERNET).ok()?;
        if packet.l4 as usize != ETHERNET + V6 {
            return None;
        }
        let length = (8 + V6 + 8) as u16;
        let mut icmp = [halves(0x0104, 0), 0];
        let covered = pseudo(packet, u32::from(length), ICMP6);
        icmp[0] |= as_second_half(!fold(covered + sum(&icmp) + sum(&quoted) + sum(&udp)));
        shorten(ctx, ETHERNET + V6 + 8)?;
        grow(ctx, V6 + 8)?;
        write_ip(ctx, packet, length, ICMP6)?;
        store(ctx, ETHERNET + V6, &icmp)
    }
}

/// A checksum in the second half of a word, as packets hold it.
#[inline(always)]
fn as_second_half(checksum: u16) -> u32 {
    let bytes = checksum.to_ne_bytes();
    u32::from_ne_bytes([0, 0, bytes[0], bytes[1]])
}

/// Makes room before the IP header.
#[inline(always)]
fn grow(ctx: &TcContext, length: usize) -> Option<()> {
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO);
    // SAFETY: the context is a valid one.
    (unsafe { bpf_skb_adjust_room(raw(ctx), length as i32, BPF_ADJ_ROOM_MAC, flags) } == 0).then_some(())
}

/// Length of what follows the IP header, in bytes.
#[inline(always)]
fn transport_length(ctx: &TcContext, packet: &Packet) -> Option<u32> {
    let field: u16 = ctx.load(ETHERNET + if packet.family == 4 { 2 } else { 4 }).ok()?;
    let length = u32::from(u16::from_be(field));
    Some(if packet.family == 4 { length.wrapping_sub(V4 as u32) } else { length })
}

/// Sum of what a transport checksum covers beside the transport.
#[inline(always)]
fn pseudo(packet: &Packet, length: u32, protocol: u8) -> u64 {
    let (s, d) = (&packet.source, &packet.destination);
    // Of IPv4 the addresses only, not the rest of their mapped form.
    let addresses = if packet.family == 4 { sum(&[s[3], d[3]]) } else { sum(s) + sum(d) };
    addresses + sum(&[length.to_be(), u32::from(protocol).to_be()])
}

/// Writes the IP header of a packet back to the sender, of `length` bytes behind it.
#[inline(always)]
fn write_ip(ctx: &TcContext, packet: &Packet, length: u16, protocol: u8) -> Option<()> {
    if ethertype(ctx) == ETH_V4 {
        let mut v4 = [
            halves(0x4500, V4 as u16 + length),
            DO_NOT_FRAGMENT,
            halves(u16::from_be_bytes([64, protocol]), 0),
            packet.destination[3],
            packet.source[3],
        ];
        v4[2] |= as_second_half(header_checksum(&v4));
        return store(ctx, ETHERNET, &v4);
    }
    let second = halves(length, u16::from_be_bytes([protocol, 64]));
    store(ctx, ETHERNET, &packet::header6(0x6000_0000_u32.to_be(), second, &packet.destination, &packet.source))
}
