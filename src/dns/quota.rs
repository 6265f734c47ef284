//! Bounds of concurrent work: in total, and for one client.

use crate::sync::lock;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Counts permits and refuses them beyond the bounds.
#[derive(Debug)]
pub struct Quota {
    most: usize,
    most_per_client: usize,
    counts: Mutex<QuotaCounts>,
}

#[derive(Default, Debug)]
struct QuotaCounts {
    total: usize,
    by_client: BTreeMap<IpAddr, usize>,
}

/// The bound that is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QuotaBound {
    Client,
    Total,
}

/// Permission for one unit of work, released when dropped.
#[derive(Debug)]
pub struct QuotaPermit {
    quota: Arc<Quota>,
    client: IpAddr,
}

impl Quota {
    /// At most `most` permits in total and `most_per_client` for one client.
    #[must_use]
    pub fn new(most: usize, most_per_client: usize) -> Arc<Self> {
        Arc::new(Self { most, most_per_client, counts: Mutex::default() })
    }

    /// Takes a permit for this client.
    ///
    /// # Errors
    /// The bound that is reached.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Result<QuotaPermit, QuotaBound> {
        let mut counts = lock(&self.counts);
        let own = counts.by_client.get(&client).copied().unwrap_or(0);
        if own >= self.most_per_client {
            return Err(QuotaBound::Client);
        }
        if counts.total >= self.most {
            return Err(QuotaBound::Total);
        }
        counts.total += 1;
        counts.by_client.insert(client, own + 1);
        Ok(QuotaPermit { quota: Arc::clone(self), client })
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        let mut counts = lock(&self.quota.counts);
        counts.total -= 1;
        match counts.by_client.get_mut(&self.client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_cannot_take_all_permits_and_dropped_ones_are_free_again() {
        let quota = Quota::new(3, 2);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = [quota.take(a), quota.take(a)];
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(quota.take(a).err(), Some(QuotaBound::Client));
        let other = quota.take(b);
        assert!(other.is_ok());
        assert_eq!(quota.take(b).err(), Some(QuotaBound::Total));
        drop((held, other));
        assert!(quota.counts.lock().unwrap().by_client.is_empty());
        assert!(quota.take(a).is_ok());
    }
}
