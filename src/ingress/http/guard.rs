//! Requests of HTTP/1 that a task might read in another way than skep, or that are too large. Pure.
//!
//! pingora refuses what has no reading (two hosts, lengths that differ, folded headers, another last encoding than `chunked`), and takes a
//! length away beside `Transfer-Encoding`.

use super::limits::MOST_HEAD;
use super::refusals::HttpRefusal;
use crate::http::framing;
use axum::http::HeaderName;
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::http::RequestHeader;

/// Why a request is not served: the reason that is counted, the status, and a word for the client.
pub(super) type GuardRefusal = (HttpRefusal, u16, &'static str);

pub(super) fn refuse(request: &RequestHeader) -> Option<GuardRefusal> {
    let fields = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if request.raw_path().len() + fields.sum::<usize>() > MOST_HEAD {
        return Some((HttpRefusal::HeadSize, 431, "the head of the request is larger than 64 KiB"));
    }
    let target = request.raw_path();
    let begins = |with: &[u8]| target.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    if ![&b"/"[..], b"http://", b"https://"].iter().any(|with| begins(with)) && target != b"*" {
        return Some((HttpRefusal::Framing, 400, "the target is neither a path nor an address"));
    }
    let values = |name: HeaderName| request.headers.get_all(name).into_iter().map(AsRef::<[u8]>::as_ref);
    let mut lengths = values(CONTENT_LENGTH);
    let length = lengths.next();
    // A task may read a list as it likes.
    if lengths.next().is_some() || length.is_some_and(|only| framing::number(only).is_none()) {
        return Some((HttpRefusal::Framing, 400, "the length of the body is not one number"));
    }
    let mut encodings = values(TRANSFER_ENCODING);
    match (encodings.next(), encodings.next()) {
        (None, _) => None,
        (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") && length.is_none() => None,
        _ => Some((HttpRefusal::Framing, 400, "the body may be chunked and nothing else")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_one_length_or_is_chunked() {
        for (headers, refused) in [
            (&[][..], false),
            (&[("content-length", "5")], false),
            (&[("transfer-encoding", "Chunked")], false),
            (&[("content-length", "5"), ("content-length", "5")], true),
            (&[("content-length", "5, 5")], true),
            (&[("content-length", "99999999999999999999")], true),
            (&[("content-length", "5"), ("transfer-encoding", "chunked")], true),
            (&[("transfer-encoding", "gzip, chunked")], true),
            (&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], true),
            (&[("transfer-encoding", "xchunked")], true),
        ] {
            let mut request = RequestHeader::build("POST", b"/", None).unwrap();
            for (name, value) in headers {
                request.append_header(*name, *value).unwrap();
            }
            assert_eq!(refuse(&request).is_some(), refused, "{headers:?}");
        }
        let mut large = RequestHeader::build("GET", b"/", None).unwrap();
        large.append_header("x", "x".repeat(MOST_HEAD)).unwrap();
        assert_eq!(refuse(&large).map(|(_, status, _)| status), Some(431));
    }
}
