//! A container's log as the engine streams it: frames of eight bytes and a line each, or of a terminal plain text. Not
//! through bollard, which knows neither details nor a start between two seconds.

use super::EngineError;
use crate::http::{ReplyStream, UnixClient};
use crate::model::logs::MAX_LOG_PIECE;
use crate::model::{LogOptions, LogPiece, LogStream};
use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};

/// Bytes before the text of a frame: the stream, three zeros, the length (big-endian).
const HEADER: usize = 8;
/// The stream's number in a frame that was written to standard error.
const STDERR: u8 = 2;

/// Pieces of a log; ends with it.
pub type LogPieces = BoxStream<'static, Result<LogPiece, EngineError>>;

/// Reads the log of a container until it ends, or the stream is dropped.
///
/// # Errors
/// The engine does not answer, does not have the container, or cannot read its log driver.
pub async fn read(
    client: &UnixClient,
    engine: &str,
    container: &str,
    tty: bool,
    options: &LogOptions,
) -> Result<LogPieces, EngineError> {
    let unavailable = {
        let engine = engine.to_owned();
        move |e: anyhow::Error| EngineError::Unavailable { engine: engine.clone(), reason: format!("{e:#}") }
    };
    let reply = client.stream(&target(container, options)).await.map_err(&unavailable)?;
    if !reply.status.is_success() {
        let missing = reply.status == 404;
        let refused = reply.whole().await.map_err(&unavailable)?.ok().err().map(|e| e.to_string()).unwrap_or_default();
        return Err(if missing { EngineError::NotFound(refused) } else { EngineError::Refused(refused) });
    }
    let state = (reply, LogDecoder::new(tty), false);
    Ok(futures_util::stream::unfold(state, move |(mut reply, mut decoder, ended)| {
        let unavailable = unavailable.clone();
        async move {
            if ended {
                return None;
            }
            let piece = next(&mut reply, &mut decoder).await.transpose()?;
            let ended = piece.is_err();
            let piece = piece.map_err(|e| match e.downcast::<TooLong>() {
                Ok(too_long) => EngineError::Refused(too_long.to_string()),
                Err(other) => unavailable(other),
            });
            Some((piece, (reply, decoder, ended)))
        }
    })
    .boxed())
}

fn target(container: &str, options: &LogOptions) -> String {
    let LogOptions { stdout, stderr, follow, timestamps, details, tail, since } = options;
    let tail = tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string());
    let since = if since.is_empty() { String::new() } else { format!("&since={since}") };
    let flag = |set: &bool| u8::from(*set);
    format!(
        "/containers/{container}/logs?stdout={}&stderr={}&follow={}&timestamps={}&details={}&tail={tail}{since}",
        flag(stdout),
        flag(stderr),
        flag(follow),
        flag(timestamps),
        flag(details),
    )
}

async fn next(reply: &mut ReplyStream, decoder: &mut LogDecoder) -> anyhow::Result<Option<LogPiece>> {
    loop {
        if let Some(piece) = decoder.next()? {
            return Ok(Some(piece));
        }
        match reply.chunk().await? {
            Some(chunk) => decoder.push(&chunk),
            None => return Ok(decoder.rest()),
        }
    }
}

/// A frame is longer than [`MAX_LOG_PIECE`].
#[derive(Debug, thiserror::Error)]
#[error("the log has a line of {0} bytes: longer ones than {MAX_LOG_PIECE} are not read")]
struct TooLong(usize);

/// Cuts a log into pieces, however its bytes arrive.
struct LogDecoder {
    tty: bool,
    buffer: BytesMut,
}

impl LogDecoder {
    fn new(tty: bool) -> Self {
        Self { tty, buffer: BytesMut::new() }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete piece, if there is one.
    fn next(&mut self) -> Result<Option<LogPiece>, TooLong> {
        if self.tty {
            let end = self.buffer.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let end = end.or((self.buffer.len() >= MAX_LOG_PIECE).then_some(MAX_LOG_PIECE));
            return Ok(end.map(|end| LogPiece { stream: LogStream::Stdout, data: self.buffer.split_to(end).freeze() }));
        }
        let Some([stream, _, _, _, length @ ..]) = self.buffer.first_chunk::<HEADER>().copied() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_LOG_PIECE {
            return Err(TooLong(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let stream = if stream == STDERR { LogStream::Stderr } else { LogStream::Stdout };
        Ok(Some(LogPiece { stream, data: self.buffer.split_to(length).freeze() }))
    }

    /// What a terminal has written after its last line.
    fn rest(&mut self) -> Option<LogPiece> {
        let data: Bytes = self.buffer.split().freeze();
        (self.tty && !data.is_empty()).then_some(LogPiece { stream: LogStream::Stdout, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(stream: u8, text: &[u8]) -> Vec<u8> {
        let length = u32::try_from(text.len()).expect("short");
        [&[stream, 0, 0, 0], &length.to_be_bytes()[..], text].concat()
    }

    /// Pieces of a log that arrives in parts of `cut` bytes.
    fn decoded(tty: bool, log: &[u8], cut: usize) -> Vec<LogPiece> {
        let (mut decoder, mut pieces) = (LogDecoder::new(tty), Vec::new());
        for chunk in log.chunks(cut) {
            decoder.push(chunk);
            while let Some(piece) = decoder.next().expect("short lines") {
                pieces.push(piece);
            }
        }
        pieces.extend(decoder.rest());
        pieces
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_however_the_bytes_are_cut(lines in prop::collection::vec((any::<bool>(), ".{0,40}"), 0..8), cut in 1_usize..60) {
            let log: Vec<u8> = lines.iter().flat_map(|(err, text)| frame(1 + u8::from(*err), text.as_bytes())).collect();
            let expected: Vec<LogPiece> = lines.iter().map(|(err, text)| LogPiece {
                stream: if *err { LogStream::Stderr } else { LogStream::Stdout },
                data: Bytes::copy_from_slice(text.as_bytes()),
            }).collect();
            prop_assert_eq!(decoded(false, &log, cut), expected);
        }
        #[test]
        fn a_terminals_lines_lose_no_byte(text in "[a-c\r\n]{0,60}", cut in 1_usize..20) {
            let pieces = decoded(true, text.as_bytes(), cut);
            prop_assert_eq!(pieces.iter().flat_map(|p| p.data.to_vec()).collect::<Vec<u8>>(), text.as_bytes());
            prop_assert!(pieces.iter().rev().skip(1).all(|p| p.data.ends_with(b"\n")));
        }
    }

    #[test]
    fn a_frame_that_announces_too_much_is_an_error_before_it_is_read() {
        let mut decoder = LogDecoder::new(false);
        decoder.push(&[1, 0, 0, 0, 0xff, 0, 0, 0]);
        assert!(decoder.next().unwrap_err().to_string().contains("4278190080 bytes"));
    }

    #[test]
    fn the_engine_is_asked_for_what_the_user_asked() {
        let options = LogOptions { stderr: true, tail: Some(3), since: "17.000000009".to_owned(), ..LogOptions::default() };
        assert_eq!(
            target("c1", &options),
            "/containers/c1/logs?stdout=0&stderr=1&follow=0&timestamps=0&details=0&tail=3&since=17.000000009"
        );
    }
}
