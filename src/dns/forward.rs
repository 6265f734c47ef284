//! Names outside the cluster: queries upstream resolvers over UDP, and over TCP after a truncated answer. The next resolver is
//! asked as soon as one fails, or after a pause while the first may still answer. Bounded in time and size; the caller bounds
//! how many run concurrently. Has no cache: resolvers do.

use super::counts::{DnsCounts, ResolverFailure};
use super::message::DnsQuery;
use super::resolv::Resolv;
use super::response;
use super::upstreams::{RankedUpstream, UpstreamHealth};
use crate::datapath::Sockets;
use crate::sync::lock;
use futures_util::stream::{FuturesUnordered, StreamExt};
use rand::Rng;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::debug;

/// Most resolvers that are queried for one name, as in stub resolvers.
const MAX_UPSTREAMS: usize = 3;
/// Longest answer over UDP that is read, in bytes; longer ones are fetched over TCP.
const MAX_DATAGRAM: usize = 4096;
/// Time after which the next resolver is asked as well. Most resolvers answer sooner, also what they have to look up.
const PAUSE: Duration = Duration::from_millis(200);
/// The whole of a query, in time-outs of one resolver. Stub resolvers retry after 5 s.
const DEADLINE: u32 = 3;

/// Client of the host's resolvers.
pub struct Forwarder {
    queries: Arc<UpstreamQueries>,
    resolv: Resolv,
}

/// What one query to one resolver needs; shared with tests of demoted resolvers, which outlive the query they copy.
struct UpstreamQueries {
    sockets: Arc<dyn Sockets>,
    timeout: Duration,
    health: Mutex<UpstreamHealth>,
    counts: Arc<DnsCounts>,
}

impl Forwarder {
    /// Queries through `sockets` the resolvers of the file `resolv_conf`, if a query names no others. After `timeout` without an
    /// answer a resolver counts as failed; a late answer is taken until three times that.
    pub fn new(sockets: Arc<dyn Sockets>, resolv_conf: PathBuf, timeout: Duration, counts: Arc<DnsCounts>) -> Self {
        let queries = UpstreamQueries { sockets, timeout, health: Mutex::default(), counts };
        Self { queries: Arc::new(queries), resolv: Resolv::new(resolv_conf) }
    }

    /// Returns a resolver's answer. `None` if none answered, or all with an error of their own (SERVFAIL, REFUSED): the client is
    /// answered SERVFAIL then, whatever the errors were, so that its queries for A and for AAAA have one result. `own` are the
    /// client's own resolvers; empty: the host's. Addresses that are `excluded` (our gateways) are not queried.
    pub async fn query(&self, query: &DnsQuery, own: &[IpAddr], excluded: impl Fn(IpAddr) -> bool) -> Option<Vec<u8>> {
        let upstreams = if own.is_empty() { self.resolv.nameservers() } else { own.to_vec() };
        let upstreams = upstreams.into_iter().filter(|upstream| !excluded(*upstream)).take(MAX_UPSTREAMS);
        let queries = &self.queries;
        let order = lock(&queries.health).order(upstreams, Instant::now());
        for upstream in order.tests {
            let (queries, packet) = (Arc::clone(queries), query.upstream_query(rand::rng().random()));
            // Ends by itself at the time-out; at most one per resolver and two seconds.
            tokio::spawn(async move { queries.ask(upstream, &packet, Instant::now() + queries.timeout).await });
        }
        queries.race(query, &order.resolvers).await
    }
}

impl UpstreamQueries {
    /// Asks the resolvers one after the other, and takes the first good answer of any. That a name does not exist is believed
    /// of one only when those of lower rank have had their time: they may know more.
    async fn race(&self, query: &DnsQuery, resolvers: &[RankedUpstream]) -> Option<Vec<u8>> {
        if resolvers.is_empty() {
            return None;
        }
        let began = Instant::now();
        let deadline = began + self.timeout * DEADLINE;
        // The first one is asked again in the end: a datagram may have been lost.
        let mut waiting = resolvers.iter().copied().enumerate().chain(resolvers.first().map(|first| (0, *first)));
        let rounds = resolvers.len();
        let (mut running, mut begun) = (FuturesUnordered::new(), 0);
        let mut open: Vec<(usize, RankedUpstream)> = Vec::new();
        let mut heard = BTreeSet::new();
        let mut next_start = began;
        let mut negative: Option<(usize, RankedUpstream, Vec<u8>)> = None;
        loop {
            if let Some((index, of, answer)) = negative.take() {
                let knows_more =
                    |other: &RankedUpstream| other.may_answer && other.rank < of.rank && !heard.contains(&other.rank);
                let silent = began.elapsed() >= self.timeout;
                if silent || !resolvers.iter().any(knows_more) {
                    self.passed_over(&open, index, silent.then_some(of.rank));
                    return Some(answer);
                }
                if begun < rounds {
                    // The one that is waited for is asked at once.
                    next_start = Instant::now();
                }
                negative = Some((index, of, answer));
            }
            if Instant::now() >= next_start
                && let Some((index, upstream)) = waiting.next()
            {
                begun += 1;
                open.push((index, upstream));
                let packet = query.upstream_query(rand::rng().random());
                running.push(async move { (index, upstream, self.ask(upstream.address, &packet, deadline).await) });
                next_start = if begun < rounds { Instant::now() + PAUSE.min(self.timeout) } else { began + self.timeout };
                if begun > rounds {
                    next_start = deadline;
                }
                continue;
            }
            let wake = if negative.is_some() { next_start.min(began + self.timeout) } else { next_start };
            tokio::select! {
                Some((index, upstream, result)) = running.next() => {
                    open.retain(|(other, _)| *other != index);
                    heard.insert(upstream.rank);
                    match result {
                        Ok(answer) if !query.is_failure(&answer) => {
                            if response::is_negative(&answer) {
                                if negative.as_ref().is_none_or(|(_, best, _)| upstream.rank < best.rank) {
                                    negative = Some((index, upstream, answer));
                                }
                                continue;
                            }
                            self.passed_over(&open, index, None);
                            return Some(answer);
                        }
                        Ok(answer) => {
                            let code = response::code(&answer).map(response::code_text).unwrap_or_default();
                            debug!(upstream = %upstream.address, %code, name = query.name(), "resolver cannot answer");
                        }
                        Err(error) => debug!(upstream = %upstream.address, %error, name = query.name(), "resolver did not answer"),
                    }
                    // The next one is asked at once.
                    if begun < rounds {
                        next_start = Instant::now();
                    } else if running.is_empty() && negative.is_none() {
                        return None;
                    }
                }
                () = sleep_until(wake.min(deadline)) => {
                    if Instant::now() >= deadline {
                        return negative.map(|(_, _, answer)| answer);
                    }
                }
            }
        }
    }

    /// Remembers the resolvers that were asked before the one at `index` and have not answered yet: as slow; after the time-out as
    /// silent, and with them those below the rank `waited`, which were waited for.
    fn passed_over(&self, open: &[(usize, RankedUpstream)], index: usize, waited: Option<usize>) {
        let mut health = lock(&self.health);
        for (_, upstream) in open.iter().filter(|(other, of)| *other < index || waited.is_some_and(|rank| of.rank < rank)) {
            self.counts.resolver_failed(upstream.address, ResolverFailure::Slow);
            if waited.is_some() {
                health.failed(upstream.address, Instant::now());
            } else {
                health.slow(upstream.address, Instant::now());
            }
        }
    }

    /// One query to one resolver until the deadline. Remembers whether it answered.
    async fn ask(&self, upstream: IpAddr, packet: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        let address = SocketAddr::new(upstream, super::PORT);
        let mut exchange = std::pin::pin!(self.exchange(address, packet, deadline));
        let due = Instant::now() + self.timeout;
        let result = if let Ok(result) = timeout_at(due.min(deadline), &mut exchange).await {
            result
        } else {
            self.failed(upstream, ResolverFailure::Timeout);
            timeout_at(deadline, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        match &result {
            Ok(answer) => {
                lock(&self.health).answered(upstream);
                match response::code(answer) {
                    Some(2) => self.counts.resolver_failed(upstream, ResolverFailure::ServFail),
                    Some(5) => self.counts.resolver_failed(upstream, ResolverFailure::Refused),
                    _ => {}
                }
            }
            // Of this process or host, not of the resolver: no descriptors, no memory.
            Err(error) if is_local(error) => self.counts.resolver_failed(upstream, ResolverFailure::Local),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => self.failed(upstream, ResolverFailure::Unreachable),
        }
        result
    }

    fn failed(&self, upstream: IpAddr, failure: ResolverFailure) {
        self.counts.resolver_failed(upstream, failure);
        lock(&self.health).failed(upstream, Instant::now());
    }

    async fn exchange(&self, upstream: SocketAddr, packet: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
        let received = self.over_udp(upstream, packet).await?;
        if !response::truncated(&received) {
            return Ok(received);
        }
        // If the resolver does not serve TCP, the truncated answer is better than none.
        let limit = deadline.min(Instant::now() + self.timeout);
        Ok(timeout_at(limit, self.over_tcp(upstream, packet)).await.ok().and_then(Result::ok).unwrap_or(received))
    }

    async fn over_udp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        // A new socket for each query: the kernel draws a random port, and connected it receives only the resolver's packets.
        let socket = tokio::net::UdpSocket::from_std(self.sockets.udp(unspecified(upstream))?)?;
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; MAX_DATAGRAM + 1];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if !response::answers(&buffer[..length], query) {
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
        let mut received = vec![0; usize::from(length)];
        stream.read_exact(&mut received).await?;
        if response::answers(&received, query) { Ok(received) } else { Err(io::ErrorKind::InvalidData.into()) }
    }
}

/// Whether a socket failed for want of descriptors or memory.
fn is_local(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::AGAIN))
}

/// The unspecified address and port of the same family.
fn unspecified(upstream: SocketAddr) -> SocketAddr {
    match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}
