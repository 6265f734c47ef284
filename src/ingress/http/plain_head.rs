//! Heads of requests that have one reading only, and no body. Pure. Whatever else a client sends is left to pingora as it came.

use bytes::{Bytes, BytesMut};
use pingora::http::{RequestHeader, Version};

/// Longer heads are pingora's.
const MOST: usize = 16 << 10;
/// So are heads with more fields.
const FIELDS: usize = 64;

/// Methods that have no body, and that may be repeated.
const METHODS: [&str; 4] = ["GET", "HEAD", "OPTIONS", "DELETE"];
/// Fields that say something of the connection, or of a body.
const OTHERS: [&str; 11] = [
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What the bytes of a connection begin with.
#[expect(clippy::large_enum_variant, reason = "there is one for each request, and most are the large one")]
pub(super) enum Beginning {
    /// More bytes are needed to say.
    Incomplete,
    /// The head of a request, which is taken from the bytes: these. `keep`: the client wants the connection to be kept.
    Plain { request: RequestHeader, head: Bytes, keep: bool },
    /// Something else; all bytes are still there.
    Other,
}

/// Whether the head of a request of HTTP/2, of which it is known that it has no body, is a plain one too.
pub(super) fn is_plain(request: &RequestHeader) -> bool {
    METHODS.contains(&request.method.as_str())
        && request.raw_path().starts_with(b"/")
        && !OTHERS.iter().any(|other| request.headers.contains_key(*other))
}

/// Takes the head of a request from the bytes, if it is a plain one.
pub(super) fn take(bytes: &mut BytesMut) -> Beginning {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= MOST => length,
        Ok(httparse::Status::Partial) if bytes.len() < MOST => return Beginning::Incomplete,
        _ => return Beginning::Other,
    };
    let (Some(method), Some(path), Some(1)) = (parsed.method, parsed.path, parsed.version) else { return Beginning::Other };
    let is_target = path.starts_with('/') && path.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'#');
    if !METHODS.contains(&method) || !is_target || !has_whole_line_ends(&bytes[..length]) {
        return Beginning::Other;
    }
    let Ok(mut request) = RequestHeader::build(method, path.as_bytes(), Some(parsed.headers.len() + 10)) else {
        return Beginning::Other;
    };
    let start = bytes.as_ptr().addr();
    let span = |part: &[u8]| (part.as_ptr().addr() - start, part.len());
    let (mut spans, mut count): ([[(usize, usize); 2]; FIELDS], usize) = ([[(0, 0); 2]; FIELDS], 0);
    let (mut hosts, mut keep, mut connections) = (0, true, 0);
    for field in parsed.headers.iter() {
        if field.name.eq_ignore_ascii_case("connection") {
            connections += 1;
            match field.value {
                value if value.eq_ignore_ascii_case(b"keep-alive") => {}
                value if value.eq_ignore_ascii_case(b"close") => keep = false,
                _ => return Beginning::Other,
            }
            continue;
        }
        if OTHERS.iter().any(|other| field.name.eq_ignore_ascii_case(other)) {
            return Beginning::Other;
        }
        hosts += usize::from(field.name.eq_ignore_ascii_case("host"));
        spans[count] = [span(field.name.as_bytes()), span(field.value)];
        count += 1;
    }
    if hosts != 1 || connections > 1 {
        return Beginning::Other;
    }
    // Names and values are parts of the bytes, not copies; nothing is taken before it is known that all of them are usable.
    let is_value = |byte: &u8| *byte == b'\t' || matches!(byte, b' '..=b'~');
    if !spans[..count].iter().all(|[_, (at, length)]| bytes[*at..at + length].iter().all(is_value)) {
        return Beginning::Other;
    }
    let head = bytes.split_to(length).freeze();
    for [(name, name_length), (value, value_length)] in &spans[..count] {
        let name = head.slice(*name..name + name_length);
        let value = head.slice(*value..value + value_length);
        let added = axum::http::HeaderValue::from_maybe_shared(value).map(|value| request.append_header(name, value));
        debug_assert!(matches!(added, Ok(Ok(_))), "the parser has taken it");
    }
    request.set_version(Version::HTTP_11);
    Beginning::Plain { request, head, keep }
}

/// Whether each line ends with CR and LF: some read a CR alone, or an LF alone, as the end of a line.
fn has_whole_line_ends(head: &[u8]) -> bool {
    let mut before = 0;
    for byte in head {
        if (*byte == b'\n') != (before == b'\r') {
            return false;
        }
        before = *byte;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Option<(String, bool, usize)> {
        let mut bytes = BytesMut::from(text);
        match take(&mut bytes) {
            Beginning::Plain { request, keep, .. } => {
                let mut wire = Vec::new();
                request.header_to_h1_wire(&mut wire);
                Some((String::from_utf8(wire).unwrap(), keep, bytes.len()))
            }
            Beginning::Incomplete | Beginning::Other => {
                assert_eq!(bytes, text, "all of it is left");
                None
            }
        }
    }

    #[test]
    fn plain_heads_are_taken_with_their_fields_as_they_are() {
        let (fields, keep, left) =
            seen("GET /a?b=c HTTP/1.1\r\nHOST: a.b\r\nX-Two:  2 \r\nConnection: Keep-Alive\r\n\r\nGET").unwrap();
        assert_eq!((fields.as_str(), keep, left), ("HOST: a.b\r\nX-Two: 2\r\n", true, 3));
        assert_eq!(seen("HEAD / HTTP/1.1\r\nHost: a\r\nconnection: close\r\n\r\n").map(|seen| seen.1), Some(false));
    }

    #[test]
    fn a_part_of_a_head_waits_for_the_rest() {
        let whole = "GET / HTTP/1.1\r\nHost: a.b\r\n\r\n";
        for length in 0..whole.len() {
            assert!(matches!(take(&mut BytesMut::from(&whole[..length])), Beginning::Incomplete), "{length}");
        }
        let long = format!("GET / HTTP/1.1\r\nHost: a.b\r\nx: {}", "x".repeat(MOST));
        assert!(matches!(take(&mut BytesMut::from(long.as_str())), Beginning::Other));
    }

    #[test]
    fn whatever_has_a_body_or_another_reading_is_left() {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\n\r\n",
            "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: y\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: \u{e9}\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n x: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-secret\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: close\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01",
        ] {
            assert_eq!(seen(head), None, "{head:?}");
        }
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "x: y\r\n".repeat(FIELDS));
        assert_eq!(seen(&many), None);
    }
}
