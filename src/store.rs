//! The cluster's state on a manager: tables by id, written only through [`Store::apply`], which is deterministic
//! (no clock, no randomness, no order of a hash map): the same log gives the same bytes on every manager.
//! Knows nothing of raft; [`Propose`] is how a transaction gets into the log.

mod handle;
mod object;
mod table;

pub use handle::{LocalProposer, Propose, ProposeError, StoreHandle};
pub use object::{Action, Kind, Object, StoreError, Transaction};
pub use table::Store;
