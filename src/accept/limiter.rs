//! How many unauthenticated connections may be open at a time, in all and per source. A permit is returned when it is
//! dropped.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

/// Counts connections that have not shown a certificate.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter {
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    per_source: usize,
    in_all: usize,
}

/// The right to keep one connection open.
#[derive(Debug)]
pub struct Permit {
    limiter: ConnectionLimiter,
    source: IpAddr,
}

impl ConnectionLimiter {
    pub fn new(per_source: usize, in_all: usize) -> Self {
        Self { counts: Arc::default(), per_source, in_all }
    }

    /// A permit for one more connection from this address; `None` when a bound is reached.
    pub fn acquire(&self, from: IpAddr) -> Option<Permit> {
        let source = client_key(from);
        let mut counts = lock(&self.counts);
        if counts.values().sum::<usize>() >= self.in_all || counts.get(&source).is_some_and(|n| *n >= self.per_source) {
            return None;
        }
        *counts.entry(source).or_default() += 1;
        Some(Permit { limiter: self.clone(), source })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = lock(&self.limiter.counts);
        if let Some(n) = counts.get_mut(&self.source) {
            *n -= 1;
            if *n == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 host has to itself.
pub fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all() {
        let limiter = ConnectionLimiter::new(2, 3);
        let at = |text: &str| text.parse().unwrap();
        let first = limiter.acquire(at("2001:db8::1")).expect("free");
        let _second = limiter.acquire(at("2001:db8::2")).expect("free");
        assert!(limiter.acquire(at("2001:db8::3")).is_none(), "the same /64");
        let _third = limiter.acquire(at("10.0.0.1")).expect("free");
        assert!(limiter.acquire(at("10.0.0.2")).is_none(), "full");
        drop(first);
        assert!(limiter.acquire(at("10.0.0.2")).is_some());
        assert!(limiter.acquire(at("::ffff:10.0.0.1")).is_some(), "the same address as IPv4-mapped has one left");
    }
}
