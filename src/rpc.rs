//! The node-to-node protocol over mutual TLS: join, sessions (later raft and logs). A frame is a length and one JSON
//! document; ALPN says what a connection is for. Knows the messages and the transport, not what is done with them: that
//! is behind the traits [`JoinAuthority`], [`SessionServer`] and [`JoinerSide`].

mod admit;
pub mod frame;
mod gate;
mod join;
pub mod message;
pub mod proof;
pub mod search;
mod server;
mod session;
pub mod session_view;
mod sessions;
mod tls;

pub use admit::JoinAuthority;
pub use join::{JoinError, JoinOptions, JoinParts, Joined, JoinerSide, join};
pub use message::JoinRefused;
pub use server::{Door, Limits, Server};
pub use session::{SessionConfig, SessionEnd, SessionEnds, SessionState, keep_session};
pub use sessions::SessionServer;

/// Largest frame among members, in bytes.
pub const MAX_FRAME: usize = 16 << 20;
/// Largest frame taken from a joiner, in bytes.
pub const MAX_JOINER_FRAME: usize = 1 << 20;
