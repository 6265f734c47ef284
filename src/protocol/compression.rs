//! Large documents travel compressed, as a zlib stream (RFC 1950): the entries of a view repeat names, ids and addresses, and what
//! is sent to many nodes is compressed once. A zlib stream begins with a byte that no JSON document begins with.

use super::shared_documents::Document;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use std::borrow::Cow;
use std::io::{self, Read as _, Write as _};

/// Smaller documents are sent as they are, in bytes: little is gained, and compressing takes longer than sending.
const SMALLEST: usize = 1024;
/// First byte of a zlib stream with the window that deflate has.
const ZLIB: u8 = 0x78;

/// The document as it travels.
#[must_use]
pub fn compressed(document: Vec<u8>) -> Document {
    if document.len() < SMALLEST {
        return document.into();
    }
    let mut encoder = ZlibEncoder::new(Vec::with_capacity(document.len() / 8), Compression::fast());
    // Writing to memory does not fail; if it did, the document would be sent as it is.
    let stream = encoder.write_all(&document).and_then(|()| encoder.finish());
    stream.unwrap_or(document).into()
}

/// The document that arrived.
///
/// # Errors
/// The stream is damaged, or the document is longer than `max` bytes.
pub fn expanded(document: &[u8], max: usize) -> io::Result<Cow<'_, [u8]>> {
    if document.first() != Some(&ZLIB) {
        return Ok(Cow::Borrowed(document));
    }
    let mut out = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    ZlibDecoder::new(document).take(limit).read_to_end(&mut out)?;
    if out.len() > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a document of more than {max} bytes")));
    }
    Ok(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_arrives_is_what_was_sent(text in ".{0,600}", times in 1_usize..8) {
            let document = serde_json::to_vec(&text.repeat(times)).unwrap();
            let sent = compressed(document.clone());
            prop_assert_eq!(&*expanded(&sent, document.len()).unwrap(), &document[..]);
            prop_assert!(document.len() < SMALLEST || sent.first() == Some(&ZLIB));
        }
        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let stream: Vec<u8> = [ZLIB].into_iter().chain(bytes).collect();
            let _ = expanded(&stream, 1000);
        }
    }

    #[test]
    fn a_small_stream_of_a_large_document_is_refused() {
        let sent = compressed(vec![b'1'; 4 << 20]);
        assert!(sent.len() < 64 << 10, "{}", sent.len());
        assert!(expanded(&sent, 4 << 20).is_ok());
        let error = expanded(&sent, (4 << 20) - 1).unwrap_err().to_string();
        assert!(error.contains("more than"), "{error}");
        assert!(expanded(&sent[..sent.len() / 2], 4 << 20).is_err(), "it is cut");
    }
}
