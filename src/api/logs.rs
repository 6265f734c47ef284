//! Logs of services and tasks, as one stream for a client: [`log_options`] reads what was asked, [`targets`] decides whose logs
//! are read, [`LogFormat`] writes lines as the real server does, [`LogFeed`] reads from the nodes.
//!
//! Bounds: a client that does not read holds its nodes back. On the way there are at most 16 pieces in the API, on each
//! connection and on each node (a piece is a line; engines cut them at 16 KiB, more than 256 KiB is refused), and 64 KiB for each
//! log that is read.

mod feed;
mod format;
mod parameters;
mod targets;

pub use feed::LogFeed;
pub use format::LogFormat;
pub use parameters::{check_streams, log_options};
pub use targets::{LogSelector, has_terminal};
