//! A connection to a task on which an upgrade is asked for.
//!
//! pingora ends such a connection at once if the answer is there before it has noted that the request has no body: it takes that note, which
//! is in a queue, for the end of what the client says. Both wait at the same moment, and one of them is drawn. So the answer is held back
//! here for a few turns after each write: the note is taken first.

use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// One turn is enough, unless the runtime makes the task that queues the note wait.
const TURNS: u8 = 3;

/// The connection.
#[derive(Debug)]
pub(super) struct UpgradeStream {
    inner: TcpStream,
    /// Turns that reads still wait for.
    turns: u8,
    /// Time for the answer. What follows an upgrade may be silent for as long as it likes.
    answer: Option<Pin<Box<Sleep>>>,
}

impl UpgradeStream {
    pub fn new(inner: TcpStream, answer: Option<Duration>) -> Self {
        Self { inner, turns: TURNS, answer: answer.map(|limit| Box::pin(tokio::time::sleep(limit))) }
    }
}

impl VirtualSocket for UpgradeStream {
    fn set_socket_option(&self, option: VirtualSockOpt) -> io::Result<()> {
        match option {
            VirtualSockOpt::NoDelay => self.inner.set_nodelay(true),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for UpgradeStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turns > 0 {
            self.turns -= 1;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        match &mut self.answer {
            Some(limit) if read.is_pending() => limit.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            _ => {
                self.answer = None;
                read
            }
        }
    }
}

impl AsyncWrite for UpgradeStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.turns = TURNS;
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
