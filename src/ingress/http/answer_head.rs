//! Heads of answers over HTTP/1 as their bytes, of which each field is a part: most are sent on as they came. Pure.

use crate::http::framing;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName};
use bytes::{BufMut as _, Bytes, BytesMut};
use pingora::Result;
use pingora::http::{ResponseHeader, StatusCode, Version, header_value_from_raw};

/// Fields of a head, in most cases and at most.
const FIELDS: (usize, usize) = (48, 256);

/// Where a part of the bytes is.
type Span = (usize, usize);

/// A head.
#[derive(Debug)]
pub(super) struct TaskAnswerHead {
    pub status: StatusCode,
    /// It is of HTTP/1.0 or older.
    pub is_old: bool,
    bytes: Bytes,
    reason: Span,
    fields: Vec<(Span, Span)>,
}

/// Takes a head from the bytes; `None`: more are needed.
///
/// # Errors
/// They are no answer.
pub(super) fn take(bytes: &mut BytesMut) -> Result<Option<TaskAnswerHead>, &'static str> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match parse::<{ FIELDS.0 }>(bytes) {
        Err(httparse::Error::TooManyHeaders) => parse::<{ FIELDS.1 }>(bytes),
        parsed => parsed,
    }
    .map_err(|_| "the answer is not HTTP")
}

fn parse<const FIELDS: usize>(bytes: &mut BytesMut) -> Result<Option<TaskAnswerHead>, httparse::Error> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true).allow_obsolete_multiline_headers_in_responses(true);
    let httparse::Status::Complete(length) = parser.parse_response(&mut parsed, bytes)? else { return Ok(None) };
    let start = bytes.as_ptr().addr();
    let span = |part: &[u8]| (part.as_ptr().addr().saturating_sub(start), part.len());
    let status = StatusCode::from_u16(parsed.code.unwrap_or(0)).map_err(|_| httparse::Error::Status)?;
    // The parser has a text of its own for a reason that it cannot read.
    let reason = parsed.reason.map(|reason| span(reason.as_bytes())).filter(|(at, count)| at + count <= length);
    let fields = parsed.headers.iter().map(|field| (span(field.name.as_bytes()), span(field.value))).collect();
    let is_old = parsed.version != Some(1);
    let bytes = bytes.split_to(length).freeze();
    Ok(Some(TaskAnswerHead { status, is_old, bytes, reason: reason.unwrap_or((0, 0)), fields }))
}

impl TaskAnswerHead {
    fn part(&self, (at, length): Span) -> &[u8] {
        &self.bytes[at..at + length]
    }

    /// The values of a field, each as it came.
    pub fn all(&self, name: &HeaderName) -> impl DoubleEndedIterator<Item = &[u8]> {
        let is_it = move |field: &&(Span, Span)| self.part(field.0).eq_ignore_ascii_case(name.as_str().as_bytes());
        self.fields.iter().filter(is_it).map(|field| self.part(field.1))
    }

    pub fn has(&self, name: &HeaderName) -> bool {
        self.all(name).next().is_some()
    }

    /// Takes the fields of a name away.
    pub fn remove(&mut self, name: &HeaderName) {
        let bytes = &self.bytes;
        let name = name.as_str().as_bytes();
        self.fields.retain(|((at, length), _)| !bytes[*at..at + length].eq_ignore_ascii_case(name));
    }

    /// Writes status and fields in HTTP/1.1, without those that are of this connection, and without the end of the head.
    pub fn write(&self, out: &mut BytesMut) {
        out.reserve(self.bytes.len() + 128);
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(self.status.as_str().as_bytes());
        out.put_u8(b' ');
        out.put_slice(self.part(self.reason));
        out.put_slice(b"\r\n");
        for (name, value) in &self.fields {
            let (name, value) = (self.part(*name), self.part(*value));
            let is_ours = |own: &HeaderName| name.eq_ignore_ascii_case(own.as_str().as_bytes());
            if is_ours(&CONNECTION) || is_ours(&DATE) {
                continue;
            }
            out.put_slice(name);
            out.put_slice(b": ");
            if value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
                out.put_slice(header_value_from_raw(Bytes::copy_from_slice(value)).as_bytes());
            } else {
                out.put_slice(value);
            }
            out.put_slice(b"\r\n");
        }
    }

    /// In the form in which fields can be changed. `with_case`: with their names as they were written.
    ///
    /// # Errors
    /// A field's name is none.
    pub fn to_header(&self, with_case: bool) -> Result<ResponseHeader> {
        let build = if with_case { ResponseHeader::build } else { ResponseHeader::build_no_case };
        let mut head = build(self.status, Some(self.fields.len() + 4))?;
        let slice = |(at, length): Span| self.bytes.slice(at..at + length);
        if let Ok(reason) = std::str::from_utf8(self.part(self.reason))
            && Some(reason) != self.status.canonical_reason()
        {
            head.set_reason_phrase(Some(reason))?;
        }
        for (name, value) in &self.fields {
            head.append_header(slice(*name), header_value_from_raw(slice(*value)))?;
        }
        head.set_version(Version::HTTP_11);
        Ok(head)
    }

    /// The length that the head says, once or several times the same.
    ///
    /// # Errors
    /// Why it says none.
    pub fn length(&self) -> Result<Option<u64>, &'static str> {
        framing::length(self.all(&CONTENT_LENGTH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(head: &TaskAnswerHead) -> String {
        let mut out = BytesMut::new();
        head.write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_head_is_sent_on_as_it_came_without_what_is_of_its_connection() {
        let text =
            "HTTP/1.0 404 Nothing here\r\nX-A: 1\r\nDate: x\r\nconnection: close\r\nx-b: 2\r\n  more\r\nX-A: 3\r\n\r\nbody";
        let mut bytes = BytesMut::from(text);
        let mut head = take(&mut bytes).unwrap().unwrap();
        assert_eq!((head.status.as_u16(), head.is_old, &bytes[..]), (404, true, &b"body"[..]));
        assert_eq!(written(&head), "HTTP/1.1 404 Nothing here\r\nX-A: 1\r\nx-b: 2 more\r\nX-A: 3\r\n");
        let mut wire = Vec::new();
        head.to_header(true).unwrap().header_to_h1_wire(&mut wire);
        let wire = String::from_utf8(wire).unwrap();
        assert!(wire.contains("X-A: 1\r\n") && wire.contains("X-A: 3\r\n") && wire.contains("x-b: 2 more\r\n"), "{wire}");
        head.remove(&HeaderName::from_static("x-a"));
        assert_eq!(written(&head), "HTTP/1.1 404 Nothing here\r\nx-b: 2 more\r\n");
    }

    #[test]
    fn other_bytes_are_no_head_and_parts_of_one_wait() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(FIELDS.1));
        assert_eq!(take(&mut BytesMut::from(many.as_str())).unwrap().unwrap().fields.len(), FIELDS.1);
        assert!(take(&mut BytesMut::from("SSH-2.0-x\r\n")).is_err());
        assert!(take(&mut BytesMut::from("HTTP/1.1 200 OK\r\nx")).unwrap().is_none());
        assert_eq!(written(&take(&mut BytesMut::from("HTTP/1.1 204\r\n\r\n")).unwrap().unwrap()), "HTTP/1.1 204 \r\n");
        assert_eq!(written(&take(&mut BytesMut::from("HTTP/1.1 200 \u{e9}\r\n\r\n")).unwrap().unwrap()), "HTTP/1.1 200 \r\n");
    }
}
