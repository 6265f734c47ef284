//! Version and times of a stored object.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Written by the store when it applies a transaction, never by the proposer.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Raft index of the commit that last wrote the object; 0 before the first.
    pub version: u64,
    pub created_at: Timestamp,
    /// When the object was last written.
    pub updated_at: Timestamp,
}
