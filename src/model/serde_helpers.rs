//! Deserializing JSON that Go programs wrote.

use serde::{Deserialize, Deserializer};

/// Deserializes `null` as the default value: clients written in Go send it for empty maps and lists.
///
/// # Errors
/// The value is neither `null` nor a `T`.
pub fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
