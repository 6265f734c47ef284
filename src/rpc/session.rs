//! The session between a node and the leader: [`client`] is the node's side, [`server`] the leader's.

mod client;
pub(super) mod server;

pub(super) use client::explain;
pub use client::{LearnManager, NodeAt, SessionChannels, SessionConfig, SessionEnd, SessionState, keep_session};
pub use server::SessionServer;
