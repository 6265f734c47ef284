//! The checksum of IP, TCP and UDP (RFC 1071), several words at a time: every byte that enters the tunnel is summed. Pure.

/// The checksum of the parts, one after the other. Every part but the last has an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = parts.iter().fold(0, |sum: u64, part| sum + words(part));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The sum of words in the machine's order is that of the words in network order, with its bytes in the machine's order.
    !u16::from_be(u16::try_from(sum).unwrap_or(u16::MAX))
}

/// The sum of 32-bit words, which folds to that of the 16-bit words. Up to 64 KiB a lane does not overflow.
fn words(part: &[u8]) -> u64 {
    const LANES: usize = 8;
    let mut lanes = [0_u64; LANES];
    let (blocks, rest) = part.as_chunks::<{ LANES * 4 }>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let rest: u64 = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum();
    let odd: u64 = odd.iter().map(|byte| u64::from(u16::from_ne_bytes([*byte, 0]))).sum();
    lanes.iter().sum::<u64>() + rest + odd
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_equals_the_sum_of_single_words(head in proptest::collection::vec(any::<[u8; 2]>(), 0..40), tail in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let head = head.concat();
            prop_assert_eq!(checksum(&[&head, &tail]), gotatun::packet::checksum(&[&head, &tail]));
        }
    }

    #[test]
    fn the_largest_packet_does_not_overflow() {
        let all = vec![0xff; 65_536];
        assert_eq!(checksum(&[&all, &all]), 0);
        assert_eq!(checksum(&[]), 0xffff);
    }
}
