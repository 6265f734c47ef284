//! Answers of text that are compressed, for routes with `skep.http.compress`. What is compressed and how is decided here; pingora does it.
//!
//! pingora alone would read `gzip;q=0` as a wish for gzip, and hold back events of a stream until a block is full. Its Brotli does not end the
//! stream (findings/pingora-brotli-has-no-end.sh), so that clients lose the last bytes: it is not used.

use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::compression::ResponseCompression;
use pingora::protocols::http::compression::Algorithm;
use pingora::proxy::Session;

/// Answers that are shorter are sent as they are.
const LEAST: usize = 256;

/// With the level of each; the first one wins where a client likes several as much.
const ALGORITHMS: [(&str, Algorithm, u32); 2] = [("zstd", Algorithm::Zstd, 3), ("gzip", Algorithm::Gzip, 5)];

/// Which of [`ALGORITHMS`] a client likes best.
fn preferred(accept: &str) -> Option<usize> {
    let mut likes: [Option<u32>; ALGORITHMS.len()] = [None; ALGORITHMS.len()];
    for one in accept.split(',') {
        let (name, parameters) = one.split_once(';').unwrap_or((one, ""));
        let thousandths = parameters.trim().strip_prefix("q=").map_or(1000, thousandths);
        if let Some(at) = ALGORITHMS.iter().position(|(known, ..)| name.trim().eq_ignore_ascii_case(known)) {
            likes[at] = Some(thousandths);
        }
    }
    let best = likes.into_iter().flatten().max().filter(|best| *best > 0)?;
    likes.iter().position(|like| *like == Some(best))
}

/// A quality from 0 to 1 with three digits after the point; 0 if it is none.
fn thousandths(text: &str) -> u32 {
    let (whole, rest) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let is_valid = matches!(whole, "0" | "1") && rest.len() <= 3 && rest.bytes().all(|byte| byte.is_ascii_digit());
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    if is_valid { (number(whole) * 1000 + number(&format!("{rest:0<3}"))).min(1000) } else { 0 }
}

/// Whether an answer is text of which a compressed form may be made.
fn is_compressible(response: &ResponseHeader) -> bool {
    let field = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = field("content-type").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_text = (kind.starts_with("text/") && kind != "text/event-stream")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || ["json", "javascript", "xml", "wasm", "x-javascript", "manifest"]
            .iter()
            .any(|end| kind == format!("application/{end}"));
    let length = field("content-length").parse::<usize>().ok();
    let is_whole = response.status.as_u16() != 206 && !response.headers.contains_key("content-range");
    is_text
        && is_whole
        && !response.headers.contains_key("content-encoding")
        && !field("cache-control").to_ascii_lowercase().contains("no-transform")
        && length.is_none_or(|length| length >= LEAST)
}

/// Has pingora compress this answer, if it is text and the client asks for that.
///
/// # Errors
/// A header that cannot be set.
pub(super) fn set(session: &mut Session, response: &mut ResponseHeader) -> pingora::Result<()> {
    if !is_compressible(response) {
        return Ok(());
    }
    let lists: Vec<&str> =
        session.req_header().headers.get_all("accept-encoding").into_iter().filter_map(|value| value.to_str().ok()).collect();
    let Some(at) = preferred(&lists.join(",")) else {
        // A cache must not give another client's answer to this one.
        return response.append_header("vary", "accept-encoding").map(drop);
    };
    let (name, algorithm, level) = &ALGORITHMS[at];
    if let Some(compression) = session.downstream_modules_ctx.get_mut::<ResponseCompression>() {
        let mut wish = RequestHeader::build("GET", b"/", Some(1))?;
        wish.insert_header("accept-encoding", *name)?;
        compression.adjust_algorithm_level(*algorithm, *level);
        compression.request_filter(&wish);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_likes_best_and_nothing_that_it_refuses() {
        for (accept, expected) in [
            ("", None),
            ("gzip", Some("gzip")),
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("br", None),
            ("gzip;q=1.0, zstd;q=0.5", Some("gzip")),
            ("gzip;q=0.25, zstd;q=0.5", Some("zstd")),
            ("GZIP ; q=0.1", Some("gzip")),
            ("gzip;q=0", None),
            ("zstd;q=0, gzip", Some("gzip")),
            ("*", None),
            ("identity, gzip;q=x", None),
        ] {
            assert_eq!(preferred(accept).map(|at| ALGORITHMS[at].0), expected, "{accept}");
        }
    }

    #[test]
    fn only_whole_text_is_compressible() {
        for (status, headers, expected) in [
            (200, &[("content-type", "text/html; charset=utf-8")][..], true),
            (200, &[("content-type", "application/json"), ("content-length", "256")], true),
            (200, &[("content-type", "application/json"), ("content-length", "255")], false),
            (200, &[("content-type", "image/svg+xml")], true),
            (200, &[("content-type", "image/png")], false),
            (200, &[("content-type", "text/event-stream")], false),
            (200, &[("content-type", "application/grpc")], false),
            (200, &[], false),
            (206, &[("content-type", "text/plain")], false),
            (200, &[("content-type", "text/plain"), ("content-encoding", "br")], false),
            (200, &[("content-type", "text/plain"), ("cache-control", "public, No-Transform")], false),
        ] {
            let mut response = ResponseHeader::build(status, None).unwrap();
            for (name, value) in headers {
                response.insert_header(*name, *value).unwrap();
            }
            assert_eq!(is_compressible(&response), expected, "{status} {headers:?}");
        }
    }
}
