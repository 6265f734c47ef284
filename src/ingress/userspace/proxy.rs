//! One connection: finds a backend that accepts and carries bytes both ways until both ends have closed.
//!
//! What a connection sees when its task goes: nothing as long as the task lives. The port sends it nothing new from the
//! moment that the task is no backend; then, once all nodes do so, the container gets its stop signal and its grace: a
//! server that finishes what it began loses nothing. What is still open when its process ends is closed (or reset) by the
//! container's kernel, and that goes to the client as it came.

use super::listener::Shared;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

/// Bytes buffered in each direction.
const BUFFER: usize = 16 * 1024;

/// Carries `client` to a backend. Ends when both directions are closed, either end is reset, or the daemon shuts down.
pub(super) async fn carry(mut client: TcpStream, peer: SocketAddr, shared: &Shared) {
    let found = tokio::select! {
        found = connect(peer.ip(), shared) => found,
        () = shared.shutdown.cancelled() => return reset(&client),
    };
    let Some(mut upstream) = found else {
        shared.counters.errors.fetch_add(1, Ordering::Relaxed);
        debug!(%peer, "no backend accepts");
        return reset(&client);
    };
    for stream in [&client, &upstream] {
        if let Err(error) = prepare(stream, shared.settings.keepalive) {
            debug!(%peer, %error, "socket options not set");
        }
    }
    let carried = tokio::select! {
        carried = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => carried,
        () = shared.shutdown.cancelled() => Err(io::Error::other("the daemon shuts down")),
    };
    if let Err(error) = carried {
        // What was a reset on one side shall be one on the other: an orderly end would say that all bytes came through.
        debug!(%peer, %error, "connection broke");
        reset(&client);
        reset(&upstream);
    }
}

/// A connection to the first backend that accepts; each is tried once.
async fn connect(client: IpAddr, shared: &Shared) -> Option<TcpStream> {
    let mut tried: Vec<Ipv4Addr> = Vec::new();
    while let Some((source, backend)) = shared.next(client, &tried) {
        let attempt = async { shared.mesh.stream(source)?.connect(backend).await };
        let result = timeout(shared.settings.connect_timeout, attempt).await;
        let SocketAddr::V4(address) = backend else { return None };
        match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => {
                shared.accepted(*address.ip());
                return Some(stream);
            }
            Err(error) => {
                debug!(%backend, %source, %error, "backend does not accept, trying the next");
                shared.failed(*address.ip());
                tried.push(*address.ip());
            }
        }
    }
    None
}

fn prepare(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Finds ends that vanished without a word, so that their connections do not stay for ever.
    let probes = TcpKeepalive::new().with_time(keepalive).with_interval(keepalive / 4).with_retries(4);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}

/// Closing it will send a reset.
pub(super) fn reset(stream: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
