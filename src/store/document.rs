//! JSON documents of the replicated log (entries, snapshots): each carries the number of its format.

use super::feature_level::FEATURE_LEVELS;
use crate::durable::{self, FormatError, UnknownFields};
use serde::de::DeserializeOwned;

/// Reads a document of any level of this build ([`FEATURE_LEVELS`]); its `format` is the level that it was written at.
///
/// # Errors
/// It is damaged, of another level, or has fields that this build does not know.
pub fn decode_document<T: DeserializeOwned>(bytes: &[u8]) -> anyhow::Result<T> {
    durable::decode(bytes, FEATURE_LEVELS, UnknownFields::Refused).map_err(|error| match error {
        FormatError::Unsupported { found, supported } => {
            anyhow::anyhow!("it has format {found}, this skep reads format {supported}: install the newer skep again")
        }
        FormatError::Unknown(what) => {
            anyhow::anyhow!("it was written by a newer version of skep ({what}): install the newer skep again")
        }
        FormatError::Damaged(source) => anyhow::Error::new(source).context("it is damaged"),
    })
}
