//! Which upgrades a task is asked for. Pure. That of WebSocket pingora passes on by itself; others pass if the route names them, in a form of our own:
//! the fields that a client names in `Connection` are not its to choose.

use crate::http::framing::elements;
use axum::http::HeaderName;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use pingora::http::{RequestHeader, Version};

fn values(request: &RequestHeader, name: HeaderName) -> impl DoubleEndedIterator<Item = &[u8]> {
    request.headers.get_all(name).into_iter().map(AsRef::<[u8]>::as_ref)
}

/// Whether an upgrade is asked for, without a body before it.
pub(super) fn is_asked(request: &RequestHeader) -> bool {
    let has_body =
        request.headers.contains_key(TRANSFER_ENCODING) || values(request, CONTENT_LENGTH).any(|length| length != b"0");
    request.version == Version::HTTP_11 && request.headers.contains_key(UPGRADE) && !has_body
}

/// The protocol that the task is asked for: the one that is asked for, and that is one of `protocols`.
pub(super) fn passed_on<'a>(request: &RequestHeader, protocols: &'a [String]) -> Option<&'a str> {
    if protocols.is_empty() || !is_asked(request) {
        return None;
    }
    let mut asked = elements(values(request, UPGRADE));
    let (only, None) = (asked.next()?, asked.next()) else { return None };
    let is_of_connection = elements(values(request, CONNECTION)).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let named = protocols.iter().find(|protocol| only.eq_ignore_ascii_case(protocol.as_bytes()));
    named.filter(|_| is_of_connection).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_names_what_passes_and_nothing_else_does() {
        let protocols = ["tcp".to_owned(), "spdy/3.1".to_owned()];
        for (headers, expected) in [
            (&[("connection", "Upgrade"), ("upgrade", "TCP")][..], Some("tcp")),
            (&[("connection", "keep-alive, upgrade"), ("upgrade", "SPDY/3.1"), ("content-length", "0")], Some("spdy/3.1")),
            (&[("connection", "Upgrade"), ("upgrade", "spdy")], None),
            (&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")], None),
            (&[("connection", "Upgrade"), ("upgrade", "tcp, h2c")], None),
            (&[("connection", "Upgrade"), ("upgrade", "tcp"), ("upgrade", "h2c")], None),
            (&[("connection", "Upgrade"), ("upgrade", "tcp"), ("content-length", "5")], None),
            (&[("connection", "Upgrade"), ("upgrade", "tcp"), ("transfer-encoding", "chunked")], None),
            (&[("connection", "close"), ("upgrade", "tcp")], None),
            (&[("upgrade", "tcp")], None),
            (&[("connection", "Upgrade")], None),
        ] {
            let mut request = RequestHeader::build("POST", b"/", None).unwrap();
            for (name, value) in headers {
                request.append_header(*name, *value).unwrap();
            }
            assert_eq!(passed_on(&request, &protocols), expected, "{headers:?}");
            assert_eq!(passed_on(&request, &[]), None, "{headers:?}");
            request.set_version(Version::HTTP_2);
            assert_eq!(passed_on(&request, &protocols), None, "{headers:?}");
        }
    }
}
