//! The node-to-node protocol over mutual TLS: join, sessions (later raft and logs). A frame is a length and one JSON
//! document; ALPN says what a connection is for. Knows the messages and the transport, not what is done with them: that
//! is behind the traits [`JoinAuthority`], [`SessionServer`] and [`JoinerSide`].

mod admit;
pub mod frame;
mod join;
mod limiter;
pub mod proof;
pub mod search;
mod server;
mod session;
mod sessions;
mod tls;

pub use admit::JoinAuthority;
pub use join::{JoinError, JoinOptions, JoinParts, Joined, JoinerSide, join};
pub use server::{Limits, ListenerKind, Server};
pub use session::{SessionConfig, SessionEnd, SessionEnds, SessionState, keep_session};
pub use sessions::SessionServer;
