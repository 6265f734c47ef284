//! The head of a request, parsed as far as routing and forwarding need it.

use crate::api::error::ApiError;
use hyper::StatusCode;

/// Most header fields that a head may have.
const MAX_FIELDS: usize = 128;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestHead {
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// In bytes, the empty line included.
    len: usize,
    /// Whether it has the header `Upgrade`.
    upgrade: bool,
}

/// Parses a head; `None` while it is incomplete.
///
/// # Errors
/// It is not HTTP/1, or has too many fields.
pub fn parse(bytes: &[u8]) -> Result<Option<RequestHead>, ApiError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => Ok(None),
        Ok(httparse::Status::Complete(len)) => Ok(Some(RequestHead {
            method: request.method.unwrap_or_default().to_owned(),
            target: request.path.unwrap_or_default().to_owned(),
            len,
            upgrade: request.headers.iter().any(|h| h.name.eq_ignore_ascii_case("upgrade")),
        })),
        Err(httparse::Error::TooManyHeaders) => {
            let message = format!("the request has more than {MAX_FIELDS} header fields");
            Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message))
        }
        Err(error) => Err(ApiError::bad(format!("this is not an HTTP/1.1 request: {error}"))),
    }
}

impl RequestHead {
    /// What the engine is sent for `read`, which begins with this head. Without `Upgrade`, the header `Connection: close`
    /// makes the engine close after its reply: the next request may not be the engine's. (A hijack without `Upgrade`
    /// still takes over the connection.)
    pub fn for_engine(&self, read: &[u8]) -> Vec<u8> {
        if self.upgrade {
            return read.to_vec();
        }
        let (head, rest) = read.split_at(self.len);
        let mut out = Vec::with_capacity(read.len() + 32);
        for (i, line) in head.split_inclusive(|b| *b == b'\n').enumerate() {
            if is_field(line, b"connection:") || line == b"\r\n" || line == b"\n" {
                continue;
            }
            out.extend_from_slice(line);
            if i == 0 {
                out.extend_from_slice(b"Connection: close\r\n");
            }
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(rest);
        out
    }
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_gets_one_connection_close() {
        let sent = b"POST /v1.50/build HTTP/1.1\r\nHost: docker\r\nconnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi";
        let head = parse(sent).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.target.as_str()), ("POST", "/v1.50/build"));
        assert_eq!(
            String::from_utf8(head.for_engine(sent)).unwrap(),
            "POST /v1.50/build HTTP/1.1\r\nConnection: close\r\nHost: docker\r\nContent-Length: 2\r\n\r\nhi"
        );
    }

    #[test]
    fn a_head_with_upgrade_is_forwarded_unchanged() {
        let sent = b"POST /session HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI";
        assert_eq!(parse(sent).unwrap().unwrap().for_engine(sent), sent);
    }

    #[test]
    fn an_incomplete_head_is_awaited_and_garbage_is_refused() {
        assert_eq!(parse(b"GET /_ping HTTP/1.1\r\nHo").unwrap(), None);
        assert_eq!(parse(b"\x16\x03\x01\x02\x00\x01\x00").unwrap_err().status, StatusCode::BAD_REQUEST);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(many.as_bytes()).unwrap_err().status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}
