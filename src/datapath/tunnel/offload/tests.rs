use super::*;
use proptest::prelude::*;

/// A TCP packet with correct checksums.
fn tcp(v6: bool, port: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let start = if v6 { 40 } else { 20 };
    let mut packet = vec![0; start + 32];
    if v6 {
        packet[0] = 0x60;
        packet[6] = TCP;
        packet[7] = 64;
        packet[23] = 1;
        packet[39] = 2;
    } else {
        packet[..2].copy_from_slice(&[0x45, 0]);
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    }
    packet[start..start + 2].copy_from_slice(&port.to_be_bytes());
    packet[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
    packet[start + 12] = 0x80;
    packet[start + 13] = flags;
    packet[start + 20..start + 32].copy_from_slice(&[1, 1, 8, 10, 0, 0, 0, 7, 0, 0, 0, 9]);
    packet.extend_from_slice(payload);
    let transport = packet.len() - start;
    set_length(&mut packet, v6, start, transport, 0);
    let sum = checksum(&[&pseudo_header(&packet, v6, TCP, transport), &packet[start..]]);
    packet[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Joins a group and concatenates its parts, as the kernel does.
fn joined(packets: &mut [Vec<u8>], group: &GroGroup) -> (VnetHeader, Vec<u8>) {
    let (header, parts) = join(group, packets);
    (header, parts.iter().flat_map(|part| part.to_vec()).collect())
}

fn segment_all(header: VnetHeader, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    segment(header, &mut packet, |headers, payload| out.push([headers, payload].concat()));
    out
}

#[test]
fn the_header_is_that_of_the_kernel() {
    let header = VnetHeader { flags: 1, kind: 4, headers: 72, size: 1348, checksum_start: 40, checksum_offset: 16 };
    assert_eq!(VnetHeader::read(&header.write()), Some(header));
    assert_eq!(VnetHeader::read(&[0; 9]), None);
    assert_eq!(header.write()[4..6], 1348u16.to_ne_bytes());
}

#[test]
fn segments_of_a_joined_packet_equal_the_originals() {
    for v6 in [false, true] {
        let payload: Vec<u8> = (0..5000u16).map(|n| n.to_be_bytes()[1] ^ 0x5a).collect();
        let sent: Vec<Vec<u8>> = payload
            .chunks(1348)
            .enumerate()
            .map(|(n, part)| {
                tcp(
                    v6,
                    80,
                    0xffff_f000u32.wrapping_add(u32::try_from(n).unwrap() * 1348),
                    if n == 3 { ACK | PSH } else { ACK },
                    part,
                )
            })
            .collect();
        let mut packets = sent.clone();
        let groups = group(&packets);
        assert_eq!(groups.len(), 1);
        let (header, joined) = joined(&mut packets, &groups[0]);
        assert_eq!(header.size, 1348);
        let mut again = segment_all(header, joined);
        // Segmentation increments the ids; with "don't fragment" they are not significant.
        for packet in again.iter_mut().filter(|_| !v6) {
            let transport = packet.len() - 20;
            set_length(packet, false, 20, transport, 0);
        }
        assert_eq!(again, sent);
    }
}

#[test]
fn packets_that_are_not_consecutive_are_not_joined() {
    let data = [1; 100];
    let numbers = |packets: &[Vec<u8>]| group(packets).into_iter().map(|g| g.members).collect::<Vec<_>>();
    // Two flows, interleaved.
    let two =
        [tcp(true, 1, 0, ACK, &data), tcp(true, 2, 0, ACK, &data), tcp(true, 1, 100, ACK, &data), tcp(true, 2, 100, ACK, &data)];
    assert_eq!(numbers(&two), [[0, 2], [1, 3]]);
    // A gap, a longer packet, one after a short one, one after PSH.
    assert_eq!(numbers(&[tcp(true, 1, 0, ACK, &data), tcp(true, 1, 101, ACK, &data)]).len(), 2);
    assert_eq!(numbers(&[tcp(true, 1, 0, ACK, &data), tcp(true, 1, 100, ACK, &[1; 101])]).len(), 2);
    let after_short = [tcp(true, 1, 0, ACK, &data), tcp(true, 1, 100, ACK, &data[..9]), tcp(true, 1, 109, ACK, &data[..9])];
    assert_eq!(numbers(&after_short), [vec![0, 1], vec![2]]);
    assert_eq!(numbers(&[tcp(true, 1, 0, ACK | PSH, &data), tcp(true, 1, 100, ACK, &data)]).len(), 2);
    // Pure acknowledgements and FIN are not joined and keep their order.
    let end = [tcp(true, 1, 0, ACK, &data), tcp(true, 1, 100, ACK | FIN, &[]), tcp(true, 1, 100, ACK, &data)];
    assert_eq!(numbers(&end), [[0], [1], [2]]);
    assert_eq!(numbers(&[tcp(true, 1, 0, ACK, &[]), tcp(true, 1, 0, ACK, &[])]).len(), 2);
    // Another window, timestamp, hop limit; fragments; IPv4 that may be fragmented.
    for place in [55, 70, 7] {
        let mut other = tcp(true, 1, 100, ACK, &data);
        other[place] ^= 1;
        assert_eq!(numbers(&[tcp(true, 1, 0, ACK, &data), other]).len(), 2, "{place}");
    }
    for flags in [0x00, 0x20] {
        let pair = [0, 100].map(|sequence| {
            let mut packet = tcp(false, 1, sequence, ACK, &data);
            packet[6] = flags;
            packet
        });
        assert_eq!(numbers(&pair).len(), 2);
    }
    // No group exceeds the largest packet.
    let many: Vec<Vec<u8>> = (0..60).map(|n| tcp(true, 1, n * 1348, ACK, &[0; 1348])).collect();
    let groups = group(&many);
    assert!(groups.len() == 2 && groups.iter().all(|group| group.length <= LARGEST));
}

#[test]
fn udp_is_segmented_and_single_packets_get_their_checksum() {
    let mut packet = vec![0; 48];
    packet[0] = 0x60;
    packet[6] = 17;
    packet[39] = 1;
    packet.extend((0..2500u16).map(|n| n.to_le_bytes()[0]));
    let header = VnetHeader { flags: 1, kind: GSO_UDP, headers: 48, size: 1200, checksum_start: 40, checksum_offset: 6 };
    let parts = segment_all(header, packet);
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [1248, 1248, 148]);
    for part in &parts {
        assert_eq!(usize::from(u16::from_be_bytes([part[44], part[45]])), part.len() - 40);
        assert_eq!(checksum(&[&pseudo_header(part, true, 17, part.len() - 40), &part[40..]]), 0);
    }

    let whole = tcp(false, 7, 7, ACK, b"odd");
    let mut partial = whole.clone();
    let sum = !checksum(&[&pseudo_header(&partial, false, TCP, partial.len() - 20)]);
    partial[36..38].copy_from_slice(&sum.to_be_bytes());
    let header = VnetHeader { flags: 1, checksum_start: 20, checksum_offset: 16, ..VnetHeader::default() };
    assert_eq!(segment_all(header, partial), [whole]);
}

proptest! {
    #[test]
    fn malformed_packets_never_panic(kind in 0..6u8, flags: u8, words: [u16; 4], mut packet in proptest::collection::vec(any::<u8>(), 0..200)) {
        let header = VnetHeader { flags, kind, headers: words[0], size: words[1] % 300, checksum_start: words[2] % 250, checksum_offset: words[3] % 50 };
        segment(header, &mut packet, |_, _| {});
        let mut packets = vec![packet.clone(), packet];
        for group in group(&packets) {
            join(&group, &mut packets);
        }
    }

    #[test]
    fn any_batch_is_unchanged_by_joining_and_segmenting(sizes in proptest::collection::vec((1..3u16, 0..5u32, 1..200usize), 1..40)) {
        let mut next = [0u32; 3];
        let sent: Vec<Vec<u8>> = sizes.iter().map(|(port, gap, size)| {
            let sequence = next[usize::from(*port)].wrapping_add(u32::from(*gap == 0));
            next[usize::from(*port)] = sequence.wrapping_add(u32::try_from(*size).unwrap());
            tcp(true, *port, sequence, ACK, &vec![u8::try_from(*gap).unwrap(); *size])
        }).collect();
        let mut packets = sent.clone();
        let mut out = Vec::new();
        for group in group(&packets.clone()) {
            let (header, joined) = joined(&mut packets, &group);
            out.extend(segment_all(header, joined));
        }
        for port in [1u8, 2] {
            let of_port = |all: &[Vec<u8>]| all.iter().filter(|p| p[41] == port).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of_port(&sent), of_port(&out));
        }
    }
}
