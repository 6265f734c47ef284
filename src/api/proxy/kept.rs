//! A request of a connection, for the HTTP server behind: to that one the connection ends with the request, once it is answered. So the
//! next one is routed again, as if it came on a connection of its own.

use crate::http::ByteStream;
use axum::Router;
use axum::body::Body;
use bytes::{Buf as _, Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service as _;

/// Bytes read at once.
const PART: usize = 8 << 10;
/// Bytes of a next request that are read before this one is answered: enough to notice that the client has gone.
const AHEAD: usize = 16 << 10;

/// Has handlers answer the request that `read` begins with, of `length` bytes. Returns the stream and what was read behind the request, unless the connection is
/// over.
pub async fn answer_one<S: ByteStream + 'static>(
    stream: S,
    read: Bytes,
    length: usize,
    handlers: Router,
) -> Option<(S, BytesMut)> {
    let answered = Arc::new(AtomicBool::new(false));
    let (read, flags) = (BytesMut::from(read), answered.clone());
    let stream = OneRequest { stream, read, left: length, ended: false, answered, flushed: false, waits: None };
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (mut handlers, mark) = (handlers.clone(), MarkEnd(flags.clone()));
        async move { Ok::<_, std::convert::Infallible>(handlers.call(request).await?.map(|body| MarkedBody { body, _mark: mark })) }
    });
    let connection = hyper::server::conn::http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service);
    match connection.without_shutdown().await {
        Ok(parts) => parts.io.into_inner().rest(),
        Err(error) => {
            tracing::debug!(%error, "HTTP connection ended");
            None
        }
    }
}

/// A stream that ends behind its first request, when that is answered.
struct OneRequest<S> {
    stream: S,
    /// Read, and not passed on.
    read: BytesMut,
    /// Bytes of the request that are still to be passed on.
    left: usize,
    /// The client sends nothing more.
    ended: bool,
    answered: Arc<AtomicBool>,
    /// The whole answer is with the kernel.
    flushed: bool,
    /// Of the server that waits for more.
    waits: Option<Waker>,
}

impl<S: ByteStream> OneRequest<S> {
    /// What a next request is read from.
    fn rest(self) -> Option<(S, BytesMut)> {
        // A client that has closed its side may have sent a further request before.
        let may_follow = !self.ended || !self.read.is_empty();
        (self.left == 0 && may_follow && self.flushed).then_some((self.stream, self.read))
    }

    /// Reads more, or finds the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut part = [0; PART];
        let mut part = ReadBuf::new(&mut part);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut part))?;
        self.ended = part.filled().is_empty();
        self.read.extend_from_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<S: ByteStream> AsyncRead for OneRequest<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.left > 0 {
            if this.read.is_empty() && !this.ended {
                ready!(this.fill(cx))?;
            }
            let count = this.read.len().min(this.left).min(buf.remaining());
            buf.put_slice(&this.read[..count]);
            this.read.advance(count);
            this.left -= count;
            return Poll::Ready(Ok(()));
        }
        while !this.ended && !this.flushed && this.read.len() < AHEAD && this.fill(cx)?.is_ready() {}
        if this.ended || this.flushed {
            return Poll::Ready(Ok(()));
        }
        this.waits = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<S: ByteStream> AsyncWrite for OneRequest<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // The server flushes after each part, the last one included.
        self.flushed = self.answered.load(Ordering::Acquire);
        if self.flushed
            && let Some(waits) = self.waits.take()
        {
            waits.wake();
        }
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Says that the answer has ended, when it is dropped.
struct MarkEnd(Arc<AtomicBool>);

impl Drop for MarkEnd {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The body of an answer.
struct MarkedBody {
    body: Body,
    _mark: MarkEnd,
}

impl HttpBody for MarkedBody {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
