//! What fields of a head of HTTP/1 say of the length of its body, read in one way by all who ask. Pure. Who asks may take less than this.

/// A number of bytes: digits and nothing else.
pub fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// The elements of fields of one name, whose values may be lists.
pub fn elements<'a>(values: impl DoubleEndedIterator<Item = &'a [u8]>) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    values.flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// The length that the fields `Content-Length` say, once or several times the same.
///
/// # Errors
/// Why they say none.
pub fn length<'a>(values: impl DoubleEndedIterator<Item = &'a [u8]>) -> Result<Option<u64>, &'static str> {
    let mut found = None;
    for text in elements(values) {
        let length = number(text).ok_or("its length is no number")?;
        if found.is_some_and(|before| before != length) {
            return Err("it has several lengths");
        }
        found = Some(length);
    }
    Ok(found)
}

/// Whether a body with these fields `Transfer-Encoding` comes in chunks, so that its end can be seen.
pub fn ends_in_chunks<'a>(values: impl DoubleEndedIterator<Item = &'a [u8]>) -> bool {
    elements(values).next_back().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_one_number_however_often_it_is_said() {
        let read = |values: &[&'static str]| length(values.iter().map(|value| value.as_bytes()));
        for (values, expected) in [
            (&[][..], Some(None)),
            (&["5"], Some(Some(5))),
            (&["5", "5"], Some(Some(5))),
            (&["5, 5", " 05"], Some(Some(5))),
            (&["5", "6"], None),
            (&["5,"], None),
            (&[""], None),
            (&["+5"], None),
            (&["-5"], None),
            (&["5 5"], None),
            (&["0x5"], None),
            (&["18446744073709551616"], None),
        ] {
            assert_eq!(read(values).ok(), expected, "{values:?}");
        }
    }

    #[test]
    fn chunks_are_the_last_coding() {
        let read = |values: &[&'static str]| ends_in_chunks(values.iter().map(|value| value.as_bytes()));
        for chunked in [&["chunked"][..], &["gzip, Chunked"], &["gzip", "chunked"]] {
            assert!(read(chunked), "{chunked:?}");
        }
        for other in [&[][..], &["gzip"], &["chunked, gzip"], &["chunked", "identity"], &["xchunked"], &["chunked,"], &[""]] {
            assert!(!read(other), "{other:?}");
        }
    }
}
