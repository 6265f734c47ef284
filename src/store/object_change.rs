//! What became of one object.

use std::sync::Arc;

/// An object's states before and after a transaction; `None` where it did not exist. Not both.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectChange<T> {
    pub before: Option<Arc<T>>,
    pub after: Option<Arc<T>>,
}
