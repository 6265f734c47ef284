//! What the routes of a service have in flight on this node, whatever their hosts, and how often their clients ask. It outlives a change of
//! the table.

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
pub(super) struct RequestInFlight([Arc<AtomicU64>; 2]);

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        for counter in &self.0 {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl RouteLoad {
    /// One more, unless there are `most` (0: no bound). `of_route`: those of one host among them.
    pub fn take(&self, most: u32, of_route: &Arc<AtomicU64>) -> Option<RequestInFlight> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        of_route.fetch_add(1, Ordering::Relaxed);
        let taken = RequestInFlight([self.in_flight.clone(), of_route.clone()]);
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
    let [one, other] = [(); 2].map(|()| Arc::<AtomicU64>::default());
    let first = load.take(2, &one);
    let second = load.take(2, &other);
    assert!(first.is_some() && second.is_some() && load.take(2, &one).is_none());
    assert_eq!(load.in_flight.load(Ordering::Relaxed), 2, "a refused one does not count");
    assert_eq!(one.load(Ordering::Relaxed), 1);
    drop(first);
    assert_eq!(one.load(Ordering::Relaxed), 0);
    assert!(load.take(2, &one).is_some() && load.take(0, &one).is_some());
}
