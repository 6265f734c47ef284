//! How much of something each client holds now: connections, requests in flight.

use crate::accept::client_key;
use crate::sync::lock;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// Counts by client; a client that holds nothing has no entry.
#[derive(Default, Debug)]
pub(super) struct HeldByClient(Mutex<HashMap<IpAddr, u32>>);

/// One that a client holds until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    of: Arc<HeldByClient>,
    client: IpAddr,
}

impl HeldByClient {
    /// One more for the client, unless it holds `most` (0: no bound).
    pub fn hold(self: &Arc<Self>, client: IpAddr, most: u32) -> Option<Held> {
        let client = client_key(client);
        let mut counts = lock(&self.0);
        let count = counts.entry(client).or_default();
        if most > 0 && *count >= most {
            return None;
        }
        *count += 1;
        Some(Held { of: self.clone(), client })
    }
}

#[cfg(test)]
impl HeldByClient {
    pub fn holds(&self, client: IpAddr) -> u32 {
        lock(&self.0).get(&client_key(client)).copied().unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = lock(&self.of.0);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}

#[test]
fn a_client_holds_as_many_as_it_may_and_others_are_not_affected() {
    let held = Arc::<HeldByClient>::default();
    let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse::<IpAddr>().unwrap());
    let first = held.hold(one, 2);
    let second = held.hold(one, 2);
    assert!(first.is_some() && second.is_some() && held.hold(one, 2).is_none() && held.hold(other, 2).is_some());
    assert!(held.hold(one, 0).is_some(), "without a bound");
    drop(first);
    assert!(held.hold(one, 2).is_some());
    drop(second);
    assert!(lock(&held.0).is_empty());
}
