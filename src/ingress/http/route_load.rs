//! What a route has in flight on this node, and how often its clients ask. It outlives a change of the table.

use super::held::{Held, HeldByClient};
use super::rate_limit::RateLimit;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests in flight, in all and by client, and their rate.
#[derive(Default, Debug)]
pub(super) struct RouteLoad {
    in_flight: Arc<AtomicU64>,
    clients: Arc<HeldByClient>,
    pub rate: RateLimit,
}

/// A request in flight, until this is dropped.
#[derive(Debug)]
pub(super) struct RequestInFlight(Arc<AtomicU64>);

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl RouteLoad {
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One more, unless there are `most` (0: no bound).
    pub fn take(&self, most: u32) -> Option<RequestInFlight> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let taken = RequestInFlight(self.in_flight.clone());
        (most == 0 || before < u64::from(most)).then_some(taken)
    }

    /// One more of a client, unless it has `most`.
    pub fn hold(&self, client: IpAddr, most: u32) -> Option<Held> {
        self.clients.hold(client, most)
    }
}

#[test]
fn requests_in_flight_are_bounded_and_given_back() {
    let load = RouteLoad::default();
    let first = load.take(2);
    let second = load.take(2);
    assert!(first.is_some() && second.is_some() && load.take(2).is_none());
    assert_eq!(load.in_flight(), 2, "a refused one does not count");
    drop(first);
    assert!(load.take(2).is_some() && load.take(0).is_some());
}
