//! Where the body of an answer over HTTP/1 ends, and what of the bytes that came belongs to it. Pure.

use super::answer_head::TaskAnswerHead;
use crate::http::framing;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use bytes::{Buf as _, Bytes, BytesMut};
use pingora::http::Method;

/// Bytes of a line between chunks.
const MOST_LINE: usize = 4 << 10;

/// What of a body is still to come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AnswerBody {
    Ended,
    Length(u64),
    /// Chunks.
    Size,
    Chunk(u64),
    AfterChunk,
    Trailers,
    /// All until the connection ends.
    Connection,
}

/// The next of a body.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum BodyPart {
    Bytes(Bytes),
    /// More bytes are needed.
    Wait,
    End,
}

/// What follows a head, from the fields of it; and whether the connection can be used again then.
///
/// # Errors
/// Why the head has no meaning.
pub(super) fn of(head: &mut TaskAnswerHead, method: &Method) -> Result<(AnswerBody, bool), &'static str> {
    if framing::elements(head.all(&TRANSFER_ENCODING)).all(|coding| coding.eq_ignore_ascii_case(b"identity")) {
        // Says nothing.
        head.remove(&TRANSFER_ENCODING);
    }
    let is_coded = head.has(&TRANSFER_ENCODING);
    let length = if is_coded { None } else { head.length()? };
    if is_coded {
        head.remove(&CONTENT_LENGTH);
    }
    let body = if *method == Method::HEAD || matches!(head.status.as_u16(), 100..=199 | 204 | 304) {
        AnswerBody::Ended
    } else if is_coded {
        // It is passed on with this field, in chunks.
        if !framing::ends_in_chunks(head.all(&TRANSFER_ENCODING)) {
            return Err("the answer has a transfer coding that is not chunked at last");
        }
        AnswerBody::Size
    } else {
        match length {
            Some(0) => AnswerBody::Ended,
            Some(length) => AnswerBody::Length(length),
            None => AnswerBody::Connection,
        }
    };
    let says = |word: &[u8]| framing::elements(head.all(&CONNECTION)).any(|token| token.eq_ignore_ascii_case(word));
    let is_kept = if head.is_old { says(b"keep-alive") && !is_coded } else { !says(b"close") };
    Ok((body, is_kept && body != AnswerBody::Connection))
}

impl AnswerBody {
    /// Takes the next part of the body from the bytes.
    ///
    /// # Errors
    /// They are no chunks.
    pub fn take(&mut self, bytes: &mut BytesMut) -> Result<BodyPart, &'static str> {
        loop {
            match self {
                Self::Ended => return Ok(BodyPart::End),
                _ if bytes.is_empty() => return Ok(BodyPart::Wait),
                Self::Connection => return Ok(BodyPart::Bytes(bytes.split().freeze())),
                Self::Length(left) | Self::Chunk(left) => {
                    let length = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let rest = *left - length as u64;
                    *self = match self {
                        Self::Chunk(_) if rest == 0 => Self::AfterChunk,
                        Self::Chunk(_) => Self::Chunk(rest),
                        _ if rest == 0 => Self::Ended,
                        _ => Self::Length(rest),
                    };
                    return Ok(BodyPart::Bytes(bytes.split_to(length).freeze()));
                }
                Self::AfterChunk => {
                    if bytes.len() < 2 {
                        return Ok(BodyPart::Wait);
                    }
                    if !bytes.starts_with(b"\r\n") {
                        return Err("a chunk is longer than it says");
                    }
                    bytes.advance(2);
                    *self = Self::Size;
                }
                // The parser reads a line without any digit as the size 0.
                Self::Size if !bytes[0].is_ascii_hexdigit() => return Err("the body has no chunks"),
                Self::Size => match httparse::parse_chunk_size(bytes) {
                    Ok(httparse::Status::Complete((line, size))) => {
                        bytes.advance(line);
                        *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
                    }
                    Ok(httparse::Status::Partial) if bytes.len() <= MOST_LINE => return Ok(BodyPart::Wait),
                    _ => return Err("the body has no chunks"),
                },
                // Clients are sent none: few read them.
                Self::Trailers => match bytes.iter().position(|byte| *byte == b'\n') {
                    Some(end) => {
                        let is_last = matches!(&bytes[..end], b"" | b"\r");
                        bytes.advance(end + 1);
                        if is_last {
                            *self = Self::Ended;
                        }
                    }
                    None if bytes.len() <= MOST_LINE => return Ok(BodyPart::Wait),
                    None => return Err("a trailer is too long"),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::http::answer_head;

    fn head(version: &str, status: u16, fields: &[(&str, &str)]) -> TaskAnswerHead {
        let fields = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
        let text = format!("{version} {status} x\r\n{fields}\r\n");
        answer_head::take(&mut BytesMut::from(text.as_str())).unwrap().unwrap()
    }

    #[test]
    fn a_head_says_where_its_body_ends() {
        let (new, old) = ("HTTP/1.1", "HTTP/1.0");
        let kept = |body| Ok((body, true));
        let closed = |body| Ok((body, false));
        for (version, status, fields, expected) in [
            (new, 200, &[("content-length", "5")][..], kept(AnswerBody::Length(5))),
            (new, 200, &[("content-length", "5, 5"), ("content-length", "5")], kept(AnswerBody::Length(5))),
            (new, 200, &[("content-length", "5"), ("connection", "x, Close")], closed(AnswerBody::Length(5))),
            (new, 200, &[("content-length", "0")], kept(AnswerBody::Ended)),
            (new, 200, &[("transfer-encoding", "chunked"), ("content-length", "5")], kept(AnswerBody::Size)),
            (new, 200, &[("transfer-encoding", "gzip, Chunked")], kept(AnswerBody::Size)),
            (new, 200, &[("transfer-encoding", "identity"), ("content-length", "5")], kept(AnswerBody::Length(5))),
            (new, 200, &[], closed(AnswerBody::Connection)),
            (old, 200, &[("content-length", "5")], closed(AnswerBody::Length(5))),
            (old, 200, &[("content-length", "5"), ("connection", "keep-alive")], kept(AnswerBody::Length(5))),
            (new, 204, &[], kept(AnswerBody::Ended)),
            (new, 304, &[("content-length", "5")], kept(AnswerBody::Ended)),
            (new, 103, &[], kept(AnswerBody::Ended)),
        ] {
            assert_eq!(of(&mut head(version, status, fields), &Method::GET), expected, "{status} {fields:?}");
        }
        assert_eq!(of(&mut head(new, 200, &[("content-length", "5")]), &Method::HEAD), kept(AnswerBody::Ended));
        for codings in ["chunked, gzip", "gzip", "identity, gzip", "chunked, identity", "x"] {
            assert!(of(&mut head(new, 200, &[("transfer-encoding", codings)]), &Method::GET).is_err(), "{codings}");
        }
        for length in ["", "x", "+5", "5, 6", "5,", "99999999999999999999"] {
            assert!(of(&mut head(new, 200, &[("content-length", length)]), &Method::GET).is_err(), "{length}");
        }
    }

    /// What comes of a body that arrives in parts of so many bytes; what is left after it.
    fn read(mut body: AnswerBody, wire: &[u8], step: usize) -> Result<(Vec<u8>, usize), &'static str> {
        let (mut bytes, mut out, mut at) = (BytesMut::new(), Vec::new(), 0);
        loop {
            match body.take(&mut bytes)? {
                BodyPart::Bytes(part) => out.extend(part),
                BodyPart::End => return Ok((out, bytes.len() + wire.len() - at)),
                BodyPart::Wait if at == wire.len() => return Err("incomplete"),
                BodyPart::Wait => {
                    let next = (at + step).min(wire.len());
                    bytes.extend_from_slice(&wire[at..next]);
                    at = next;
                }
            }
        }
    }

    #[test]
    fn bodies_are_the_same_however_they_are_cut() {
        let chunks = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\nnext";
        for step in 1..=chunks.len() {
            let (out, left) = read(AnswerBody::Size, chunks, step).unwrap();
            assert_eq!((out.as_slice(), left), (&b"abcde"[..], 4), "{step}");
            assert_eq!(read(AnswerBody::Length(3), b"abcnext", step), Ok((b"abc".to_vec(), 4)));
        }
        for wrong in [&b"x\r\n"[..], b"3\r\nabcd\r\n", b"-1\r\n", b"fffffffffffffffffff\r\n", b"\r\n\r\n"] {
            assert!(read(AnswerBody::Size, wrong, 1).is_err_and(|why| why != "incomplete"), "{wrong:?}");
        }
        assert_eq!(read(AnswerBody::Length(9), b"abc", 1), Err("incomplete"));
    }
}
