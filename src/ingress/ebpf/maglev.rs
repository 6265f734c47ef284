//! Maglev tables: which backend each slot belongs to, so that few slots change hands when backends come and go, and all
//! nodes agree without talking. Pure.

use crate::datapath::ebpf::Slots;
use skep_ebpf::{V4, convert, mix};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Table sizes: the first prime above each power of two.
const SIZES: [u32; 10] = [131, 257, 521, 1031, 2053, 4099, 8209, 16_411, 32_771, 65_537];
/// Slots per backend, at least, as long as there is a size for it: keeps every share within one per cent.
const PER_BACKEND: usize = 100;

/// Number of slots for this many backends. One backend needs one.
#[must_use]
pub fn size(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        n => SIZES.into_iter().find(|size| *size as usize >= n * PER_BACKEND).unwrap_or(SIZES[SIZES.len() - 1]),
    }
}

/// The table: for each slot the place of its backend in `backends`, which are to be sorted and without doubles. Empty without
/// backends.
#[must_use]
pub fn table(backends: &[Ipv4Addr]) -> Vec<u32> {
    let size = size(backends.len()) as usize;
    if backends.len() < 2 {
        return vec![0; size];
    }
    // Each backend has its own order of all slots: from `offset` in steps of `skip`. In turns each takes its next free one.
    let mut walks: Vec<(usize, usize)> = backends
        .iter()
        .map(|address| {
            let address = u64::from(address.to_bits());
            (mix(address) as usize % size, mix(address | 1 << 40) as usize % (size - 1) + 1)
        })
        .collect();
    let mut slots = vec![0; size];
    // A bit per slot stays in the processor's nearest cache, where most of the looking happens.
    let mut taken = vec![0_u64; size.div_ceil(64)];
    let mut left = size;
    loop {
        for (backend, (at, skip)) in (0..).zip(walks.iter_mut()) {
            while taken[*at / 64] >> (*at % 64) & 1 != 0 {
                *at += *skip;
                if *at >= size {
                    *at -= size;
                }
            }
            taken[*at / 64] |= 1 << (*at % 64);
            slots[*at] = backend;
            left -= 1;
            if left == 0 {
                return slots;
            }
        }
    }
}

/// Tables as slots hold them, by their backends: what did not change is not built again.
#[derive(Default)]
pub struct Built(BTreeMap<Vec<V4>, (Slots, bool)>);

impl Built {
    /// The slots of these backends.
    pub fn slots(&mut self, backends: &[Ipv4Addr]) -> Slots {
        let key: Vec<V4> = backends.iter().copied().map(convert::v4).collect();
        if let Some((slots, used)) = self.0.get_mut(&key) {
            *used = true;
            return slots.clone();
        }
        let slots: Slots = table(backends).into_iter().map(|at| key[at as usize]).collect();
        self.0.insert(key, (slots.clone(), true));
        slots
    }

    /// From now on it is noted what is asked for.
    pub fn begin(&mut self) {
        self.0.values_mut().for_each(|(_, used)| *used = false);
    }

    /// Forgets what was not asked for since.
    pub fn forget(&mut self) {
        self.0.retain(|_, (_, used)| *used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn backends(n: u32) -> Vec<Ipv4Addr> {
        (0..n).map(|i| (0x0a00_0002 + i).into()).collect()
    }

    fn shares(table: &[u32], n: usize) -> Vec<usize> {
        let mut count = vec![0; n];
        for backend in table {
            count[*backend as usize] += 1;
        }
        count
    }

    #[test]
    fn sizes_are_prime_and_enough() {
        for size in SIZES {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert_eq!((size(0), size(1), size(2), size(3), size(1000)), (0, 1, 257, 521, 65_537));
    }

    #[test]
    fn shares_are_even() {
        for n in [2, 3, 10, 100, 600] {
            let counts = shares(&table(&backends(n)), n as usize);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{n}: {least} … {most}: turns are taken one by one");
        }
    }

    proptest! {
        #[test]
        fn one_backend_less_moves_its_share_and_little_more(n in 3_u32..60, gone in 0_u32..60) {
            let all = backends(n);
            let mut fewer = all.clone();
            let gone = fewer.remove((gone % n) as usize);
            prop_assume!(size(all.len()) == size(fewer.len()));
            let (before, after) = (table(&all), table(&fewer));
            let moved = before.iter().zip(&after).filter(|(b, a)| all[**b as usize] != fewer[**a as usize]).count();
            let share = before.iter().filter(|b| all[**b as usize] == gone).count();
            // Small tables move a little more than large ones.
            prop_assert!(moved <= share + before.len() / 6, "{moved} of {} moved, {share} had to", before.len());
        }
    }
}
