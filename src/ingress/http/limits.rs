//! Bounds of what a client may use, from the settings of the node.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};
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

/// What counts as one client: an IPv4 address, or the /64 that an IPv6 host has to itself.
pub(super) fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[test]
fn a_client_is_an_address_or_a_subnet() {
    for (address, key) in
        [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::")]
    {
        assert_eq!(client_key(address.parse().unwrap()), key.parse::<IpAddr>().unwrap());
    }
}
