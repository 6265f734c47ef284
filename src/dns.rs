//! Names: a name server at the gateway address of each network. `zone` and `records` turn the node's view into answers (pure),
//! `message` parses queries, `answer` encodes answers, `response` reads those of resolvers, `server` owns the sockets, `forward`
//! queries the host's resolvers for names outside the cluster in the order of `upstreams`, `reconcile` is the loop that keeps
//! sockets and records at the view.
//!
//! Knows nothing of containers beyond their addresses: a client is identified by its source address, which the mesh
//! namespace verifies.

pub mod answer;
pub mod counts;
pub mod forward;
pub mod message;
pub mod quota;
pub mod reconcile;
pub mod records;
pub mod resolv;
pub mod response;
pub mod server;
pub mod service_port;
pub mod upstreams;
pub mod zone;

pub use counts::{DnsCounts, DnsStatus};
pub use reconcile::{DnsChannels, run};

use std::path::PathBuf;
use std::time::Duration;

/// Settings of the name server.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// File that lists the host's resolvers; read again when it changes.
    pub resolv_conf: PathBuf,
    /// Time after which an upstream resolver counts as failed. An answer is waited for three times as long, which fits into the
    /// 5 s after which stub resolvers retry.
    pub timeout: Duration,
    /// Concurrent forwarded queries; further ones are answered SERVFAIL at once.
    pub max_in_flight: usize,
    /// Concurrent forwarded queries of one container, so that no container can use up all of them.
    pub max_per_client: usize,
    /// Concurrent TCP connections.
    pub max_connections: usize,
    /// Concurrent TCP connections of one container. Stub resolvers need one per question, for its duration.
    pub max_connections_per_client: usize,
    /// A TCP connection is closed after so long without a byte.
    pub idle: Duration,
    /// TTL of our own records, in seconds. Swarm's is 600, which lets clients use tasks that have ended. A task is stopped as
    /// soon as no name server returns it any more, so an answer must not be cached at all: another query costs one packet to
    /// this host.
    pub ttl: u32,
    /// Pause before a gateway address that could not be bound is tried again; the overlay adds the address at its own pace.
    pub retry: Duration,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            timeout: Duration::from_millis(1500),
            max_in_flight: 1024,
            max_per_client: 128,
            max_connections: 256,
            max_connections_per_client: 8,
            idle: Duration::from_secs(10),
            ttl: 0,
            retry: Duration::from_millis(100),
        }
    }
}

/// Port of name servers.
pub const PORT: u16 = 53;
