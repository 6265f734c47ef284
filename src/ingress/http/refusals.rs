//! Connections and requests that are cut or refused for what the client does, counted by reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HttpRefusal {
    /// Too many connections in all.
    Connections,
    /// Too many connections of one client.
    ClientConnections,
    /// A trusted source sent no PROXY header, or one that is not readable.
    ProxyHeader,
    /// No TLS, or not within its time.
    Handshake,
    /// The head of a request did not come within its time.
    SlowHead,
    /// The body of a request came too slowly.
    SlowBody,
    /// The client does not take its answer.
    SlowReader,
    /// A head with more bytes than there may be.
    HeadSize,
    /// The length of the body has more than one reading.
    Framing,
    /// Too many requests of one client in flight.
    ClientRequests,
    /// Too many requests to a service in flight.
    ServiceRequests,
    /// Requests of one client that come more often than the route allows.
    ClientRate,
}

impl HttpRefusal {
    const ALL: [Self; 12] = [
        Self::Connections,
        Self::ClientConnections,
        Self::ProxyHeader,
        Self::Handshake,
        Self::SlowHead,
        Self::SlowBody,
        Self::SlowReader,
        Self::HeadSize,
        Self::Framing,
        Self::ClientRequests,
        Self::ServiceRequests,
        Self::ClientRate,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ClientConnections => "client_connections",
            Self::ProxyHeader => "proxy_header",
            Self::Handshake => "handshake",
            Self::SlowHead => "slow_head",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::HeadSize => "head_size",
            Self::Framing => "framing",
            Self::ClientRequests => "client_requests",
            Self::ServiceRequests => "service_requests",
            Self::ClientRate => "client_rate",
        }
    }
}

/// Counters by reason.
#[derive(Default, Debug)]
pub(super) struct HttpRefusals([AtomicU64; HttpRefusal::ALL.len()]);

impl HttpRefusals {
    pub fn count(&self, reason: HttpRefusal) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// By the name of the reason, those without any too.
    pub fn read(&self) -> BTreeMap<String, u64> {
        let read = |reason: HttpRefusal| (reason.name().to_owned(), self.0[reason as usize].load(Ordering::Relaxed));
        HttpRefusal::ALL.into_iter().map(read).collect()
    }
}

#[test]
fn each_reason_has_a_counter_of_its_own() {
    let refusals = HttpRefusals::default();
    for (times, reason) in HttpRefusal::ALL.into_iter().enumerate() {
        (0..times).for_each(|_| refusals.count(reason));
    }
    let read = refusals.read();
    assert!(HttpRefusal::ALL.iter().enumerate().all(|(times, reason)| read[reason.name()] == times as u64), "{read:?}");
}
