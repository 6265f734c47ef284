//! JSON documents of the replicated log (entries, snapshots): each carries the number of its format.

use crate::durable::{self, FormatError};
use serde::de::DeserializeOwned;

/// Reads a document that has a `format` number among its fields.
///
/// # Errors
/// It is damaged, or another format than the supported one.
pub fn decode_document<T: DeserializeOwned>(bytes: &[u8], supported: u32) -> anyhow::Result<T> {
    durable::decode(bytes, supported).map_err(|error| match error {
        FormatError::Unsupported { found, supported } => {
            anyhow::anyhow!("it has format {found}, this skep reads format {supported}: install the newer skep again")
        }
        FormatError::Damaged(source) => anyhow::Error::new(source).context("it is damaged"),
    })
}
