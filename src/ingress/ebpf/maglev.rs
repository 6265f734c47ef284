//! Maglev tables: which backend each slot belongs to. When a backend is added or removed few slots of the others change, and
//! every node computes the same table without communication. Pure.

use crate::datapath::ebpf::Slots;
use skep_ebpf::{V4, convert, mix};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Table sizes: primes, few of them, because nearly all slots move where the size changes.
const SIZES: [u32; 5] = [521, 2053, 8209, 32_771, 65_537];
/// Fewest slots per backend, up to the largest size: keeps every share within 2.5 per cent.
const PER_BACKEND: usize = 40;

/// Number of slots for so many backends; one for a single backend.
#[must_use]
pub fn size(backends: usize) -> u32 {
    match backends {
        0 => 0,
        1 => 1,
        n => SIZES.into_iter().find(|size| *size as usize >= n * PER_BACKEND).unwrap_or(SIZES[SIZES.len() - 1]),
    }
}

/// The table: for each slot the index of its backend in `backends`, which must be sorted and without duplicates. Empty without
/// backends. `key`: the cluster's, [`skep_ebpf::hash_key`].
#[must_use]
pub fn table(key: u64, backends: &[Ipv4Addr]) -> Vec<u32> {
    let size = size(backends.len()) as usize;
    if backends.len() < 2 {
        return vec![0; size];
    }
    // Each backend has a permutation of all slots: from `offset` in steps of `skip`. In turns each takes its next free slot.
    let mut permutations: Vec<(usize, usize)> = backends
        .iter()
        .map(|address| {
            let address = key ^ u64::from(address.to_bits());
            (mix(address) as usize % size, mix(address ^ 1 << 40) as usize % (size - 1) + 1)
        })
        .collect();
    let mut slots = vec![0; size];
    // One bit per slot: the whole set stays in the first-level cache, and most reads are of it.
    let mut taken = vec![0_u64; size.div_ceil(64)];
    let mut remaining = size;
    loop {
        for (backend, (slot, skip)) in (0..).zip(permutations.iter_mut()) {
            while taken[*slot / 64] >> (*slot % 64) & 1 != 0 {
                *slot += *skip;
                if *slot >= size {
                    *slot -= size;
                }
            }
            taken[*slot / 64] |= 1 << (*slot % 64);
            slots[*slot] = backend;
            remaining -= 1;
            if remaining == 0 {
                return slots;
            }
        }
    }
}

/// Tables by their backends, as the slots hold them: a table whose backends did not change is not computed again.
#[derive(Default)]
pub struct TableCache {
    /// The cluster's, see [`table`].
    key: u64,
    tables: BTreeMap<Vec<V4>, CachedTable>,
}

struct CachedTable {
    slots: Slots,
    /// Requested since [`TableCache::start_generation`].
    used: bool,
}

impl TableCache {
    /// The table of these backends.
    pub fn slots(&mut self, backends: &BTreeSet<Ipv4Addr>) -> Slots {
        // Sorted, so that every node computes the same table.
        let backends: Vec<Ipv4Addr> = backends.iter().copied().collect();
        let key: Vec<V4> = backends.iter().copied().map(convert::v4).collect();
        if let Some(cached) = self.tables.get_mut(&key) {
            cached.used = true;
            return cached.slots.clone();
        }
        let slots: Slots = table(self.key, &backends).into_iter().map(|backend| key[backend as usize]).collect();
        self.tables.insert(key, CachedTable { slots: slots.clone(), used: true });
        slots
    }

    /// Marks all tables as unused. Tables of another key are dropped.
    pub fn start_generation(&mut self, key: u64) {
        if self.key != key {
            *self = Self { key, ..Self::default() };
        }
        self.tables.values_mut().for_each(|cached| cached.used = false);
    }

    /// Drops the tables that were not requested since [`Self::start_generation`].
    pub fn drop_unused(&mut self) {
        self.tables.retain(|_, cached| cached.used);
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
    fn sizes_are_prime_and_large_enough() {
        assert_eq!((2..=13).map(size).collect::<BTreeSet<_>>(), BTreeSet::from([521]), "common numbers of tasks have one size");
        for size in SIZES {
            assert!((2..size).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert_eq!((size(0), size(1), size(2), size(3), size(1000)), (0, 1, 521, 521, 65_537));
    }

    #[test]
    fn shares_are_even() {
        for n in [2, 3, 10, 100, 600] {
            let counts = shares(&table(7, &backends(n)), n as usize);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{n}: {least} … {most}: backends take slots in turns");
        }
    }

    /// Numbers of tasks as services are scaled: near the least part of the slots moves.
    #[test]
    fn scaling_out_moves_little_more_than_the_new_backends_get() {
        let all = backends(11);
        for (from, to) in [(2, 3), (3, 6), (6, 11)] {
            let (mut moved, mut slots) = (0, 0);
            for key in 0..20 {
                let (before, after) = (table(key, &all[..from]), table(key, &all[..to]));
                assert_eq!(before.len(), after.len(), "{from} to {to}");
                moved += before.iter().zip(&after).filter(|(b, a)| b != a).count();
                slots += before.len();
            }
            let least = slots * (to - from) / to;
            assert!(moved < least + slots * 3 / 100, "{from} to {to}: {moved} of {slots} moved, at least {least}");
        }
    }

    #[test]
    fn clusters_have_different_tables() {
        let (one, other) = (table(1, &backends(5)), table(2, &backends(5)));
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same * 3 < one.len(), "{same} of {}, a fifth by chance", one.len());
    }

    proptest! {
        #[test]
        fn removing_a_backend_moves_its_share_and_little_more(key: u64, n in 3_u32..60, removed in 0_u32..60) {
            let all = backends(n);
            let mut fewer = all.clone();
            let removed = fewer.remove((removed % n) as usize);
            prop_assume!(size(all.len()) == size(fewer.len()));
            let (before, after) = (table(key, &all), table(key, &fewer));
            let moved = before.iter().zip(&after).filter(|(b, a)| all[**b as usize] != fewer[**a as usize]).count();
            let share = before.iter().filter(|b| all[**b as usize] == removed).count();
            // In small tables more of the other slots move than in large ones: with 5 backends in 521 slots up to a sixth was seen.
            prop_assert!(moved <= share + before.len() / 4, "{moved} of {} moved, {share} had to", before.len());
        }
    }
}
