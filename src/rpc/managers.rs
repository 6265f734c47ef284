//! Connections between managers: raft's messages in one direction, and proposals with their answers. Each manager dials every
//! other one.

pub(super) mod client;
mod greeter;
pub(super) mod server;
pub(super) mod wire;

pub use client::{ManagerLink, ManagerLinkConfig};
pub use greeter::ManagerGreeter;
pub use server::{ManagerServer, WrongSender};
