//! What the daemon and the tunnel process say to each other: JSON, one document a line, over a unix socket.

use super::super::{TunnelState, TunnelStep};
use crate::model::WgKey;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Raised when a request or a reply changes its meaning: a process of another number is replaced, not adopted.
pub(super) const PROTOCOL: u32 = 1;

/// Longest line, bytes: some 100,000 allowed-ips.
const LONGEST: u64 = 8 << 20;

/// What the daemon asks.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(super) enum Request {
    /// Who are you?
    Hello,
    /// What is there?
    Observe,
    /// Change peers.
    Apply {
        /// In order.
        steps: Vec<TunnelStep>,
    },
    /// Answered only when the process is told to stop. A connection that ends without an answer means that it died.
    Watch,
    /// End.
    Stop {
        /// Leave the device, its addresses and routes, to the next process.
        keep_device: bool,
    },
}

/// What the process answers.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Reply {
    /// To [`Request::Hello`].
    Hello(Hello),
    /// To [`Request::Observe`].
    State(TunnelState),
    /// To [`Request::Apply`]: done.
    Applied,
    /// To [`Request::Watch`] and [`Request::Stop`].
    Stopping,
    /// To anything: what went wrong.
    Error(String),
}

/// Who a tunnel process is.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct Hello {
    /// Its [`PROTOCOL`].
    pub protocol: u32,
    /// Version of the program, for people.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Drawn at its start.
    pub instance: u64,
    /// Its public key.
    pub key: WgKey,
    /// What it was told to listen on.
    pub listen: SocketAddr,
    /// The device.
    pub device: String,
    /// Device and inode of the namespace that its TUN device is in.
    pub mesh: (u64, u64),
}

/// A line that could not be read.
#[derive(thiserror::Error, Debug)]
pub(super) enum LineError {
    /// The connection ended within a line.
    #[error("the line ended before its newline")]
    Truncated,
    /// Longer than what is ever sent.
    #[error("the line is longer than {LONGEST} bytes")]
    TooLong,
    /// The connection.
    #[error("reading the line failed")]
    Io(#[from] io::Error),
}

/// The next line; `None` at the end.
pub(super) async fn read_line(reader: &mut (impl AsyncBufRead + Unpin + Send)) -> Result<Option<Vec<u8>>, LineError> {
    let mut line = Vec::new();
    let length = (&mut *reader).take(LONGEST).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if length as u64 == LONGEST => Err(LineError::TooLong),
        Some(_) => Err(LineError::Truncated),
    }
}

/// Writes one document and its newline.
pub(super) async fn write_line(writer: &mut (impl AsyncWrite + Unpin + Send), message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message).map_err(io::Error::other)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_told_from_their_remains() {
        let mut reader = b"one\n\ntw".as_slice();
        assert_eq!(read_line(&mut reader).await.unwrap().unwrap(), b"one\n");
        assert_eq!(read_line(&mut reader).await.unwrap().unwrap(), b"\n");
        assert!(matches!(read_line(&mut reader).await, Err(LineError::Truncated)));
        assert!(read_line(&mut b"".as_slice()).await.unwrap().is_none());
        let long = vec![b'x'; usize::try_from(LONGEST).unwrap() + 1];
        assert!(matches!(read_line(&mut long.as_slice()).await, Err(LineError::TooLong)));
    }

    #[test]
    fn the_words_on_the_wire_stay() {
        let request = Request::Apply { steps: vec![TunnelStep::Remove(WgKey([0; 32]))] };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"do":"apply","steps":[{"Remove":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]}"#);
        assert_eq!(serde_json::to_string(&Request::Hello).unwrap(), r#"{"do":"hello"}"#);
        assert_eq!(serde_json::to_string(&Reply::Applied).unwrap(), r#""applied""#);
    }
}
