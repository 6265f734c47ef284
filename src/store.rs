//! The cluster's state on a manager: one table per kind of object, written only by [`Store::apply`], which is deterministic
//! (no clock, no randomness, no iteration over a hash map): the same log results in the same bytes on every manager.
//! Knows nothing of raft; [`Propose`] is how a transaction gets into the log.
//!
//! A new kind of object is one line in the list at the end of `object.rs`.

mod document;
mod feature_level;
mod handle;
mod network_use;
mod object;
mod table;

pub use document::decode_document;
pub use feature_level::{FEATURE_LEVELS, check_level};
pub use handle::{LocalProposer, Propose, ProposeError, StoreHandle};
pub use network_use::NetworkUser;
pub use object::{Action, Kind, Object, Store, StoreError, StoreObject, Table, Transaction, Uniqueness};
