//! The root CAs of a cluster over time: the one that issues, those that were replaced, and what bridges them.

use super::secret::{self, Secret};
use serde::{Deserialize, Serialize};

/// What is left of changes of the root CA; empty in a cluster that has had only one.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct CaHistory {
    /// The change that goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RootRotation>,
    /// Roots that nodes may still have certificates of, oldest first. With such a certificate a node gets its next one, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<RetiredRoot>,
    /// Changes so far, those that another one replaced included.
    #[serde(default)]
    pub rotations: u64,
}

impl CaHistory {
    /// The cluster has had one root CA only.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A new root CA: it issues already, and nodes trust both. It takes the old one's place once every node that is up has a certificate of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RootRotation {
    /// PEM.
    pub ca_certificate: String,
    /// PEM. Never sent to a node that is no manager.
    #[serde(serialize_with = "secret::expose")]
    pub ca_key: Secret<String>,
    /// The new root's key, certified by the old root: PEM.
    pub cross: String,
}

/// A root CA that was replaced; its key is gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RetiredRoot {
    /// PEM.
    pub certificate: String,
    /// Its successor's key, certified by it: PEM.
    pub cross: String,
}

/// What a node trusts, and shows beside its certificate. All PEM.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TrustBundle {
    /// The root that issues certificates now: a node that has one of another root gets its next one at once.
    pub issuer: String,
    /// Roots whose certificates are accepted.
    pub trusted: Vec<String>,
    /// Certificates that lead from a replaced root to the one that issues.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chain: Vec<String>,
    /// Roots whose certificates managers accept for a renewal alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<String>,
}
