//! A request as it was sent to its task, to be sent to another service too.

use bytes::{Bytes, BytesMut};
use pingora::http::{RequestHeader, Version};

/// Requests with a larger body are not copied.
const MOST_BODY: usize = 64 << 10;

/// A copy that is being made.
pub(super) struct RequestCopy {
    pub head: RequestHeader,
    pub body: BytesMut,
}

impl RequestCopy {
    /// Of a request as it is sent to its own task; `host`: as it names it.
    pub fn new(head: &RequestHeader, host: &str) -> Self {
        let mut head = head.clone();
        head.set_version(Version::HTTP_11);
        if !head.headers.contains_key("host") {
            let _ = head.insert_header("host", host);
        }
        Self { head, body: BytesMut::new() }
    }

    /// The body comes again from its beginning.
    pub fn again(&mut self) {
        self.body.clear();
    }

    /// Adds a part of the body; false if it is too large.
    pub fn add(&mut self, part: Option<&Bytes>) -> bool {
        let part = part.map_or(&[][..], Bytes::as_ref);
        self.body.extend_from_slice(part);
        self.body.len() <= MOST_BODY
    }
}
