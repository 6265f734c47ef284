//! Bounds of what a client may use, from the settings of the node.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::time::Duration;

/// What a client may use, and who is no client but a proxy in front.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpLimits {
    /// Open connections of one client; 0: as many as there may be in all.
    pub client_connections: u32,
    /// From the connection, or the end of an answer's idle time, to the end of a head; the same for the handshake of TLS.
    pub head_ms: u64,
    /// A connection without a request is closed after this time.
    pub idle_ms: u64,
    /// Time for a body, in addition to that of its bytes at [`BODY_RATE`]; a body of unknown length may be silent for so long.
    pub body_ms: u64,
    /// Connections from there begin with a PROXY header, which has the client's address.
    pub proxy_protocol: Vec<IpNet>,
    /// What these say of the client in `X-Forwarded-For` is true.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            client_connections: 1024,
            head_ms: 20_000,
            idle_ms: 60_000,
            body_ms: 60_000,
            proxy_protocol: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

/// Bytes of a body in a second that are not slow.
pub(super) const BODY_RATE: u64 = 500;
/// Bytes of a head, with the request line.
pub(super) const MOST_HEAD: usize = 64 << 10;

impl HttpLimits {
    pub(super) fn head(&self) -> Duration {
        Duration::from_millis(self.head_ms)
    }
    pub(super) fn idle(&self) -> Duration {
        Duration::from_millis(self.idle_ms)
    }
    pub(super) fn begins_with_proxy_header(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.iter().any(|net| net.contains(&peer))
    }
    pub(super) fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }
}
