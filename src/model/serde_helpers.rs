//! How JSON written by Go programs is read.

use serde::{Deserialize, Deserializer};

/// Reads `null` as the default value: clients written in Go send it for empty maps and lists.
///
/// # Errors
/// It is neither.
pub fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
