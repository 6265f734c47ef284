//! A connection to a task over HTTP/1, for one request at a time, and those that wait for their next one.

use super::answer_body::{self, AnswerBody, BodyPart};
use super::answer_head::{self, TaskAnswerHead};
use crate::model::TaskId;
use crate::sync::lock;
use bytes::{Bytes, BytesMut};
use pingora::http::Method;
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of the head of an answer.
const MOST_HEAD: usize = 1 << 20;
/// What is read at once while a head is waited for, and of a body.
const HEAD_BYTES: usize = 16 << 10;
const BODY_BYTES: usize = 64 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct TaskConnection {
    stream: TcpStream,
    /// Read, and not used yet.
    bytes: BytesMut,
    body: AnswerBody,
    /// For another request once the body has ended.
    kept: bool,
    /// It was used before.
    pub reused: bool,
}

impl TaskConnection {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, bytes: BytesMut::new(), body: AnswerBody::Ended, kept: false, reused: false }
    }

    /// Sends the head of a request, within `limit`.
    ///
    /// # Errors
    /// The task has closed the connection.
    pub async fn send(&mut self, head: &[u8], limit: Option<Duration>) -> Result<()> {
        self.kept = false;
        let sent = within(limit, ErrorType::WriteTimedout, self.stream.write_all(head)).await?;
        sent.or_err(ErrorType::WriteError, "sending the request").map_err(Error::into_up)
    }

    /// Reads the head of an answer, `limit` for each part of it. It may be one of several: see its status.
    ///
    /// # Errors
    /// The task has closed the connection, is silent, or speaks something else.
    pub async fn head(&mut self, method: &Method, limit: Option<Duration>) -> Result<TaskAnswerHead> {
        loop {
            let invalid = |why| Error::explain(ErrorType::InvalidHTTPHeader, why).into_up();
            if let Some(mut head) = answer_head::take(&mut self.bytes).map_err(invalid)? {
                (self.body, self.kept) = answer_body::of(&mut head, method).map_err(invalid)?;
                return Ok(head);
            }
            if self.bytes.len() > MOST_HEAD {
                return Err(invalid("the head of the answer is too long"));
            }
            if self.read(HEAD_BYTES, limit).await? == 0 {
                return Err(Error::explain(ErrorType::ConnectionClosed, "no answer").into_up());
            }
        }
    }

    /// The next part of the body, of which nothing was waited for; `None`: more must be read, or it has ended.
    ///
    /// # Errors
    /// The body is not what its head says.
    pub fn part_at_hand(&mut self) -> Result<Option<Bytes>> {
        match self.body.take(&mut self.bytes) {
            Ok(BodyPart::Bytes(part)) => Ok(Some(part)),
            Ok(BodyPart::Wait | BodyPart::End) => Ok(None),
            Err(why) => Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()),
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// The task has closed the connection before, or is silent.
    pub async fn part(&mut self, limit: Option<Duration>) -> Result<Option<Bytes>> {
        loop {
            if let Some(part) = self.part_at_hand()? {
                return Ok(Some(part));
            }
            if self.has_ended() {
                return Ok(None);
            }
            if self.read(BODY_BYTES, limit).await? == 0 {
                if self.body != AnswerBody::Connection {
                    return Err(Error::explain(ErrorType::ConnectionClosed, "a part of the answer is missing").into_up());
                }
                self.body = AnswerBody::Ended;
            }
        }
    }

    /// All of the answer was taken.
    pub fn has_ended(&self) -> bool {
        self.body == AnswerBody::Ended
    }

    /// It is known how much of the body is still to come.
    pub fn has_length(&self) -> bool {
        matches!(self.body, AnswerBody::Length(_))
    }

    async fn read(&mut self, most: usize, limit: Option<Duration>) -> Result<usize> {
        self.bytes.reserve(most);
        let read = within(limit, ErrorType::ReadTimedout, self.stream.read_buf(&mut self.bytes)).await?;
        read.or_err(ErrorType::ReadError, "reading the answer").map_err(Error::into_up)
    }

    /// Whether it may be kept for another request.
    fn is_reusable(&self) -> bool {
        self.kept && self.has_ended() && self.bytes.is_empty()
    }

    /// Whether the task has left it open, and has said nothing.
    fn is_silent(&self) -> bool {
        matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }
}

async fn within<T>(limit: Option<Duration>, late: ErrorType, work: impl Future<Output = T>) -> Result<T> {
    match limit {
        None => Ok(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.or_err(late, "the task is silent").map_err(Error::into_up),
    }
}

/// With the time since when each waits, the oldest first.
type WaitingConnections = HashMap<(TaskId, SocketAddr), Vec<(Instant, TaskConnection)>>;

/// Connections that wait, by task: an address may be another task's later.
#[derive(Debug)]
pub(super) struct TaskPool {
    waiting: Mutex<WaitingConnections>,
    /// Of each task.
    most: usize,
    /// Time that they wait at most.
    idle: Duration,
    /// None waits any more.
    closed: AtomicBool,
}

impl TaskPool {
    pub fn new(most: usize, idle: Duration) -> Self {
        Self { waiting: Mutex::default(), most, idle, closed: AtomicBool::new(false) }
    }

    /// The one that was used last, if it is still of use.
    pub fn take(&self, task: &TaskId, address: SocketAddr) -> Option<TaskConnection> {
        loop {
            let taken = {
                let mut waiting = lock(&self.waiting);
                waiting.get_mut(&(task.clone(), address))?.pop()
            };
            let (since, mut connection) = taken?;
            // Its task may close it just now.
            if since.elapsed() < self.idle && connection.is_silent() {
                connection.reused = true;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection, if it can be used again.
    pub fn give(&self, task: &TaskId, address: SocketAddr, mut connection: TaskConnection) {
        if connection.is_reusable() && !self.closed.load(Ordering::Relaxed) {
            if connection.bytes.capacity() > HEAD_BYTES {
                connection.bytes = BytesMut::new();
            }
            let mut waiting = lock(&self.waiting);
            let of_task = waiting.entry((task.clone(), address)).or_default();
            if of_task.len() < self.most {
                of_task.push((Instant::now(), connection));
            }
        }
    }

    /// Closes those that wait: a task that is to end may wait for its idle connections. From now on none is kept.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        lock(&self.waiting).clear();
    }

    /// Closes those that have waited too long; called once a second or so.
    pub fn sweep(&self) {
        let mut old = Vec::new();
        lock(&self.waiting).retain(|_, of_task| {
            let kept = of_task.partition_point(|(since, _)| since.elapsed() >= self.idle);
            old.extend(of_task.drain(..kept));
            !of_task.is_empty()
        });
        // Closed without the lock.
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Both ends of a connection.
    async fn pair() -> (TaskConnection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (TaskConnection::new(stream), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn connections_are_used_again_by_their_own_task_while_they_are_open() {
        let pool = TaskPool::new(1, Duration::from_mins(1));
        let (task, address) = (TaskId::from("t"), SocketAddr::from(([10, 0, 0, 1], 80)));
        let answered = async |wire: &[u8]| {
            let (mut connection, mut end) = pair().await;
            end.write_all(wire).await.unwrap();
            connection.head(&Method::GET, None).await.unwrap();
            while connection.part(None).await.unwrap().is_some() {}
            (connection, end)
        };
        let (connection, end) = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx").await;
        pool.give(&task, address, connection);
        assert!(pool.take(&"other".into(), address).is_none());
        let connection = pool.take(&task, address).unwrap();
        assert!(connection.reused && pool.take(&task, address).is_none());
        pool.give(&task, address, connection);
        drop(end);
        while pool.take(&task, address).map(|connection| pool.give(&task, address, connection)).is_some() {
            tokio::task::yield_now().await;
        }
        for wire in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxx"[..],
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx",
            b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
        ] {
            let (connection, _end) = answered(wire).await;
            pool.give(&task, address, connection);
            assert!(pool.take(&task, address).is_none(), "{}", String::from_utf8_lossy(wire));
        }
        let (connection, _end) = answered(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        pool.give(&task, address, connection);
        pool.close();
        let (late, _end) = answered(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        pool.give(&task, address, late);
        assert!(lock(&pool.waiting).is_empty());
        let old = TaskPool::new(1, Duration::ZERO);
        let (connection, _end) = answered(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        old.give(&task, address, connection);
        old.sweep();
        assert!(lock(&old.waiting).is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_an_error() {
        for (wire, whole) in [
            (&b""[..], false),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", false),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", false),
            (b"HTTP/1.1 200 OK\r\n\r\nx", true),
        ] {
            let (mut connection, mut end) = pair().await;
            end.write_all(wire).await.unwrap();
            drop(end);
            let read = async {
                connection.head(&Method::GET, None).await?;
                while connection.part(None).await?.is_some() {}
                Ok::<(), Box<Error>>(())
            };
            assert_eq!(read.await.is_ok(), whole, "{}", String::from_utf8_lossy(wire));
        }
    }
}
