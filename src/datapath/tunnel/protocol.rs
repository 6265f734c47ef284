//! The protocol between the daemon and the tunnel process: JSON, one document per line, over a unix socket.

use super::super::{TunnelState, TunnelStep};
use crate::model::WgKey;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Incremented when a request or a reply changes its meaning: a process with another number is replaced, not adopted.
pub(super) const PROTOCOL: u32 = 3;

/// Bytes; enough for some 100,000 allowed-ips.
const MAX_LINE: u64 = 8 << 20;

/// A request of the daemon.
#[derive(Serialize, Deserialize, Debug)]
#[serde(tag = "do", rename_all = "lowercase")]
pub(super) enum TunnelRequest {
    /// Identify the process.
    Hello,
    /// Report the state of the device.
    Observe,
    /// Change peers.
    Apply { steps: Vec<TunnelStep> },
    /// Use the private key that the key file has now. Answered with the hello.
    Rekey,
    /// Answered only when the process stops by request. If the connection ends without a reply, the process died.
    Watch,
    /// Exit.
    Stop {
        /// The device remains, with its addresses and routes, for the next process.
        keep_device: bool,
    },
}

/// A reply of the process.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum TunnelReply {
    /// To [`TunnelRequest::Hello`] and [`TunnelRequest::Rekey`].
    Hello(TunnelHello),
    /// To [`TunnelRequest::Observe`].
    State(TunnelState),
    /// To [`TunnelRequest::Apply`].
    Applied,
    /// To [`TunnelRequest::Watch`] and [`TunnelRequest::Stop`].
    Stopping,
    /// To any request: why it failed.
    Error(String),
}

/// Identifies a tunnel process.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(super) struct TunnelHello {
    /// The [`PROTOCOL`] that it speaks.
    pub protocol: u32,
    /// Version of the program, informative.
    pub version: String,
    pub pid: u32,
    /// Random, drawn when the process started.
    pub instance: u64,
    /// Public key of its device.
    pub key: WgKey,
    /// The listen address that it was started with.
    pub listen: SocketAddr,
    /// Name of the device.
    pub device: String,
    /// Device and inode of the namespace that its TUN device is in.
    pub mesh: (u64, u64),
}

/// Why a line could not be read.
#[derive(thiserror::Error, Debug)]
pub(super) enum LineError {
    #[error("the line ended before its newline")]
    Truncated,
    #[error("the line is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("reading the line failed")]
    Io(#[from] io::Error),
}

/// Reads the next line, with its newline; `None` at the end of the connection.
pub(super) async fn read_line(reader: &mut (impl AsyncBufRead + Unpin + Send)) -> Result<Option<Vec<u8>>, LineError> {
    let mut line = Vec::new();
    let length = (&mut *reader).take(MAX_LINE).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if length as u64 == MAX_LINE => Err(LineError::TooLong),
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
    use crate::durable::recorded::RecordedNames;

    #[tokio::test]
    async fn truncated_and_overlong_lines_are_errors() {
        let mut reader = b"one\n\ntw".as_slice();
        assert_eq!(read_line(&mut reader).await.unwrap().unwrap(), b"one\n");
        assert_eq!(read_line(&mut reader).await.unwrap().unwrap(), b"\n");
        assert!(matches!(read_line(&mut reader).await, Err(LineError::Truncated)));
        assert!(read_line(&mut b"".as_slice()).await.unwrap().is_none());
        let long = vec![b'x'; usize::try_from(MAX_LINE).unwrap() + 1];
        assert!(matches!(read_line(&mut long.as_slice()).await, Err(LineError::TooLong)));
    }

    /// The daemon and the process may be of two builds.
    #[test]
    fn what_they_say_is_recorded_with_every_field() {
        let recorded = serde_json::from_slice(include_bytes!("../../../tests/it/formats/tunnel.json")).unwrap();
        let names = RecordedNames::default();
        names.read_all::<TunnelRequest>(&recorded, "TunnelRequest");
        names.read_all::<TunnelStep>(&recorded, "TunnelStep");
        names.read_all::<TunnelReply>(&recorded, "TunnelReply");
        assert_eq!(names.missing(), [""; 0], "record them in tests/it/formats/tunnel.json");
    }

    #[test]
    fn the_names_on_the_wire_are_stable() {
        let request = TunnelRequest::Apply { steps: vec![TunnelStep::Remove(WgKey([0; 32]))] };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"do":"apply","steps":[{"Remove":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}]}"#);
        assert_eq!(serde_json::to_string(&TunnelRequest::Hello).unwrap(), r#"{"do":"hello"}"#);
        assert_eq!(serde_json::to_string(&TunnelReply::Applied).unwrap(), r#""applied""#);
    }
}
