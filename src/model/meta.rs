//! What every stored object carries.

use super::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Version and times of an object. Set by [`crate::store::Store::apply`], never by whoever proposes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Raft index of the commit that last wrote the object; 0 before the first.
    pub version: u64,
    /// When the object was created.
    pub created_at: Timestamp,
    /// When the object was last written.
    pub updated_at: Timestamp,
}
