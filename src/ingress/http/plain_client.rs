//! A client over HTTP/1 whose requests are carried directly: reads heads, writes answers.

use super::answer_head::TaskAnswerHead;
use super::plain_head::{self, Beginning};
use super::rules::STALLED;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use bytes::{BufMut as _, BytesMut};
use pingora::http::{ResponseHeader, StatusCode};
use pingora::protocols::Stream;
use pingora::protocols::http::date::get_cached_date;
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::io::{self, IoSlice};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What is read at once while a head is waited for.
const HEAD_BYTES: usize = 4 << 10;
/// What a client may send of its next request before it has its answer.
const MOST_AHEAD: usize = 64 << 10;
/// Parts of a body that are sent in one piece with what is before them, by a copy.
const SMALL: usize = 4 << 10;

/// A client.
#[derive(Debug)]
pub(super) struct PlainClient {
    stream: Stream,
    /// Read, and not used yet.
    bytes: BytesMut,
    /// To be sent with what follows.
    out: BytesMut,
    chunked: bool,
    /// Status of the answer that is under way; 0: none is.
    pub status: u16,
    /// Bytes of its body so far.
    pub sent: usize,
    /// The connection is kept after the answer.
    pub keep: bool,
}

impl PlainClient {
    /// `bytes`: what was read of it before.
    pub fn new(stream: Stream, bytes: BytesMut) -> Self {
        Self { stream, bytes, out: BytesMut::new(), chunked: false, status: 0, sent: 0, keep: false }
    }

    /// The connection as it is, and what was read of it after `head`, with that.
    pub fn into_parts(self, head: &[u8]) -> (Stream, BytesMut) {
        if head.is_empty() {
            return (self.stream, self.bytes);
        }
        let mut bytes = BytesMut::from(head);
        bytes.extend_from_slice(&self.bytes);
        (self.stream, bytes)
    }

    /// Waits for the head of a request; `None` if the client is gone. `began` is called when a part of it has come.
    pub async fn request(&mut self, began: impl Fn()) -> Option<Beginning> {
        (self.status, self.sent) = (0, 0);
        for buffer in [&mut self.bytes, &mut self.out] {
            // A client that waits keeps no large one.
            if buffer.is_empty() && buffer.capacity() > 2 * HEAD_BYTES {
                *buffer = BytesMut::new();
            }
        }
        loop {
            if !self.bytes.is_empty() {
                match plain_head::take(&mut self.bytes) {
                    Beginning::Incomplete => began(),
                    beginning => return Some(beginning),
                }
            }
            self.bytes.reserve(HEAD_BYTES);
            if !matches!(self.stream.read_buf(&mut self.bytes).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Returns once the client is gone. What it sends meanwhile is its next request; one that is too far ahead could leave unseen, and
    /// counts as gone.
    pub async fn gone(&mut self) {
        while self.bytes.len() < MOST_AHEAD {
            self.bytes.reserve(HEAD_BYTES);
            if !matches!(self.stream.read_buf(&mut self.bytes).await, Ok(1..)) {
                return;
            }
        }
    }

    /// The head of an answer, which is sent with what follows. `has_body`: parts of a body will, until the last.
    pub fn head(&mut self, head: &TaskAnswerHead, has_body: bool) {
        head.write(&mut self.out);
        if head.status.is_informational() {
            self.out.put_slice(b"\r\n");
        } else {
            let is_coded = head.has(&TRANSFER_ENCODING);
            self.end_head(head.status, has_body, is_coded, is_coded || head.has(&CONTENT_LENGTH));
        }
    }

    /// The same, for a head of which fields were changed.
    pub fn header(&mut self, head: &mut ResponseHeader, has_body: bool) {
        head.remove_header(&CONNECTION);
        head.remove_header(&DATE);
        self.out.reserve(1024);
        self.out.put_slice(b"HTTP/1.1 ");
        self.out.put_slice(head.status.as_str().as_bytes());
        self.out.put_u8(b' ');
        self.out.put_slice(head.get_reason_phrase().unwrap_or_default().as_bytes());
        self.out.put_slice(b"\r\n");
        head.header_to_h1_wire(&mut self.out);
        let is_coded = head.headers.contains_key(TRANSFER_ENCODING);
        self.end_head(head.status, has_body, is_coded, is_coded || head.headers.contains_key(CONTENT_LENGTH));
    }

    fn end_head(&mut self, status: StatusCode, has_body: bool, is_coded: bool, is_bounded: bool) {
        // Without a length the end must be seen in another way.
        self.chunked = has_body && (is_coded || !is_bounded);
        if self.chunked && !is_coded {
            self.out.put_slice(b"Transfer-Encoding: chunked\r\n");
        }
        self.status = status.as_u16();
        self.out.put_slice(b"Date: ");
        self.out.put_slice(get_cached_date().as_bytes());
        self.out.put_slice(if self.keep { b"\r\nConnection: keep-alive\r\n\r\n" } else { b"\r\nConnection: close\r\n\r\n" });
    }

    /// A part of the body; it is sent with what was written before.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub async fn part(&mut self, part: &[u8], is_last: bool) -> Result<()> {
        self.sent += part.len();
        if self.chunked && !part.is_empty() {
            self.out.put_slice(format!("{:x}\r\n", part.len()).as_bytes());
        }
        let end: &[u8] = match (self.chunked, is_last, part.is_empty()) {
            (false, ..) | (true, false, true) => b"",
            (true, false, false) => b"\r\n",
            (true, true, false) => b"\r\n0\r\n\r\n",
            (true, true, true) => b"0\r\n\r\n",
        };
        if part.len() <= SMALL {
            self.out.put_slice(part);
            self.out.put_slice(end);
            return self.flush().await;
        }
        let (stream, out) = (&mut self.stream, self.out.split());
        within(STALLED, async {
            let mut parts = [IoSlice::new(&out), IoSlice::new(part), IoSlice::new(end)];
            let mut parts = &mut parts[..];
            // Those that are empty already.
            IoSlice::advance_slices(&mut parts, 0);
            while !parts.is_empty() {
                let written = stream.write_vectored(parts).await?;
                if written == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                IoSlice::advance_slices(&mut parts, written);
            }
            stream.flush().await
        })
        .await
    }

    /// Sends what was written.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub async fn flush(&mut self) -> Result<()> {
        // What was sent in part is never sent again.
        let (stream, out) = (&mut self.stream, self.out.split());
        within(STALLED, async {
            stream.write_all(&out).await?;
            stream.flush().await
        })
        .await
    }

    /// Ends the connection, with a word if the client knows one for it.
    pub async fn close(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.stream.shutdown()).await;
    }
}

async fn within(limit: Duration, write: impl Future<Output = io::Result<()>>) -> Result<()> {
    let written = tokio::time::timeout(limit, write).await;
    let written = written.or_err(ErrorType::WriteTimedout, "sending the answer").map_err(Error::into_down)?;
    written.or_err(ErrorType::WriteError, "sending the answer").map_err(Error::into_down)
}
