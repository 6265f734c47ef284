//! The join connection: [`client`] is the joiner's side, [`server`] the manager's.

mod client;
pub(super) mod server;

pub use client::{JoinError, JoinOptions, JoinParts, Joined, JoinerSide, join};
pub use server::JoinAuthority;
