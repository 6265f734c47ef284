//! A request of HTTP/2 that is carried directly: where its answer goes.

use super::rules::STALLED;
use bytes::Bytes;
use h2::SendStream;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v2::server::HttpSession;
use pingora::{Error, ErrorType, OrErr as _, Result};
use std::future::poll_fn;

/// Smaller parts of a body are copied where they wait to be sent: as slices they keep what was read with them.
const SLICED: usize = 16 << 10;

/// The stream.
pub(super) struct StreamClient {
    session: HttpSession,
    /// For the body, once the head is written.
    body: Option<SendStream<Bytes>>,
    /// The last of the answer is written.
    ended: bool,
    /// Status of the answer; 0: it has not begun.
    pub status: u16,
    /// Bytes of its body so far.
    pub sent: usize,
}

#[expect(clippy::unnecessary_box_returns, reason = "as all errors of pingora are")]
fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client is gone").into_down()
}

impl StreamClient {
    pub fn new(session: HttpSession) -> Self {
        Self { session, body: None, ended: false, status: 0, sent: 0 }
    }

    /// The head of the request, which is `placeholder` from now on.
    pub fn take_request(&mut self, placeholder: RequestHeader) -> RequestHeader {
        std::mem::replace(self.session.req_header_mut(), placeholder)
    }

    /// The stream as it came, with its head.
    pub fn into_session(mut self, request: RequestHeader) -> HttpSession {
        *self.session.req_header_mut() = request;
        self.session
    }

    /// Returns once the client is gone, or wants no answer any more.
    pub async fn gone(&mut self) {
        match &mut self.body {
            Some(body) => drop(poll_fn(|context| body.poll_reset(context)).await),
            None => drop(self.session.idle().await),
        }
    }

    /// Sends the head of the answer. `has_body`: parts of a body will follow, until the last.
    ///
    /// # Errors
    /// The client is gone.
    pub fn head(&mut self, head: ResponseHeader, has_body: bool) -> Result<()> {
        let status = head.status;
        self.session.write_response_header(Box::new(head), !has_body).map_err(Error::into_down)?;
        if !status.is_informational() {
            self.status = status.as_u16();
            self.body = self.session.take_response_body_writer();
            self.ended = !has_body;
        }
        Ok(())
    }

    /// Sends a part of the body, when the client takes it.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub async fn part(&mut self, part: Bytes, is_last: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        let body = self.body.as_mut().ok_or_else(gone)?;
        self.sent += part.len();
        let mut left = if part.len() <= SLICED { Bytes::copy_from_slice(&part) } else { part };
        self.ended = is_last;
        loop {
            let now = if left.is_empty() {
                // There is no room to wait for.
                Bytes::new()
            } else {
                body.reserve_capacity(left.len());
                let room = tokio::time::timeout(STALLED, poll_fn(|context| body.poll_capacity(context))).await;
                let room = room.or_err(ErrorType::WriteTimedout, "sending the answer").map_err(Error::into_down)?;
                let room =
                    room.ok_or_else(gone)?.or_err(ErrorType::WriteError, "sending the answer").map_err(Error::into_down)?;
                left.split_to(room.min(left.len()))
            };
            let sent = body.send_data(now, is_last && left.is_empty());
            sent.or_err(ErrorType::WriteError, "sending the answer").map_err(Error::into_down)?;
            if left.is_empty() {
                return Ok(());
            }
        }
    }
}
