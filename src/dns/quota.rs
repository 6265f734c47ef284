//! How much of something is under way: in all, and by one asker.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what is under way and says no beyond the bounds.
#[derive(Debug)]
pub struct Quota {
    most: usize,
    most_each: usize,
    counts: Mutex<Counts>,
}

#[derive(Default, Debug)]
struct Counts {
    total: usize,
    each: BTreeMap<IpAddr, usize>,
}

/// One unit, given back when dropped.
#[derive(Debug)]
pub struct Ticket {
    quota: Arc<Quota>,
    asker: IpAddr,
}

impl Quota {
    /// At most `most` in all and `most_each` by one asker.
    #[must_use]
    pub fn new(most: usize, most_each: usize) -> Arc<Self> {
        Arc::new(Self { most, most_each, counts: Mutex::default() })
    }

    /// One unit for this asker, if there is one left.
    #[must_use]
    pub fn take(self: &Arc<Self>, asker: IpAddr) -> Option<Ticket> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.each.get(&asker).copied().unwrap_or(0);
        if counts.total >= self.most || own >= self.most_each {
            return None;
        }
        counts.total += 1;
        counts.each.insert(asker, own + 1);
        Some(Ticket { quota: Arc::clone(self), asker })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut counts = self.quota.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        match counts.each.get_mut(&self.asker) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                counts.each.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_cannot_take_what_the_others_need_and_all_comes_back() {
        let quota = Quota::new(3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = [quota.take(a), quota.take(a)];
        assert!(held.iter().all(Option::is_some));
        assert!(quota.take(a).is_none());
        let other = quota.take(b);
        assert!(other.is_some());
        assert!(quota.take(b).is_none(), "the total is reached");
        drop((held, other));
        assert!(quota.counts.lock().unwrap().each.is_empty());
        assert!(quota.take(a).is_some());
    }
}
