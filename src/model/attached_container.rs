//! What is known of a plain container on a network. Only data.

use super::serde_helpers::null_as_default;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A plain container on a network: one that no service has. Before it has joined it has neither id nor names.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachedContainer {
    /// The engine's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Further names on the network: aliases, its short id, its host name. Sorted.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub aliases: Vec<String>,
    /// The address that its user asked for, or that it has already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested: Option<Ipv4Addr>,
}
