//! The cluster's state on a manager: one table per kind of object, written only by [`Store::apply`], which is deterministic
//! (no clock, no randomness, no iteration over a hash map): the same log results in the same bytes on every manager.
//! Knows nothing of raft; [`Propose`] is how a transaction gets into the log.
//!
//! A new kind of object is one line in the list at the end of `object.rs`.

mod applied;
mod apply;
mod changes;
mod condition;
mod document;
mod feature_level;
mod feed;
mod field_update;
mod handle;
mod index;
mod lookup;
mod network_use;
mod object;
mod object_change;
mod resolve;
mod shared_specs;
mod table;
mod transaction;

pub use changes::Changes;
pub use condition::Condition;
pub use document::decode_document;
pub use feature_level::FEATURE_LEVELS;
pub use feed::{ChangeFollower, FeedEvent, PublishedStore, StorePublisher};
pub use field_update::FieldUpdate;
pub use handle::{LocalProposer, Propose, ProposeError, StoreHandle};
pub use object::{Action, Change, Kind, Object, Store, StoreError, StoreObject, Table, Uniqueness};
pub use object_change::ObjectChange;
pub use transaction::{PlanBase, Transaction};
