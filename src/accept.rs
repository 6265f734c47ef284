//! What servers do with connections before they know who has opened them: accept them, bound them, say what was refused.

mod limiter;
mod refusals;

pub use limiter::{ConnectionLimiter, Permit, client_key};
pub use refusals::Refusals;

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Pause after a failed `accept`: while the process is out of file descriptors, the connection stays in the backlog, and the next attempt
/// fails at once.
const RETRY: Duration = Duration::from_millis(100);
/// Probes without an answer, after which the kernel ends a connection.
const PROBES: u32 = 4;

/// A socket that accepts.
pub trait Listener {
    type Stream;
    /// Who is at the other end; nothing for a unix socket.
    type From;

    fn accept_one(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::From)>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type From = SocketAddr;

    async fn accept_one(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.accept().await
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    type From = ();

    async fn accept_one(&self) -> io::Result<(UnixStream, ())> {
        Ok((self.accept().await?.0, ()))
    }
}

/// Gives each connection of a listener to `serve`, which must not block, until stopped. `server` names the listener in the log.
pub async fn accept_each<L: Listener>(
    listener: L,
    server: &str,
    stop: &CancellationToken,
    mut serve: impl FnMut(L::Stream, L::From),
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept_one() => accepted,
        };
        match accepted {
            Ok((stream, from)) => serve(stream, from),
            Err(error) => {
                tracing::warn!(%error, "{server} cannot accept a connection; trying again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Has the kernel ask the other end for a sign of life after `idle` without a byte, then in each quarter of that, and end the
/// connection after four times without an answer: a host that lost power closes nothing. Of a listener: for its connections.
///
/// # Errors
/// The kernel refuses the option.
pub fn keep_alive(socket: &impl AsFd, idle: Duration) -> io::Result<()> {
    let probes = TcpKeepalive::new().with_time(idle).with_interval(idle / PROBES).with_retries(PROBES);
    SockRef::from(socket).set_tcp_keepalive(&probes)
}
