//! Secrets and configs: what a service's tasks get as files. Their content is stored sealed: a copy of the log or of a
//! snapshot does not show it.

use super::id::{ClusterId, ConfigId, NodeId, SecretId};
use super::meta::Meta;
use super::secret::{self, Secret};
use super::serde_helpers::null_as_default;
use super::wg_key::WgKey;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// A secret of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterSecret {
    pub id: SecretId,
    pub meta: Meta,
    pub spec: PayloadSpec,
    pub data: SealedData,
}

/// A config of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    pub id: ConfigId,
    pub meta: Meta,
    pub spec: PayloadSpec,
    pub data: SealedData,
}

/// What users see of a secret or a config. Only its labels may change.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PayloadSpec {
    /// Unique among objects of the kind, without regard to case.
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Templating>,
}

/// How the content is expanded on the node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Templating {
    /// `golang`; a task with another one is rejected, as in Swarm.
    pub name: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub options: BTreeMap<String, String>,
}

/// The templating that skep has.
pub const GOLANG: &str = "golang";

/// Encrypted bytes, in base64.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedData(pub String);

impl fmt::Debug for SealedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} characters]", self.0.len())
    }
}

/// The key that contents are sealed with, for each manager that can open it. The store has one at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PayloadKeys {
    pub id: ClusterId,
    pub meta: Meta,
    pub managers: BTreeMap<NodeId, SealedKey>,
}

/// A key that the holder of a tunnel's private key can open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedKey {
    /// The tunnel's public key.
    pub recipient: WgKey,
    /// Public half of the key that was drawn for this sealing.
    pub ephemeral: WgKey,
    pub data: SealedData,
}

/// A secret or a config.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PayloadId {
    Secret(SecretId),
    Config(ConfigId),
}

/// The content of a secret or config, as a node that runs a task with it is sent it. Never changes, never written to a disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Payload {
    /// Bytes in base64.
    #[serde(serialize_with = "secret::expose")]
    pub data: Secret<String>,
    /// Name of its templating, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templating: Option<String>,
}

impl fmt::Display for PayloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(id) => write!(f, "secret {id}"),
            Self::Config(id) => write!(f, "config {id}"),
        }
    }
}
