//! Which backend is next: a deck of the backends, shuffled, dealt to the end, shuffled again. So each gets its share
//! exactly, yet nodes that start together do not all begin with the same one. Pure: time and randomness are passed in.

use rand::Rng;
use rand::seq::SliceRandom;
use skep_ebpf::{Tuple, client_hash, convert, mix};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// The backends of a port.
#[derive(Default, Debug)]
pub struct Rotation {
    all: Vec<Ipv4Addr>,
    /// Still to be dealt in this round, next one last.
    deck: Vec<Ipv4Addr>,
    /// Did not accept: asked last until then.
    suspects: BTreeMap<Ipv4Addr, Instant>,
}

impl Rotation {
    /// The set is now this. Whoever stays keeps its place in the round; who is new joins it somewhere.
    pub fn set(&mut self, backends: impl IntoIterator<Item = Ipv4Addr>, rng: &mut impl Rng) {
        let mut now: Vec<Ipv4Addr> = backends.into_iter().collect();
        now.sort_unstable();
        now.dedup();
        self.deck.retain(|address| now.binary_search(address).is_ok());
        self.suspects.retain(|address, _| now.binary_search(address).is_ok());
        for new in now.iter().filter(|address| !self.all.contains(address)) {
            self.deck.insert(rng.random_range(0..=self.deck.len()), *new);
        }
        self.all = now;
    }

    /// The backend to try next, none of `tried`. Suspects come after all others.
    pub fn next(&mut self, tried: &[Ipv4Addr], now: Instant, rng: &mut impl Rng) -> Option<Ipv4Addr> {
        self.suspects.retain(|_, until| *until > now);
        if self.deck.is_empty() {
            self.deck.clone_from(&self.all);
            self.deck.shuffle(rng);
        }
        let trusted = |address: &Ipv4Addr| !tried.contains(address) && !self.suspects.contains_key(address);
        if let Some(at) = self.deck.iter().rposition(trusted) {
            return Some(self.deck.remove(at));
        }
        // The rest of this round is tried or suspect: deal from a fresh one, its other cards stay.
        let untried = |address: &&Ipv4Addr| !tried.contains(address);
        let mut rest: Vec<Ipv4Addr> = self.all.iter().filter(|a| trusted(a)).copied().collect();
        if rest.is_empty() {
            rest = self.all.iter().filter(untried).copied().collect();
            rest.shuffle(rng);
            return rest.pop();
        }
        rest.shuffle(rng);
        let dealt = rest.pop();
        self.deck = rest;
        dealt
    }

    /// The backend of a client that always gets the same one, none of `tried`: the best for it of all, and of the rest if
    /// that one is a suspect. When backends come and go, only the clients of these change; nodes agree without a word.
    pub fn of(&mut self, client: IpAddr, tried: &[Ipv4Addr], now: Instant) -> Option<Ipv4Addr> {
        self.suspects.retain(|_, until| *until > now);
        let untried = self.all.iter().copied().filter(|a| !tried.contains(a));
        untried.max_by_key(|a| (!self.suspects.contains_key(a), score(client.to_canonical(), *a)))
    }

    /// It did not accept.
    pub fn failed(&mut self, address: Ipv4Addr, until: Instant) {
        self.suspects.insert(address, until);
    }

    /// It accepted.
    pub fn accepted(&mut self, address: Ipv4Addr) {
        self.suspects.remove(&address);
    }

    /// Number of backends.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// No backend.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// How well a backend suits a client: chance, but always the same.
fn score(client: IpAddr, backend: Ipv4Addr) -> u32 {
    let client = client_hash(&Tuple { source: convert::address(client), ..Tuple::default() }, true);
    mix(u64::from(client) << 32 | u64::from(backend.to_bits()))
}

/// When a backend that failed at `now` is trusted again.
#[must_use]
pub fn suspect_until(now: Instant, suspect_for: Duration) -> Instant {
    now + suspect_for
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    fn address(n: u8) -> Ipv4Addr {
        [10, 0, 0, n].into()
    }

    fn rotation(backends: u8, rng: &mut StdRng) -> Rotation {
        let mut rotation = Rotation::default();
        rotation.set((1..=backends).map(address), rng);
        rotation
    }

    #[test]
    fn every_backend_gets_exactly_its_share_of_whole_rounds() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut rotation = rotation(7, &mut rng);
        let now = Instant::now();
        let mut counts = BTreeMap::new();
        for _ in 0..7 * 30 {
            *counts.entry(rotation.next(&[], now, &mut rng).unwrap()).or_insert(0) += 1;
        }
        assert!(counts.values().all(|n| *n == 30), "{counts:?}");
    }

    #[test]
    fn different_seeds_begin_with_different_backends() {
        let firsts: std::collections::BTreeSet<Ipv4Addr> = (0..50)
            .map(|seed| {
                let mut rng = StdRng::seed_from_u64(seed);
                rotation(6, &mut rng).next(&[], Instant::now(), &mut rng).unwrap()
            })
            .collect();
        assert!(firsts.len() >= 4, "{firsts:?}");
    }

    #[test]
    fn a_suspect_is_asked_last_and_trusted_again_later() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut rotation = rotation(3, &mut rng);
        let now = Instant::now();
        rotation.failed(address(2), suspect_until(now, Duration::from_secs(5)));
        for _ in 0..20 {
            assert_ne!(rotation.next(&[], now, &mut rng), Some(address(2)));
        }
        assert_eq!(rotation.next(&[address(1), address(3)], now, &mut rng), Some(address(2)), "better than nobody");
        let later = now + Duration::from_secs(6);
        let round: Vec<_> = (0..6).filter_map(|_| rotation.next(&[], later, &mut rng)).collect();
        assert!(round.contains(&address(2)), "{round:?}");
    }

    #[test]
    fn a_client_keeps_its_backend_as_long_as_it_is_there_and_clients_are_spread() {
        let mut rng = StdRng::seed_from_u64(4);
        let mut rotation = rotation(8, &mut rng);
        let now = Instant::now();
        let clients: Vec<IpAddr> = (0..4000_u32).map(|n| IpAddr::from((0xc000_0200 + n).to_be_bytes())).collect();
        let of = |rotation: &mut Rotation| -> Vec<Ipv4Addr> {
            clients.iter().map(|client| rotation.of(*client, &[], now).unwrap()).collect()
        };
        let first = of(&mut rotation);
        assert_eq!(of(&mut rotation), first);
        for n in 1..=8 {
            let share = first.iter().filter(|a| **a == address(n)).count();
            assert!((400..600).contains(&share), "backend {n} has {share} of 4000");
        }
        // Without the third one only its own clients move, and back again.
        rotation.set((1..=8).filter(|n| *n != 3).map(address), &mut rng);
        let without = of(&mut rotation);
        assert!(first.iter().zip(&without).all(|(a, b)| a == b || *a == address(3)));
        rotation.set((1..=8).map(address), &mut rng);
        assert_eq!(of(&mut rotation), first);
        assert_eq!(
            rotation.of("::ffff:192.0.2.0".parse().unwrap(), &[], now),
            Some(first[0]),
            "one client, however it is spelled"
        );
    }

    #[test]
    fn a_clients_backend_that_fails_is_stood_in_for_until_it_is_trusted_again() {
        let mut rotation = rotation(3, &mut StdRng::seed_from_u64(5));
        let (now, client) = (Instant::now(), IpAddr::from([192, 0, 2, 7]));
        let own = rotation.of(client, &[], now).unwrap();
        rotation.failed(own, suspect_until(now, Duration::from_secs(5)));
        let other = rotation.of(client, &[own], now).unwrap();
        assert_ne!(other, own);
        assert_eq!(rotation.of(client, &[], now), Some(other));
        assert_eq!(rotation.of(client, &[], now + Duration::from_secs(6)), Some(own));
        let all: Vec<Ipv4Addr> = (1..=3).map(address).collect();
        assert_eq!(rotation.of(client, &all, now), None);
    }

    #[test]
    fn no_backend_is_no_answer() {
        assert_eq!(Rotation::default().next(&[], Instant::now(), &mut StdRng::seed_from_u64(3)), None);
    }

    proptest! {
        #[test]
        fn each_is_tried_once_and_only_members_of_the_set(
            sets in proptest::collection::vec(proptest::collection::btree_set(1u8..20, 0..10), 1..6),
            picks in 0usize..30, seed: u64,
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut rotation = Rotation::default();
            let now = Instant::now();
            for set in sets {
                rotation.set(set.iter().copied().map(address), &mut rng);
                for _ in 0..picks {
                    let one = rotation.next(&[], now, &mut rng);
                    prop_assert!(one.is_none_or(|a| set.contains(&a.octets()[3])));
                    if let Some(a) = one && rng.random_bool(0.3) {
                        rotation.failed(a, suspect_until(now, Duration::from_secs(1)));
                    }
                }
                let mut tried = Vec::new();
                while let Some(one) = rotation.next(&tried, now, &mut rng) {
                    prop_assert!(!tried.contains(&one));
                    tried.push(one);
                }
                prop_assert_eq!(tried.len(), set.len());
            }
        }
    }
}
