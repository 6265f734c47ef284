//! The node-to-node protocol over mutual TLS: joins, sessions, renewals of certificates, raft and proposals between managers. A frame is a length and one
//! document; ALPN tells what a connection is for (logs and relays of a node's Docker API have a port of their own). Knows the messages and the transport, not what is done with them: that
//! is behind the traits [`JoinAuthority`], [`SessionServer`], [`CertificateAuthority`] and [`JoinerSide`].

mod connect_error;
mod engine_relay;
mod failed_joins;
pub mod frame;
mod join;
mod key_change;
mod limits;
mod listener;
mod logs;
mod managers;
mod membership;
pub mod proof;
#[cfg(test)]
mod recorded_tests;
mod refused;
mod renewal;
pub mod search;
mod session;
mod tls;

pub use engine_relay::EngineRelay;
pub use join::{JoinAuthority, JoinError, JoinOptions, JoinParts, Joined, JoinerSide, join};
pub use key_change::{KeyChangeAuthority, KeyChangeError, KeyChangeRefusal, ask_key_change};
pub use limits::ServerLimits;
pub use listener::{ListenerKind, Server};
pub use logs::{LogLink, LogReader, LogService, ManagerAt, read_here};
pub use managers::{ManagerGreeter, ManagerLink, ManagerLinkConfig, ManagerServer, WrongSender};
pub use membership::ask_membership;
pub use refused::RefusedPeers;
pub use renewal::{CertificateAuthority, CertificateHolder, RenewalConfig, RenewalError, request_certificate};
pub use session::{LearnManager, NodeAt, SessionChannels, SessionConfig, SessionEnd, SessionServer, SessionState, keep_session};
