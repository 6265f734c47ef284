//! What the process reports of itself, and the daemon of the process.

use super::counts::RouteCounts;
use super::exemplars::HttpExemplar;
use super::rates::RouteRates;
use crate::model::{ServiceDemand, ServiceId, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// HTTP ingress on this node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpStatus {
    /// Process id of `skep http serve`; `None` while there is none.
    pub pid: Option<u32>,
    /// Why the process does not run or does not follow the view. Empty: nothing.
    pub error: String,
    pub listeners: Vec<HttpListenerStatus>,
    pub routes: Vec<HttpRouteStatus>,
    /// What is not served, and what to do about it.
    pub problems: Vec<String>,
    /// Certificates that an authority has not issued: failures in a row by the first name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub certificate_failures: BTreeMap<String, u32>,
    /// Open connections of clients.
    pub connections: u64,
    /// Connections and requests that were cut or refused for what the client did, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Lines of the access log for which there was no room, because its reader stalls or is gone.
    pub log_lines_dropped: u64,
    /// Requests that come and that wait for a task, by service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub demand: BTreeMap<ServiceId, ServiceDemand>,
}

/// A listener.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpListenerStatus {
    /// `0.0.0.0:80`.
    pub address: String,
    pub tls: bool,
    /// The kernel's error if it does not listen; the process tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A route as this node serves it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct HttpRouteStatus {
    pub host: String,
    pub prefix: String,
    pub service: String,
    /// Tasks that were seen to listen.
    pub ready: usize,
    /// Tasks that run.
    pub tasks: usize,
    /// Tasks that get no requests for a while, because they failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Requests in flight.
    #[serde(default)]
    pub in_flight: u64,
    /// `secret`, `self-signed`, or why the secret is not used.
    pub certificate: String,
    /// End of the life of that certificate. A self-signed one of this process has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_end: Option<Timestamp>,
    /// Since the process started.
    pub counts: RouteCounts,
    /// Requests of some classes of durations whose traces are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exemplars: Vec<HttpExemplar>,
    /// Of the last seconds.
    #[serde(default)]
    pub rates: RouteRates,
}
