//! A stream over TCP that says when its connection is gone, without sending anything.

use rustix::net::{SendFlags, send};
use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose flush fails once its TCP connection is gone. TLS would not tell: what writes nothing asks its connection nothing.
pub struct WatchedStream<S> {
    stream: S,
    socket: fn(&S) -> BorrowedFd<'_>,
}

impl<S> WatchedStream<S> {
    /// `socket` is the TCP socket that the stream uses.
    pub fn new(stream: S, socket: fn(&S) -> BorrowedFd<'_>) -> Self {
        Self { stream, socket }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // Sends no packet; the kernel refuses it on a connection that was reset or timed out.
        match send((self.socket)(&self.stream), &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::super::splice;
    use super::*;
    use std::os::fd::AsFd as _;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// As TLS: a write of nothing does nothing.
    struct Deaf(TcpStream);

    impl AsyncRead for Deaf {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if buf.is_empty() { Poll::Ready(Ok(0)) } else { Pin::new(&mut self.0).poll_write(cx, buf) }
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A client, and what a server splices to the far end.
    async fn spliced(watched: bool) -> (TcpStream, tokio::io::DuplexStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connected");
        let near = Deaf(listener.accept().await.expect("accepted").0);
        let (far, server) = tokio::io::duplex(64);
        let joined = if watched {
            tokio::spawn(splice(WatchedStream::new(near, |near| near.0.as_fd()), far))
        } else {
            tokio::spawn(splice(near, far))
        };
        (client, server, joined)
    }

    /// The client says that it sends no more, and is gone then.
    async fn abandon(mut client: TcpStream, server: &mut tokio::io::DuplexStream) {
        client.write_all(b"input").await.expect("written");
        client.shutdown().await.expect("half-closed");
        let mut got = String::new();
        server.read_to_string(&mut got).await.expect("to the end");
        client.set_zero_linger().expect("set");
        drop(client);
    }

    #[tokio::test]
    async fn a_connection_that_is_reset_after_its_half_close_ends_the_splice() {
        let (client, mut server, joined) = spliced(true).await;
        abandon(client, &mut server).await;
        tokio::time::timeout(Duration::from_secs(10), joined).await.expect("although the server is silent").expect("no panic");
        // What the splice sees without the watch: nothing.
        let (client, mut server, joined) = spliced(false).await;
        abandon(client, &mut server).await;
        tokio::time::timeout(Duration::from_secs(2), joined).await.expect_err("a stream that does not say is kept");
    }

    #[tokio::test]
    async fn a_client_that_only_half_closes_still_gets_the_reply() {
        let (mut client, mut server, joined) = spliced(true).await;
        client.write_all(b"input").await.expect("written");
        client.shutdown().await.expect("half-closed");
        tokio::time::sleep(Duration::from_millis(1200)).await;
        server.write_all(b"answer").await.expect("written");
        drop(server);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("to the end");
        assert_eq!(answer, "answer");
        joined.await.expect("it has ended");
    }
}
