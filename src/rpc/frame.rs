//! Frames: a length (u32, big-endian) and one JSON document. The codec is pure; reader and writer apply it to a stream,
//! with bounds on size and on idle time.

use crate::protocol::compression::expanded;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes of the length field.
const HEADER: usize = 4;

/// Bytes written at once.
const PART: usize = 8 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed; both in bytes.
    #[error("a frame of {len} bytes; {max} are allowed")]
    TooLong { len: usize, max: usize },
    /// The peer closed the connection within a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// Not the JSON document that was expected here.
    #[error("a frame that is not understood: {0}")]
    Garbage(#[source] serde_json::Error),
    /// No byte was received for this long.
    #[error("nothing was received for {} ms", .0.as_millis())]
    Silent(Duration),
    /// The peer has stopped reading: no byte of a frame could be written for this long.
    #[error("the peer took nothing for {} ms", .0.as_millis())]
    Stuck(Duration),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
}

impl FrameError {
    /// The text to answer a peer with that sent such a frame; `None` when it would not receive an answer.
    pub fn answer(&self) -> Option<String> {
        match self {
            Self::TooLong { .. } | Self::Garbage(_) | Self::Truncated | Self::Silent(_) => Some(self.to_string()),
            Self::Stuck(_) | Self::Io(_) => None,
        }
    }
}

/// Removes the next document from the front of a buffer; `None` if it is not complete yet.
///
/// # Errors
/// The frame is longer than `max`, which shows as soon as its length is complete.
pub fn decode(buffer: &mut BytesMut, max: usize) -> Result<Option<Bytes>, FrameError> {
    let Some(header) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
    let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
    if len > max {
        return Err(FrameError::TooLong { len, max });
    }
    if buffer.len() < HEADER + len {
        return Ok(None);
    }
    buffer.advance(HEADER);
    Ok(Some(buffer.split_to(len).freeze()))
}

/// Encodes a message as a frame.
///
/// # Errors
/// It is longer than `max`.
pub fn encode(message: &impl Serialize, max: usize) -> Result<Bytes, FrameError> {
    let document = serde_json::to_vec(message).map_err(FrameError::Garbage)?;
    frame_of(&document, max)
}

fn frame_of(document: &[u8], max: usize) -> Result<Bytes, FrameError> {
    let len = u32::try_from(document.len()).ok().filter(|_| document.len() <= max);
    let Some(len) = len else { return Err(FrameError::TooLong { len: document.len(), max }) };
    let mut frame = BytesMut::with_capacity(HEADER + document.len());
    frame.put_u32(len);
    frame.put_slice(document);
    Ok(frame.freeze())
}

/// Reads frames from a stream. [`FrameReader::document`] is cancellation safe: no byte read is lost.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    max: usize,
    idle_limit: Duration,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Frames of up to `max` bytes; an error when no byte is received for `idle_limit`.
    pub fn new(stream: R, max: usize, idle_limit: Duration) -> Self {
        Self { stream, buffer: BytesMut::new(), max, idle_limit }
    }

    /// Changes the longest frame of the following reads.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Changes the idle limit of the following reads.
    pub fn set_idle_limit(&mut self, idle_limit: Duration) {
        self.idle_limit = idle_limit;
    }

    /// The next document; `None` when the peer has closed the connection between two frames.
    ///
    /// # Errors
    /// See [`FrameError`]; nothing more can be read then.
    pub async fn document(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(document) = decode(&mut self.buffer, self.max)? {
                return Ok(Some(document));
            }
            // Memory grows with the bytes received, not with the length that a header announces.
            self.buffer.reserve(4096);
            let read = tokio::time::timeout(self.idle_limit, self.stream.read_buf(&mut self.buffer)).await;
            match read.map_err(|_| FrameError::Silent(self.idle_limit))? {
                Ok(0) if self.buffer.is_empty() => return Ok(None),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(_) => {}
                // TLS without close_notify: the process of the peer has ended.
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

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// The next message, which may be compressed.
    ///
    /// # Errors
    /// As [`FrameReader::message`], or the document is longer than a frame may be.
    pub async fn expanded_message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(document) = self.document().await? else { return Ok(None) };
        let document = expanded(&document, self.max)?;
        serde_json::from_slice(&document).map(Some).map_err(FrameError::Garbage)
    }
}

/// Writes frames to a stream. A write is not cancellation safe.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    max: usize,
    idle_limit: Duration,
    /// Frames that wait for [`FrameWriter::flush`].
    queued: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Frames of up to `max` bytes; an error when no byte of one is taken for `idle_limit`. A slow peer has as long as it needs.
    pub fn new(stream: W, max: usize, idle_limit: Duration) -> Self {
        Self { stream, max, idle_limit, queued: BytesMut::new() }
    }

    /// Writes a message.
    ///
    /// # Errors
    /// Too long, stuck, or broken.
    pub async fn write(&mut self, message: &impl Serialize) -> Result<(), FrameError> {
        self.write_frame(encode(message, self.max)?).await
    }

    /// Writes a message that is encoded already.
    ///
    /// # Errors
    /// As [`FrameWriter::write`].
    pub async fn write_document(&mut self, document: &[u8]) -> Result<(), FrameError> {
        self.write_frame(frame_of(document, self.max)?).await
    }

    /// Adds a message that is encoded already to those that [`FrameWriter::flush`] writes at once; says how many bytes these have.
    ///
    /// # Errors
    /// Too long.
    pub fn queue_document(&mut self, document: &[u8]) -> Result<usize, FrameError> {
        self.queued.extend_from_slice(&frame_of(document, self.max)?);
        Ok(self.queued.len())
    }

    /// Writes the queued messages.
    ///
    /// # Errors
    /// Stuck, or broken.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        let queued = self.queued.split().freeze();
        if queued.is_empty() { Ok(()) } else { self.write_frame(queued).await }
    }

    async fn write_frame(&mut self, mut frame: Bytes) -> Result<(), FrameError> {
        let stuck = |_| FrameError::Stuck(self.idle_limit);
        while !frame.is_empty() {
            // TLS buffers what it is given: in small parts, so that each shows progress.
            let part = frame.len().min(PART);
            let written = tokio::time::timeout(self.idle_limit, self.stream.write(&frame[..part])).await.map_err(stuck)??;
            if written == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            frame.advance(written);
        }
        tokio::time::timeout(self.idle_limit, self.stream.flush()).await.map_err(stuck)??;
        Ok(())
    }

    /// Sends TLS close_notify and closes the sending side. Errors are ignored: the connection is over either way.
    pub async fn close(&mut self) {
        let _ = tokio::time::timeout(self.idle_limit, self.stream.shutdown()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn decoding_returns_the_encoded_frames(texts in prop::collection::vec(".{0,40}", 0..8), cut in 1_usize..9) {
            let mut wire = Vec::new();
            for text in &texts {
                wire.extend(encode(text, 1024).unwrap());
            }
            let (mut buffer, mut out) = (BytesMut::new(), Vec::new());
            for chunk in wire.chunks(cut) {
                buffer.extend_from_slice(chunk);
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
    async fn queued_messages_are_written_together_and_in_order() {
        let (near, far) = tokio::io::duplex(1024);
        let mut writer = FrameWriter::new(near, 64, Duration::from_secs(1));
        writer.flush().await.expect("nothing to write");
        assert_eq!(writer.queue_document(b"one").expect("short"), 7);
        assert_eq!(writer.queue_document(b"two").expect("short"), 14);
        assert!(matches!(writer.queue_document(&[0; 65]), Err(FrameError::TooLong { .. })));
        writer.flush().await.expect("open");
        let mut reader = FrameReader::new(far, 64, Duration::from_secs(1));
        for expected in [b"one", b"two"] {
            assert_eq!(&reader.document().await.expect("open").expect("a frame")[..], expected);
        }
    }

    #[tokio::test]
    async fn a_stream_that_ends_within_a_frame_is_an_error() {
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

    #[tokio::test(flavor = "multi_thread")]
    async fn a_slow_peer_that_reads_gets_a_whole_frame_however_long_it_takes() {
        let limit = Duration::from_millis(200);
        let (mut slow, far) = tokio::io::duplex(1024);
        let text = "x".repeat(100_000);
        let reading = tokio::spawn(async move {
            let (mut all, mut buffer) = (0, [0; 2048]);
            while all < 100_006 {
                tokio::time::sleep(limit / 20).await;
                all += slow.read(&mut buffer).await.expect("open");
            }
            all
        });
        let begin = std::time::Instant::now();
        FrameWriter::new(far, 1 << 20, limit).write(&text).await.expect("progress is enough");
        assert!(begin.elapsed() > limit, "longer than the limit of a pause");
        assert_eq!(reading.await.expect("read"), 100_006);
    }

    #[tokio::test]
    async fn an_idle_connection_times_out() {
        let (_open, far) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(far, 64, Duration::from_millis(20));
        assert!(matches!(reader.document().await, Err(FrameError::Silent(_))));
        let (near, _open) = tokio::io::duplex(4);
        let mut writer = FrameWriter::new(near, 64, Duration::from_millis(20));
        assert!(matches!(writer.write(&"longer than the pipe").await, Err(FrameError::Stuck(_))));
    }
}
