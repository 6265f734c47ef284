//! The cluster's state on a manager: one table per kind of object, written only by [`Store::apply`], which is deterministic
//! (no clock, no randomness, no iteration over a hash map): the same log results in the same bytes on every manager.
//! Knows nothing of raft; [`Propose`] is how a transaction gets into the log.
//!
//! A new kind of object is one line in the list at the end of `object.rs`.

mod applied;
mod apply;
mod condition;
mod diff;
mod document;
mod feature_level;
mod field_update;
mod handle;
mod ids_by;
mod index;
mod lookup;
mod network_use;
mod object;
mod published;
mod resolve;
mod shared_specs;
mod table;
mod task_report;
mod transaction;

pub use condition::Condition;
pub use diff::{ChangedObject, changed};
pub use document::decode_document;
pub use feature_level::{ACME_KEYS, COMPRESSED_SNAPSHOTS, FEATURE_LEVELS, KEY_CHANGES, NODE_ADDRESSES, SCALING_REASONS};
pub use field_update::{FieldUpdate, KeyChange};
pub use handle::{LocalProposer, Propose, ProposeError, StoreHandle};
pub use object::{Action, Kind, Object, Store, StoreError, StoreObject, Table, Uniqueness};
pub use published::{PublishedStore, StorePublisher};
pub use task_report::{is_new_listening, is_new_status};
pub use transaction::{PlanBase, Transaction};
