//! Frames: a length (u32, big-endian) and one JSON document. The codec is pure; reader and writer put it on a stream,
//! with bounds on size and on silence.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const HEAD: usize = 4;

/// What can be wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed.
    #[error("a frame of {len} bytes; {max} are allowed")]
    TooLong {
        /// Length that the frame names.
        len: usize,
        /// What is allowed.
        max: usize,
    },
    /// The other end closed in the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// Not the JSON document that was expected here.
    #[error("a frame that is not understood: {0}")]
    Garbage(#[source] serde_json::Error),
    /// Nothing came for too long.
    #[error("nothing was heard for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The other end takes nothing any more.
    #[error("the other end took nothing for {} ms", .0.as_millis())]
    Stuck(Duration),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

/// Cuts the next document off the front of a buffer; `None` if it is not complete yet.
///
/// # Errors
/// The frame is longer than `max`, which shows as soon as its head is there.
pub fn decode(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*head)).unwrap_or(usize::MAX);
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if buffer.len() < HEAD + len {
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// A message as a frame.
///
/// # Errors
/// It is longer than `max`.
pub fn encode(message: &impl Serialize, max: usize) -> Result<Bytes, FrameError> {
    let document = serde_json::to_vec(message).map_err(FrameError::Garbage)?;
    let len = u32::try_from(document.len()).ok().filter(|_| document.len() <= max);
    let Some(len) = len else { return Err(FrameError::TooLong { len: document.len(), max }) };
    let mut frame = BytesMut::with_capacity(HEAD + document.len());
    frame.put_u32(len);
    frame.put_slice(&document);
    Ok(frame.freeze())
}

/// Reads frames from a stream. [`FrameReader::document`] may be cancelled: nothing read is lost.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    max: usize,
    patience: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of up to `max` bytes; an error when nothing at all comes for `patience`.
    pub fn new(stream: R, max: usize, patience: Duration) -> Self {
        Self { stream, buffer: BytesMut::new(), max, patience }
    }

    /// Other bounds from now on.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// The next document; `None` when the other end has closed between two frames.
    ///
    /// # Errors
    /// See [`FrameError`]; nothing more can be read then.
    pub async fn document(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(document) = decode(&mut self.buffer, self.max)? {
                return Ok(Some(document));
            }
            // Memory grows with what has come, not with what a head promises.
            self.buffer.reserve(4096);
            let read = tokio::time::timeout(self.patience, self.stream.read_buf(&mut self.buffer)).await;
            match read.map_err(|_| FrameError::Silent(self.patience))? {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(_) => {}
                // TLS without its farewell: the process at the other end is gone.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && self.buffer.is_empty() => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(FrameError::Truncated),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The next message.
    ///
    /// # Errors
    /// As [`FrameReader::document`], or the document is not this message.
    pub async fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        match self.document().await? {
            Some(document) => serde_json::from_slice(&document).map(Some).map_err(FrameError::Garbage),
            None => Ok(None),
        }
    }
}

/// Writes frames to a stream. Writing must not be cancelled halfway.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    max: usize,
    patience: Duration,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Frames of up to `max` bytes; an error when one is not taken within `patience`.
    pub fn new(stream: W, max: usize, patience: Duration) -> Self {
        Self { stream, max, patience }
    }

    /// Writes a message.
    ///
    /// # Errors
    /// Too long, stuck, or broken.
    pub async fn write(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        let frame = encode(message, self.max)?;
        let write = async {
            self.stream.write_all(&frame).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(self.patience, write).await.map_err(|_| FrameError::Stuck(self.patience))??;
        Ok(())
    }

    /// Says farewell. Errors do not matter any more.
    pub async fn close(&mut self) {
        let _ = tokio::time::timeout(self.patience, self.stream.shutdown()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(texts in prop::collection::vec(".{0,40}", 0..8), cut in 1_usize..9) {
            let mut wire = Vec::new();
            for text in &texts {
                wire.extend(encode(text, 1024).unwrap());
            }
            let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(document) = decode(&mut buffer, 1024).unwrap() {
                    out.push(serde_json::from_slice::<String>(&document).unwrap());
                }
            }
            prop_assert_eq!(out, texts);
            prop_assert!(buffer.is_empty());
        }
        #[test]
        fn no_bytes_break_the_decoder(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = BytesMut::from(bytes.as_slice());
            while let Ok(Some(_)) = decode(&mut buffer, 16) {}
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_says_so() {
        let frame = encode(&"hello", 64).unwrap();
        for end in 0..frame.len() {
            let mut reader = FrameReader::new(&frame[..end], 64, Duration::from_secs(1));
            let read = reader.message::<String>().await;
            assert!(matches!((end, &read), (0, Ok(None)) | (1.., Err(FrameError::Truncated))), "{end}: {read:?}");
        }
        let mut reader = FrameReader::new(&frame[..], 3, Duration::from_secs(1));
        assert!(matches!(reader.document().await, Err(FrameError::TooLong { len: 7, max: 3 })));
        let mut reader = FrameReader::new(&frame[..], 64, Duration::from_secs(1));
        assert!(matches!(reader.message::<u64>().await, Err(FrameError::Garbage(_))));
    }

    #[tokio::test]
    async fn silence_has_an_end() {
        let (_here, there) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(there, 64, Duration::from_millis(20));
        assert!(matches!(reader.document().await, Err(FrameError::Silent(_))));
        let (here, _there) = tokio::io::duplex(4);
        let mut writer = FrameWriter::new(here, 64, Duration::from_millis(20));
        assert!(matches!(writer.write(&"longer than the pipe").await, Err(FrameError::Stuck(_))));
    }
}
