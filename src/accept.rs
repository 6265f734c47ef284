//! What servers do with connections before they know who has opened them: accept them, bound them, say what was refused.

mod limiter;
mod refusals;

pub use limiter::{ConnectionLimiter, Permit, client_key};
pub use refusals::Refusals;

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Pause after a failed `accept`: while the process is out of file descriptors, the connection stays in the backlog, and the next attempt
/// fails at once.
const RETRY: Duration = Duration::from_millis(100);
/// Probes without an answer, after which the kernel ends a connection.
const PROBES: u32 = 4;

/// A socket that accepts.
pub trait Listener: Send + Sync {
    type Stream;
    /// Who is at the other end; nothing for a unix socket.
    type From;

    fn accept_one(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::From)>> + Send;
}

/// For a server that is started again on the same socket.
impl<L: Listener> Listener for Arc<L> {
    type Stream = L::Stream;
    type From = L::From;

    async fn accept_one(&self) -> io::Result<(L::Stream, L::From)> {
        (**self).accept_one().await
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use tokio::time::Instant;

    /// Gives what is scripted, and then waits.
    struct ScriptedListener(Mutex<VecDeque<Result<u8, i32>>>);

    impl Listener for ScriptedListener {
        type Stream = u8;
        type From = ();

        async fn accept_one(&self) -> io::Result<(u8, ())> {
            let next = self.0.lock().unwrap().pop_front();
            match next {
                Some(Ok(stream)) => Ok((stream, ())),
                Some(Err(number)) => Err(io::Error::from_raw_os_error(number)),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_accept_is_tried_again_after_a_pause_and_ends_nothing() {
        // EMFILE and ENFILE: there is no descriptor; ECONNABORTED: the client went away.
        let script = [Ok(1), Err(24), Err(23), Err(24), Ok(2), Err(103), Ok(3)];
        let listener = ScriptedListener(Mutex::new(script.into()));
        let (stop, mut served) = (CancellationToken::new(), Vec::new());
        let begun = Instant::now();
        let accepting = accept_each(listener, "a test", &stop, |stream, ()| {
            served.push((stream, begun.elapsed()));
            if stream == 3 {
                stop.cancel();
            }
        });
        tokio::time::timeout(Duration::from_mins(1), accepting).await.expect("it ends when it is stopped");
        assert_eq!(served, [(1, Duration::ZERO), (2, 3 * RETRY), (3, 4 * RETRY)]);
    }
}
