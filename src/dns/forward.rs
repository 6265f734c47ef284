//! Names outside the cluster: queries upstream resolvers, one after the other, over UDP, and over TCP after a truncated
//! answer. Bounded in time (each resolver) and size; the caller bounds how many run concurrently. Has no cache: resolvers do.

use super::message::{self, DnsQuery};
use super::resolv::Resolv;
use crate::datapath::Sockets;
use rand::Rng;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tracing::debug;

/// Most resolvers that are queried for one name, as in stub resolvers.
const MAX_UPSTREAMS: usize = 3;
/// Longest answer over UDP that is read, in bytes; longer ones are fetched over TCP.
const MAX_DATAGRAM: usize = 4096;

/// Client of the host's resolvers.
pub struct Forwarder {
    sockets: Arc<dyn Sockets>,
    resolv: Resolv,
    timeout: Duration,
}

impl Forwarder {
    /// Queries through `sockets` the resolvers of the file `resolv_conf`, if a query names no others, each for at most `timeout`.
    pub fn new(sockets: Arc<dyn Sockets>, resolv_conf: PathBuf, timeout: Duration) -> Self {
        Self { sockets, resolv: Resolv::new(resolv_conf), timeout }
    }

    /// Returns the answer for the client, at most `limit` bytes: a resolver's, or SERVFAIL if none answered. `own` are the
    /// client's own resolvers; empty: the host's. Addresses that are `excluded` (our gateways) are not queried.
    pub async fn query(&self, query: &DnsQuery, own: &[IpAddr], excluded: impl Fn(IpAddr) -> bool, limit: usize) -> Vec<u8> {
        let upstreams = if own.is_empty() { self.resolv.nameservers() } else { own.to_vec() };
        let mut last = None;
        for upstream in upstreams.into_iter().filter(|upstream| !excluded(*upstream)).take(MAX_UPSTREAMS) {
            let Some(packet) = query.upstream_query(rand::rng().random()) else { break };
            match self.query_one(SocketAddr::new(upstream, super::PORT), &packet).await {
                Ok(response) if !message::is_server_failure(&response) => return query.client_answer(response, limit),
                Ok(response) => last = Some(response),
                Err(error) => debug!(%upstream, %error, name = %query.question().name(), "resolver did not answer"),
            }
        }
        last.map_or_else(|| query.servfail(), |response| query.client_answer(response, limit))
    }

    async fn query_one(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let response = self.within(self.over_udp(upstream, query)).await?;
        if !message::truncated(&response) {
            return Ok(response);
        }
        // If the resolver does not serve TCP, the truncated answer is better than none.
        Ok(self.within(self.over_tcp(upstream, query)).await.unwrap_or(response))
    }

    async fn within<T>(&self, attempt: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        timeout(self.timeout, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn over_udp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        // A new socket for each query: the kernel draws a random port, and connected it receives only the resolver's packets.
        let socket = tokio::net::UdpSocket::from_std(self.sockets.udp(unspecified(upstream))?)?;
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if !message::answers(&buffer[..length], query) {
                continue;
            }
            if length > MAX_DATAGRAM {
                buffer[2] |= 0x02;
            }
            buffer.truncate(length);
            return Ok(buffer);
        }
    }

    async fn over_tcp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.sockets.stream(unspecified(upstream))?.connect(upstream).await?;
        let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let length = stream.read_u16().await?;
        let mut response = vec![0; usize::from(length)];
        stream.read_exact(&mut response).await?;
        if message::answers(&response, query) { Ok(response) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// The unspecified address and port of the same family.
fn unspecified(upstream: SocketAddr) -> SocketAddr {
    match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
