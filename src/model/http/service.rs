//! A service with HTTP routes as every node sees it.

use super::route::HttpRoute;
use crate::model::{NodeId, SecretId, ServiceId, TaskId, Timestamp};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A service with HTTP routes, its certificate and its tasks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpService {
    pub service_id: ServiceId,
    pub service_name: String,
    /// The older one of two services has a host and prefix that both name.
    pub created_at: Timestamp,
    pub routes: Vec<HttpRoute>,
    /// Secret with certificate and key for the routes' hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<SecretId>,
    /// What of the service's labels is not carried out, for users.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The service may have no task: requests wait for one. (Views of older managers do not say.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub holds: bool,
    /// Running tasks with their `ingress` addresses, sorted by task id.
    pub backends: Vec<HttpBackend>,
}

/// A task that receives requests.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct HttpBackend {
    pub task_id: TaskId,
    pub node_id: NodeId,
    /// On `ingress`.
    pub address: Ipv4Addr,
    /// Ports of routes on which its container was observed to listen, sorted.
    pub ports: Vec<u16>,
}
