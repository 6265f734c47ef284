//! Credentials for a registry.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Credentials for the registry of a service's image as a client sent them: the value of the header `X-Registry-Auth`, JSON
/// in base64url. Never shown: `Debug` leaves them out, and what is shown to people must not serialise them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullAuth(String);

impl PullAuth {
    #[must_use]
    pub fn new(header: String) -> Self {
        Self(header)
    }
    /// The value of the header.
    #[must_use]
    pub fn header(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PullAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullAuth(hidden)")
    }
}
