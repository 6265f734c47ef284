//! Two byte streams joined: what one side sends, the other gets.

mod watched;

use crate::sync::lock;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

pub use watched::WatchedStream;

/// How long data of the client is still read after the reply has ended: closing earlier would reset the connection, and
/// the client could lose the reply.
pub const LINGER: Duration = Duration::from_secs(2);

/// How often it is seen whether a client that sends nothing more is still there.
const LOOK: Duration = Duration::from_millis(500);

/// Copies both ways until the server has closed its side, or the client both of its own: a server that has nothing to say would
/// not learn that, because the end of one direction is passed on as a half-close.
pub async fn splice(client: impl AsyncRead + AsyncWrite + Unpin, server: impl AsyncRead + AsyncWrite + Unpin) {
    let client = SharedStream(Arc::new(Mutex::new(client)));
    let (mut server_read, server_write) = tokio::io::split(server);
    let up = copy_to_end(client.clone(), server_write);
    let down = async {
        let mut client = client.clone();
        let _ = tokio::io::copy(&mut server_read, &mut client).await;
        let _ = client.shutdown().await;
    };
    tokio::pin!(up, down);
    tokio::select! {
        () = &mut down => { let _ = tokio::time::timeout(LINGER, up).await; }
        () = &mut up => tokio::select! {
            () = down => {}
            () = closed(client.clone()) => {}
        },
    }
}

/// Waits until nothing that is written reaches the other end any more: the kernel refuses even an empty write on a socket then. TLS does not
/// ask it, unless it is a [`WatchedStream`], whose flush does. Through the network that is seen a minute or two later: once the other
/// end, which has long forgotten the connection, answers a sign of life by a reset.
async fn closed(mut stream: impl AsyncWrite + Unpin) {
    loop {
        tokio::time::sleep(LOOK).await;
        let mut stream = Pin::new(&mut stream);
        let is_refused = poll_fn(|cx| {
            let written = matches!(stream.as_mut().poll_write(cx, &[]), Poll::Ready(Err(_)));
            Poll::Ready(written || matches!(stream.as_mut().poll_flush(cx), Poll::Ready(Err(_))))
        });
        if is_refused.await {
            return;
        }
    }
}

/// A stream that one task reads and writes in several places.
struct SharedStream<T>(Arc<Mutex<T>>);

impl<T> Clone for SharedStream<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for SharedStream<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for SharedStream<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_shutdown(cx)
    }
}

async fn copy_to_end(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _ = tokio::io::copy(&mut from, &mut to).await;
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_half_closed_client_still_gets_the_rest_of_the_reply() {
        let ((mut client, near), (far, mut server)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let joined = tokio::spawn(splice(near, far));
        client.write_all(b"input").await.expect("written");
        client.shutdown().await.expect("half-closed");
        let mut got = String::new();
        server.read_to_string(&mut got).await.expect("to the end");
        server.write_all(b"answer").await.expect("written");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("to the end");
        assert_eq!((got.as_str(), answer.as_str()), ("input", "answer"));
        joined.await.expect("it has ended");
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_the_connection_to_a_silent_server() {
        let (mut client, near) = tokio::net::UnixStream::pair().expect("a pair");
        let (far, mut server) = tokio::io::duplex(64);
        let joined = tokio::spawn(splice(near, far));
        client.write_all(b"input").await.expect("written");
        drop(client);
        let mut got = String::new();
        server.read_to_string(&mut got).await.expect("to the end");
        let ended = tokio::time::timeout(Duration::from_secs(10), joined).await;
        ended.expect("although the server has closed nothing").expect("no panic");
        server.write_all(b"answer").await.expect_err("no client reads it");
    }
}
