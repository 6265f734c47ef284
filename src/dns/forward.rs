//! Foreign names: asks upstream resolvers, one after the other, UDP first and TCP when an answer was cut. Bounded in time
//! (each resolver) and size; the number under way is bounded by the caller. Keeps no cache: resolvers do.

use super::message::{self, Request};
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

/// Resolvers asked at most for one question, as stub resolvers do.
const MAX_UPSTREAMS: usize = 3;
/// Longest answer over UDP that is read, in bytes; longer ones come over TCP.
const MAX_DATAGRAM: usize = 4096;

/// Asks the world.
pub struct Forwarder {
    sockets: Arc<dyn Sockets>,
    resolv: Resolv,
    timeout: Duration,
}

impl Forwarder {
    /// Asks through `sockets`, those of `resolv_conf` unless told otherwise, each for at most `timeout`.
    pub fn new(sockets: Arc<dyn Sockets>, resolv_conf: PathBuf, timeout: Duration) -> Self {
        Self { sockets, resolv: Resolv::new(resolv_conf), timeout }
    }

    /// The answer for the client, at most `limit` bytes: a resolver's, or SERVFAIL if none gave one. `skip` are
    /// addresses that must not be asked (our own).
    pub async fn ask(&self, request: &Request, own: &[IpAddr], skip: impl Fn(IpAddr) -> bool, limit: usize) -> Vec<u8> {
        let upstreams = if own.is_empty() { self.resolv.nameservers() } else { own.to_vec() };
        let mut last = None;
        for upstream in upstreams.into_iter().filter(|upstream| !skip(*upstream)).take(MAX_UPSTREAMS) {
            let Some(query) = request.outward(rand::rng().random()) else { break };
            match self.ask_one(SocketAddr::new(upstream, super::PORT), &query).await {
                Ok(response) if !message::worth_asking_on(&response) => return request.inward(response, limit),
                Ok(response) => last = Some(response),
                Err(error) => debug!(%upstream, %error, name = %request.query().name(), "resolver did not answer"),
            }
        }
        last.map_or_else(|| request.failed(), |response| request.inward(response, limit))
    }

    async fn ask_one(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let response = self.within(self.over_udp(upstream, query)).await?;
        if !message::truncated(&response) {
            return Ok(response);
        }
        // A resolver without TCP still gave us something.
        Ok(self.within(self.over_tcp(upstream, query)).await.unwrap_or(response))
    }

    async fn within<T>(&self, attempt: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        timeout(self.timeout, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    async fn over_udp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        // A fresh socket for each question: the kernel draws its port, and only the resolver's packets get in.
        let socket = tokio::net::UdpSocket::from_std(self.sockets.udp(any(upstream))?)?;
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
        let mut stream = self.sockets.stream(any(upstream))?.connect(upstream).await?;
        let length = u16::try_from(query.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
        let length = stream.read_u16().await?;
        let mut response = vec![0; usize::from(length)];
        stream.read_exact(&mut response).await?;
        if message::answers(&response, query) { Ok(response) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Any address and port of the same family.
fn any(upstream: SocketAddr) -> SocketAddr {
    match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
