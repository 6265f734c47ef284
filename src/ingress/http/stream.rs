//! A connection of a client as pingora takes it, from an accept loop of our own: a stream of pingora's that is made outside its
//! listeners has no buffers, which costs a send for each answer.

use super::progress;
use super::proxy_header::{ConnectionEnds, ProxyHeader, parse};
use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use futures_util::FutureExt as _;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID, UniqueIDType,
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream, ReadBuf};
use tokio::net::TcpStream;

/// As pingora's own listeners have it.
const WRITE_BUFFER: usize = 1460;
/// A record of TLS.
const RECORDS: usize = 16 << 10;
/// What is read at once before it is known what the client speaks: heads of requests are rarely longer.
const BEGINNING: usize = 4 << 10;

/// How long a client of an upgraded connection has to notice that it has ended.
const LINGER: Duration = Duration::from_secs(2);

/// How HTTP/2 begins where TLS has not agreed on it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection.
#[derive(Debug)]
pub(super) struct ClientStream {
    inner: BufStream<TcpStream>,
    /// Read before its time.
    ahead: BytesMut,
    digest: Arc<SocketDigest>,
}

impl ClientStream {
    /// `tls`: what is read are records of TLS, of which rustls asks for a part at a time.
    pub fn new(stream: TcpStream, peer: SocketAddr, tls: bool) -> Self {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        let _ = digest.peer_addr.set(Some(PeerAddress::Inet(peer)));
        let digest = Arc::new(digest);
        // Into a larger buffer than this one it reads at once.
        let inner = BufStream::with_capacity(if tls { RECORDS } else { 1 }, WRITE_BUFFER, stream);
        Self { inner, ahead: BytesMut::new(), digest }
    }

    /// Reads the PROXY header; from then on the connection is from the client that it names. `None`: it is the proxy's own.
    ///
    /// # Errors
    /// There is no such header.
    pub async fn take_proxy_header(&mut self) -> io::Result<Option<ConnectionEnds>> {
        loop {
            match parse(&self.ahead) {
                ProxyHeader::Incomplete => self.read_ahead().await?,
                ProxyHeader::Invalid => return Err(io::ErrorKind::InvalidData.into()),
                ProxyHeader::Complete { length, ends } => {
                    self.ahead.advance(length);
                    if let Some((client, to)) = ends {
                        let digest = SocketDigest::from_raw_fd(self.inner.get_ref().as_raw_fd());
                        let _ = digest.peer_addr.set(Some(PeerAddress::Inet(client)));
                        let _ = digest.local_addr.set(Some(PeerAddress::Inet(to)));
                        self.digest = Arc::new(digest);
                    }
                    return Ok(ends);
                }
            }
        }
    }

    /// Whether the client speaks HTTP/2 without having agreed on it; waits for as many bytes as that takes.
    pub async fn begins_with_http2(&mut self) -> io::Result<bool> {
        loop {
            let length = self.ahead.len().min(PREFACE.len());
            if self.ahead[..length] != PREFACE[..length] {
                return Ok(false);
            }
            if length == PREFACE.len() {
                return Ok(true);
            }
            self.read_ahead().await?;
        }
    }

    async fn read_ahead(&mut self) -> io::Result<()> {
        self.ahead.reserve(BEGINNING);
        if self.inner.read_buf(&mut self.ahead).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// What was read before its time, for a reader that takes it from here.
    pub fn take_ahead(&mut self) -> BytesMut {
        std::mem::take(&mut self.ahead)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        let _ = self.inner.flush().now_or_never();
        if progress::is_upgraded()
            && let Ok(socket) = socket2::SockRef::from(self.inner.get_ref()).try_clone()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(linger(socket));
        }
    }
}

/// Ends a connection whose client may still send: closed with bytes that are not read, the kernel resets it, and the last word of the
/// server may be lost on the way.
async fn linger(socket: socket2::Socket) {
    let _ = socket.shutdown(std::net::Shutdown::Write);
    if let Ok(mut stream) = TcpStream::from_std(socket.into()) {
        let _ = tokio::time::timeout(LINGER, tokio::io::copy(&mut stream, &mut tokio::io::sink())).await;
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(context, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..length]);
        self.ahead.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        let _ = self.inner.shutdown().await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.inner.get_ref().as_raw_fd()
    }
}

impl Ssl for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest::default())]
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<pingora::protocols::raw_connect::ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.digest.clone())
    }
}

#[async_trait]
impl Peek for ClientStream {
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        while self.ahead.len() < buffer.len() {
            self.read_ahead().await?;
        }
        buffer.copy_from_slice(&self.ahead[..buffer.len()]);
        Ok(true)
    }
}
