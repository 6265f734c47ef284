//! Overlay networks.

use super::{id::NetworkId, meta::Meta, serde_helpers::null_as_default};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the network that carries published ports.
pub const INGRESS: &str = "ingress";

/// An overlay network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    /// Its id.
    pub id: NetworkId,
    /// Version and times.
    pub meta: Meta,
    /// What the user set.
    pub spec: NetworkSpec,
    /// Cut from the pool by the allocator; `None` until then.
    pub subnet: Option<Ipv4Net>,
}

/// What `docker network create` posts (the parts that are carried out).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSpec {
    /// Unique among networks, case ignored.
    pub name: String,
    /// User's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// No default route for its containers.
    pub internal: bool,
    /// Plain containers may attach.
    pub attachable: bool,
    /// It is the network that carries published ports.
    pub ingress: bool,
    /// Subnets asked for by the user (at most one, IPv4).
    #[serde(deserialize_with = "null_as_default")]
    pub subnets: Vec<Ipv4Net>,
    /// Driver options, as posted.
    #[serde(deserialize_with = "null_as_default")]
    pub options: BTreeMap<String, String>,
}
