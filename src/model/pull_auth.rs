//! Credentials for a registry.

use super::secret::{self, Secret};
use serde::{Deserialize, Serialize, Serializer};
use std::sync::Arc;

/// Credentials for the registry of a service's image as a client sent them: the value of the header `X-Registry-Auth`, JSON
/// in base64url. Never shown. A copy shares it: each task has those of its service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PullAuth(#[serde(serialize_with = "expose")] Arc<Secret<String>>);

fn expose<S: Serializer>(header: &Secret<String>, serializer: S) -> Result<S::Ok, S::Error> {
    secret::expose(header, serializer)
}

impl PullAuth {
    #[must_use]
    pub fn new(header: String) -> Self {
        Self(Arc::new(header.into()))
    }
    /// In place of credentials that are not kept: in a file that people may pass on.
    #[must_use]
    pub fn withheld() -> Self {
        Self::new(String::new())
    }
    /// Whether there were credentials, which are not known here.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.header().is_empty()
    }
    /// The value of the header.
    #[must_use]
    pub fn header(&self) -> &str {
        self.0.expose()
    }
}
