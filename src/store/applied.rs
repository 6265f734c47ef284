//! What `apply` remembers besides the objects.

use crate::model::Timestamp;
use serde::{Deserialize, Serialize};

/// Of the transactions applied so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Applied {
    /// Time of the last transaction. If the clock of the next one's proposer is behind it, that transaction gets the next
    /// nanosecond, so that times order objects as the log does.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) last_at: Timestamp,
    /// Index of the last plan.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) last_plan: u64,
    /// Term of the last plan.
    #[serde(skip_serializing_if = "is_default")]
    pub(super) term: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Applied {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
