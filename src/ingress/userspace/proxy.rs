//! One TCP connection: finds a backend that accepts and copies bytes in both directions until both ends have closed.
//!
//! A connection is not affected by the removal of its task from the backends: as long as the task's process lives, bytes are
//! copied. The port sends new connections elsewhere from that moment; once all nodes do so, the container gets its stop signal
//! and grace period, so a server that finishes its open requests loses none. Connections that are still open when the process
//! exits are closed or reset by the container's kernel, which is passed on to the client as it is.

use super::port_state::PortShared;
use crate::accept::keep_alive;
use crate::ingress::waiting::RETRY;
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tracing::debug;

/// Bytes buffered in each direction.
const BUFFER: usize = 16 * 1024;

/// Carries `client` to a backend. Returns when both directions are closed, either end is reset, the client loses the right to the
/// port, or the daemon shuts down.
pub(super) async fn carry(mut client: TcpStream, peer: SocketAddr, shared: &PortShared) {
    let ended = async {
        tokio::select! {
            () = shared.lost_right(peer.ip()) => "the source is no longer in the port's allow list",
            () = shared.shutdown.cancelled() => "the daemon shuts down",
        }
    };
    tokio::pin!(ended);
    let connected = tokio::select! {
        connected = connect_or_wait(&client, peer.ip(), shared) => connected,
        _ = &mut ended => return reset_on_close(&client),
    };
    let Some(mut upstream) = connected else {
        shared.counters.errors.fetch_add(1, Ordering::Relaxed);
        debug!(%peer, "no backend accepts");
        return reset_on_close(&client);
    };
    for stream in [&client, &upstream] {
        if let Err(error) = set_options(stream, shared.settings.keepalive) {
            debug!(%peer, %error, "socket options not set");
        }
    }
    let copied = tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => copied,
        why = &mut ended => Err(io::Error::other(why)),
    };
    if let Err(error) = copied {
        // A reset must stay a reset on the other side: an orderly close would mean that all bytes arrived.
        debug!(%peer, %error, "connection broke");
        reset_on_close(&client);
        reset_on_close(&upstream);
    }
}

/// Connects to a backend; where the service may have no task, as soon as one accepts.
async fn connect_or_wait(client: &TcpStream, peer: IpAddr, shared: &PortShared) -> Option<TcpStream> {
    if let Some(connected) = connect(peer, shared).await {
        return Some(connected);
    }
    let _waiting = shared.wait()?;
    let until = Instant::now() + shared.settings.hold;
    while Instant::now() < until && !is_gone(client) {
        // Before the attempt: a change that comes meanwhile is not missed.
        let rerouted = shared.rerouted.notified();
        if let Some(connected) = connect(peer, shared).await {
            return Some(connected);
        }
        tokio::select! {
            () = rerouted => {}
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    debug!(%peer, "no task came in time for the connection that waited");
    None
}

/// Whether the client has closed or reset its connection, and sent nothing before.
fn is_gone(client: &TcpStream) -> bool {
    match SockRef::from(client).peek(&mut [std::mem::MaybeUninit::uninit()]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}

/// Connects to the first backend that accepts; each is tried once.
async fn connect(client: IpAddr, shared: &PortShared) -> Option<TcpStream> {
    let mut tried: Vec<Ipv4Addr> = Vec::new();
    while let Some((source, backend)) = shared.select_backend(client, &tried) {
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

fn set_options(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Detects ends that vanished without closing; their connections would stay open for ever.
    keep_alive(stream, keepalive)
}

/// Makes the close of this socket send a reset.
pub(super) fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is closed already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
