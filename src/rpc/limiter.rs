//! How many connections strangers may have at a time, in all and per source. A pass is given back when it is dropped.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts connections that have not shown a certificate.
#[derive(Clone, Debug)]
pub struct ConnectionLimiter {
    counts: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    per_source: usize,
    in_all: usize,
}

/// Held by a connection.
#[derive(Debug)]
pub struct Permit {
    gate: ConnectionLimiter,
    source: IpAddr,
}

impl ConnectionLimiter {
    /// With these bounds.
    pub fn new(per_source: usize, in_all: usize) -> Self {
        Self { counts: Arc::default(), per_source, in_all }
    }

    /// Lets one more in, or not.
    pub fn enter(&self, from: IpAddr) -> Option<Permit> {
        let source = source(from);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= self.in_all || counts.get(&source).is_some_and(|n| *n >= self.per_source) {
            return None;
        }
        *counts.entry(source).or_default() += 1;
        Some(Permit { gate: self.clone(), source })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.gate.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = counts.get_mut(&self.source) {
            *n -= 1;
            if *n == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// IPv6 hosts own a /64.
fn source(address: IpAddr) -> IpAddr {
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
        let gate = ConnectionLimiter::new(2, 3);
        let at = |text: &str| text.parse().unwrap();
        let first = gate.enter(at("2001:db8::1")).expect("free");
        let _second = gate.enter(at("2001:db8::2")).expect("free");
        assert!(gate.enter(at("2001:db8::3")).is_none(), "the same /64");
        let _third = gate.enter(at("10.0.0.1")).expect("free");
        assert!(gate.enter(at("10.0.0.2")).is_none(), "full");
        drop(first);
        assert!(gate.enter(at("10.0.0.2")).is_some());
        assert!(gate.enter(at("::ffff:10.0.0.1")).is_some(), "the same address in another spelling still has one left");
    }
}
