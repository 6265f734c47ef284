//! Logs of tasks: what is asked of a node, and what it answers.

use super::TaskId;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Largest [`LogPiece`], in bytes. Engines cut lines at 16 KiB; drivers that are plugins may not.
pub const MAX_LOG_PIECE: usize = 256 << 10;

/// Which lines of a container's log, and what stands before each.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "as many flags as the engine's query has")]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    /// Lines that are written later, too.
    pub follow: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Then comes what the log driver keeps with each line, and a blank.
    pub details: bool,
    /// So many lines from the end; `None`: all.
    pub tail: Option<u64>,
    /// Lines from this time on, as `seconds.nanoseconds` since 1970; empty: from the first.
    pub since: String,
}

/// A task whose log is read.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogRequest {
    pub task: TaskId,
    /// Its container has a terminal: the log is plain text, not frames.
    pub tty: bool,
    pub options: LogOptions,
}

/// Where a process has written a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogStream {
    /// A terminal too.
    Stdout,
    Stderr,
}

/// A line with its end, or a part of a long one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogPiece {
    pub stream: LogStream,
    pub data: Bytes,
}

/// What a node answers for one task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TaskLog {
    Piece(LogPiece),
    /// There is no more; the reason, if that is not the end of the log.
    Ended(Option<String>),
}
