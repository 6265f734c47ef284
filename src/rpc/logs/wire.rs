//! What a frame of a connection for logs holds. The manager's are JSON; the node's are a kind, the task and bytes.

use crate::model::logs::MAX_LOG_PIECE;
use crate::model::{LogPiece, LogRequest, LogStream, TaskId, TaskLog};
use bytes::{Buf as _, BufMut as _, Bytes};
use serde::{Deserialize, Serialize};

/// Largest frame in both directions, in bytes.
pub const MAX_FRAME: usize = MAX_LOG_PIECE + 1024;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ENDED: u8 = 3;
const FAILED: u8 = 4;
const ALIVE: u8 = 5;

/// From the manager.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ToLogs {
    /// Read this log too.
    Read(LogRequest),
    Alive,
}

/// From the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromLogs {
    Log(TaskId, TaskLog),
    Alive,
}

impl FromLogs {
    pub fn encode(&self) -> Vec<u8> {
        let Self::Log(task, log) = self else { return vec![ALIVE] };
        let (kind, data): (u8, &[u8]) = match log {
            TaskLog::Piece(LogPiece { stream: LogStream::Stdout, data }) => (STDOUT, data),
            TaskLog::Piece(LogPiece { stream: LogStream::Stderr, data }) => (STDERR, data),
            TaskLog::Ended(None) => (ENDED, &[]),
            TaskLog::Ended(Some(reason)) => (FAILED, reason.as_bytes()),
        };
        let id = task.as_str().as_bytes();
        // Ids have 25 characters; a longer one of a task that does not exist is cut.
        let length = u8::try_from(id.len()).unwrap_or(u8::MAX);
        let mut out = Vec::with_capacity(2 + id.len() + data.len());
        out.put_slice(&[kind, length]);
        out.put_slice(&id[..usize::from(length)]);
        out.put_slice(data);
        out
    }

    /// `None` if it is no such frame.
    pub fn decode(mut frame: Bytes) -> Option<Self> {
        let kind = frame.try_get_u8().ok()?;
        if kind == ALIVE {
            return Some(Self::Alive);
        }
        let length = usize::from(frame.try_get_u8().ok()?);
        if frame.len() < length {
            return None;
        }
        let task = TaskId::from(std::str::from_utf8(&frame.split_to(length)).ok()?);
        let log = match kind {
            STDOUT => TaskLog::Piece(LogPiece { stream: LogStream::Stdout, data: frame }),
            STDERR => TaskLog::Piece(LogPiece { stream: LogStream::Stderr, data: frame }),
            ENDED => TaskLog::Ended(None),
            FAILED => TaskLog::Ended(Some(String::from_utf8_lossy(&frame).into_owned())),
            _ => return None,
        };
        Some(Self::Log(task, log))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written(bytes in prop::collection::vec(any::<u8>(), 0..64), text in ".{1,20}") {
            let data = Bytes::from(bytes);
            let piece = |stream| TaskLog::Piece(LogPiece { stream, data: data.clone() });
            for log in [piece(LogStream::Stdout), piece(LogStream::Stderr), TaskLog::Ended(None), TaskLog::Ended(Some(text.clone()))] {
                let frame = FromLogs::Log(TaskId::from("0123456789abcdefghijklmno"), log);
                prop_assert_eq!(FromLogs::decode(frame.encode().into()), Some(frame));
            }
            prop_assert_eq!(FromLogs::decode(FromLogs::Alive.encode().into()), Some(FromLogs::Alive));
        }
        #[test]
        fn garbage_is_no_frame_or_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = FromLogs::decode(Bytes::from(bytes));
        }
    }

    #[test]
    fn what_is_cut_short_is_no_frame() {
        for cut in [&[][..], &[9], &[STDOUT], &[STDOUT, 5, b'a'], &[9, 1, b'a']] {
            assert_eq!(FromLogs::decode(Bytes::copy_from_slice(cut)), None);
        }
    }
}
