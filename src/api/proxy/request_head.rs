//! The head of a request, parsed as far as routing and forwarding need it.

use super::route::origin_form;
use crate::api::error::ApiError;
use crate::api::query::split_version;
use crate::http::framing;
use bytes::Bytes;
use hyper::StatusCode;
use std::fmt::Write as _;

/// Most header fields that a head may have: as many as the HTTP server behind takes.
const MAX_FIELDS: usize = 100;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestHead {
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// In bytes, the empty line included.
    len: usize,
    /// The client offers another protocol for the connection.
    offers_upgrade: bool,
    /// Bytes of the body, if the client may send another request behind it.
    body: Option<usize>,
}

/// Parses a head; `None` while it is incomplete.
///
/// # Errors
/// It is not HTTP/1, has too many fields, or one that contradicts itself. Checked here, because the HTTP server behind
/// refuses such a head without a word.
pub fn parse(bytes: &[u8]) -> Result<Option<RequestHead>, ApiError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Partial) => return Ok(None),
        Ok(httparse::Status::Complete(len)) => len,
        Err(httparse::Error::TooManyHeaders) => {
            let message = format!("the request has more than {MAX_FIELDS} header fields");
            return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message));
        }
        Err(error) => return Err(not_http(&error)),
    };
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    hyper::Method::from_bytes(method.as_bytes()).map_err(|e| not_http(&e))?;
    check_length(request.headers, request.version == Some(1))?;
    Ok(Some(RequestHead {
        method: method.to_owned(),
        target: target.to_owned(),
        len,
        offers_upgrade: values(request.headers, "upgrade").next().is_some(),
        body: body_of_kept(request.headers, request.version == Some(1)),
    }))
}

fn not_http(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::bad(format!("this is not an HTTP/1.1 request: {error}"))
}

fn values<'a>(fields: &'a [httparse::Header], name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    fields.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value)
}

/// Refuses a head that does not say how long its body is, or says it twice in different ways.
fn check_length(fields: &[httparse::Header], http_1_1: bool) -> Result<(), ApiError> {
    if framing::length(values(fields, "content-length")).is_err() {
        return Err(not_http(&"its Content-Length is not one number"));
    }
    let is_coded = values(fields, "transfer-encoding").next().is_some();
    if is_coded && !(http_1_1 && framing::ends_in_chunks(values(fields, "transfer-encoding"))) {
        return Err(not_http(&"its Transfer-Encoding does not end in chunked"));
    }
    Ok(())
}

/// Bytes of the body of a request, behind which its client may send another one. Not if it says otherwise, has another protocol in mind, or does
/// not say how long the body is.
fn body_of_kept(fields: &[httparse::Header], http_1_1: bool) -> Option<usize> {
    let has = |name| values(fields, name).next().is_some();
    let closes = |value: &[u8]| value.split(|b| *b == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
    if !http_1_1 || has("transfer-encoding") || has("upgrade") || values(fields, "connection").any(closes) {
        return None;
    }
    match values(fields, "content-length").next() {
        None => Some(0),
        Some(length) => std::str::from_utf8(length).ok()?.trim().parse().ok(),
    }
}

/// Requests whose connection the engine may take over for another protocol. Any other `Upgrade` is an offer that the engine
/// ignores (HTTP/2 of Java's and curl's clients), after which it would serve further requests on the connection.
fn may_upgrade(method: &str, target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let path: Vec<&str> = split_version(path).1.trim_start_matches('/').split('/').collect();
    matches!(
        (method, path.as_slice()),
        ("POST", ["session" | "grpc"] | ["containers", _, "attach"] | ["exec", _, "start"])
            | ("GET", ["containers", _, "attach", "ws"])
    )
}

impl RequestHead {
    /// Bytes of head and body, if the client may send another request behind them.
    pub fn length(&self) -> Option<usize> {
        self.len.checked_add(self.body?)
    }

    /// What the engine is sent for `read`, which begins with this head. Without an upgrade, the header `Connection: close`
    /// makes the engine close after its reply: the next request may not be the engine's. (A hijack without `Upgrade`
    /// still takes over the connection.)
    pub fn for_engine(&self, read: &[u8]) -> Vec<u8> {
        self.for_engine_at(read, &self.target)
    }

    /// As [`Self::for_engine`], with another target. It is the one that says whether the engine may take over the connection: the
    /// client's may name a node too.
    pub fn for_engine_at(&self, read: &[u8], target: &str) -> Vec<u8> {
        let upgrade = self.offers_upgrade && may_upgrade(&self.method, target);
        let (head, rest) = read.split_at(self.len);
        // Empty lines before a request are skipped, as the parser skips them.
        let mut lines = head.trim_ascii_start().split_inclusive(|b| *b == b'\n');
        let protocol = lines.next().and_then(|line| line.get(self.method.len() + 1 + self.target.len()..)).unwrap_or_default();
        let mut out = Vec::with_capacity(read.len() + target.len() + 32);
        out.extend_from_slice(self.method.as_bytes());
        out.push(b' ');
        out.extend_from_slice(target.as_bytes());
        out.extend_from_slice(protocol);
        if !upgrade {
            out.extend_from_slice(b"Connection: close\r\n");
        }
        let dropped = [&b"connection:"[..], b"upgrade:", b"http2-settings:"];
        for line in lines.filter(|line| upgrade || !dropped.iter().any(|name| is_field(line, name))) {
            out.extend_from_slice(line);
        }
        out.extend_from_slice(rest);
        out
    }

    /// What the handlers are sent for `read`, which begins with this head: without the server that a target may name, and characters
    /// that a URI has only percent-encoded are encoded now. Clients send them as they are (JSON in the query), and Go's server takes them.
    ///
    /// # Errors
    /// The target is no path all the same.
    pub fn for_handlers(&self, read: Bytes) -> Result<Bytes, ApiError> {
        let encoded = encode_target(origin_form(&self.target));
        if !encoded.starts_with('/') || encoded.parse::<hyper::Uri>().is_err() {
            return Err(not_http(&format!("{:?} is not a path", self.target)));
        }
        let start = read.iter().position(|b| *b == b' ').map_or(0, |blank| blank + 1);
        let end = start + self.target.len();
        if encoded == self.target || read.get(start..end) != Some(self.target.as_bytes()) {
            return Ok(read);
        }
        Ok([&read[..start], encoded.as_bytes(), &read[end..]].concat().into())
    }
}

fn encode_target(target: &str) -> String {
    target.bytes().fold(String::with_capacity(target.len()), |mut out, byte| {
        if byte.is_ascii_graphic() && !br#""<>\^`{|}#"#.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
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
    fn another_target_takes_the_place_of_the_one_that_was_sent() {
        for more in ["", "Connection: Upgrade\r\nUpgrade: tcp\r\n"] {
            let sent = format!("POST /v1.50/exec/e1/start HTTP/1.1\r\n{more}Content-Length: 2\r\n\r\n{{}}");
            let forwarded = parse(sent.as_bytes()).unwrap().unwrap().for_engine_at(sent.as_bytes(), "/v1.41/exec/e2/start");
            let text = String::from_utf8(forwarded).unwrap();
            assert!(text.starts_with("POST /v1.41/exec/e2/start HTTP/1.1\r\n") && text.ends_with("\r\n\r\n{}"), "{text}");
        }
    }

    #[test]
    fn the_target_that_the_engine_gets_says_whether_the_connection_may_become_another_protocol() {
        let fields = "Host: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        for (line, target, upgraded) in [
            ("POST /v1.50/containers/n1/web/attach?stream=1", "/v1.50/containers/c1/attach?stream=1", true),
            ("GET /containers/n1/web/attach/ws", "/containers/c1/attach/ws", true),
            ("POST /containers/n1%2Fweb/attach", "/containers/c1/attach", true),
            ("POST /containers/n1/web/start", "/containers/c1/start", false),
        ] {
            let sent = format!("{line} HTTP/1.1\r\n{fields}more");
            let forwarded = parse(sent.as_bytes()).unwrap().unwrap().for_engine_at(sent.as_bytes(), target);
            let method = line.split(' ').next().unwrap();
            let expected = if upgraded { fields } else { "Connection: close\r\nHost: x\r\n\r\n" };
            assert_eq!(String::from_utf8(forwarded).unwrap(), format!("{method} {target} HTTP/1.1\r\n{expected}more"));
        }
        let sent = b"\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n";
        let forwarded = parse(sent).unwrap().unwrap().for_engine(sent);
        assert_eq!(forwarded, b"GET /version HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n");
    }

    #[test]
    fn a_head_with_upgrade_is_forwarded_unchanged() {
        let sent = b"POST /session HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI";
        assert_eq!(parse(sent).unwrap().unwrap().for_engine(sent), sent);
    }

    #[test]
    fn an_offer_of_another_protocol_is_not_forwarded() {
        for (line, protocol) in [("GET /v1.50/containers/json", "h2c"), ("POST /build", "h2c"), ("GET /version", "tcp")] {
            let sent = format!(
                "{line} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n"
            );
            let forwarded = parse(sent.as_bytes()).unwrap().unwrap().for_engine(sent.as_bytes());
            assert_eq!(
                String::from_utf8(forwarded).unwrap(),
                format!("{line} HTTP/1.1\r\nConnection: close\r\nHost: docker\r\n\r\n")
            );
        }
        for line in [
            "POST /v1.50/exec/e1/start",
            "POST /containers/c1/attach?stream=1",
            "GET /v1.41/containers/c1/attach/ws",
            "POST /grpc",
        ] {
            let sent = format!("{line} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
            assert_eq!(parse(sent.as_bytes()).unwrap().unwrap().for_engine(sent.as_bytes()), sent.as_bytes(), "{line}");
        }
    }

    #[test]
    fn characters_that_a_uri_lacks_are_encoded_for_the_handlers() {
        let handled = |target: &str| {
            let sent = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\nrest");
            let head = parse(sent.as_bytes()).unwrap().unwrap();
            let sent = head.for_handlers(Bytes::from(sent)).map_err(|refusal| refusal.status)?;
            Ok::<_, StatusCode>(String::from_utf8(sent.to_vec()).unwrap())
        };
        for (target, encoded) in [
            ("/services?filters={\"name\":[\"x\"]}", "/services?filters=%7B%22name%22:[%22x%22]%7D"),
            ("/services/a|b", "/services/a%7Cb"),
            (
                "/services?filters=%7B%22name%22%3A%7B%22a%22%3Atrue%7D%7D",
                "/services?filters=%7B%22name%22%3A%7B%22a%22%3Atrue%7D%7D",
            ),
            ("/services?a=#b", "/services?a=%23b"),
        ] {
            assert_eq!(handled(target), Ok(format!("GET {encoded} HTTP/1.1\r\nHost: x\r\n\r\nrest")));
        }
        assert_eq!(handled("services"), Err(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_head_that_contradicts_itself_is_refused() {
        for fields in
            ["Content-Length: 1\r\nContent-Length: 2", "Content-Length: x", "Content-Length: -1", "Transfer-Encoding: gzip"]
        {
            let sent = format!("POST /services/create HTTP/1.1\r\n{fields}\r\n\r\n");
            assert_eq!(parse(sent.as_bytes()).unwrap_err().status, StatusCode::BAD_REQUEST, "{fields}");
        }
        assert!(parse(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n").unwrap().is_some());
    }

    #[test]
    fn an_incomplete_head_is_awaited_and_garbage_is_refused() {
        assert_eq!(parse(b"GET /_ping HTTP/1.1\r\nHo").unwrap(), None);
        assert_eq!(parse(b"\x16\x03\x01\x02\x00\x01\x00").unwrap_err().status, StatusCode::BAD_REQUEST);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(many.as_bytes()).unwrap_err().status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}
