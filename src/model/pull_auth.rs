//! Credentials for a registry.

use super::secret::{self, Secret};
use serde::{Deserialize, Serialize};

/// Credentials for the registry of a service's image as a client sent them: the value of the header `X-Registry-Auth`, JSON
/// in base64url. Never shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullAuth(#[serde(serialize_with = "secret::expose")] Secret<String>);

impl PullAuth {
    #[must_use]
    pub fn new(header: String) -> Self {
        Self(header.into())
    }
    /// The value of the header.
    #[must_use]
    pub fn header(&self) -> &str {
        self.0.expose()
    }
}
