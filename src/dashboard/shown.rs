//! What the page is sent, as `/api/overview`.

use crate::ingress::PortStatus;
use crate::ingress::http::HttpListenerStatus;
use crate::ingress::http::RouteRates;
use serde::Serialize;
use std::collections::BTreeMap;

/// All that the page shows, but for histories.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct DashboardOverview {
    /// When it was read, RFC 3339.
    pub at: String,
    pub this: ShownDaemon,
    pub nodes: Vec<ShownNode>,
    /// Why there are no services and tasks. Empty: there are.
    pub cluster_error: String,
    pub services: Vec<ShownService>,
    pub tasks: Vec<ShownTask>,
    /// Tasks that are not among `tasks`, because there are more than the bound.
    pub tasks_left_out: usize,
    pub http: ShownHttp,
    pub ports: Vec<PortStatus>,
    pub drops: Vec<ShownDrop>,
}

/// The node that the page is of.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownDaemon {
    pub version: String,
    /// `inactive`, `pending`, `error` or `active`.
    pub state: String,
    pub error: String,
    pub hostname: String,
    /// `manager`, `worker`; empty outside a swarm.
    pub role: String,
    pub leader: String,
    pub session: String,
    /// What does not work, or not as well as it could: a line each.
    pub warnings: Vec<String>,
    pub tunnel: String,
    pub datapath: String,
    /// Of the node's certificate; `None` outside a swarm.
    pub certificate_seconds_left: Option<u64>,
}

/// A node and the way to it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownNode {
    pub id: String,
    pub hostname: String,
    pub manager: bool,
    pub leader: bool,
    /// It is the node that the page is of.
    pub here: bool,
    /// `ready`, `down`, `unknown`, as managers see it; empty if the node is no manager.
    pub state: String,
    /// `active`, `pause`, `drain`; empty if the node is no manager.
    pub availability: String,
    /// `self`, `direct` or `none`.
    pub path: String,
    pub endpoint: String,
    pub handshake_seconds: Option<u64>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownService {
    pub id: String,
    pub name: String,
    pub stack: String,
    /// Without its digest.
    pub image: String,
    /// `replicated`, `global`, `replicated job`, `global job`.
    pub mode: String,
    pub running: u64,
    pub desired: u64,
    /// State of the last update; empty without one.
    pub update: String,
    pub update_message: String,
    /// `8080→80/tcp`.
    pub ports: Vec<String>,
    /// New connections since the kernel's maps were created, on this node.
    pub connections: u64,
}

/// A task that is wanted.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownTask {
    pub id: String,
    pub service: String,
    /// 0: of a global service.
    pub slot: u64,
    pub node: String,
    pub state: String,
    pub error: String,
    pub since: String,
}

/// HTTP ingress on this node.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownHttp {
    pub error: String,
    pub connections: u64,
    pub listeners: Vec<HttpListenerStatus>,
    pub problems: Vec<String>,
    pub routes: Vec<ShownRoute>,
}

/// A route.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownRoute {
    pub host: String,
    pub prefix: String,
    pub service: String,
    pub ready: usize,
    pub tasks: usize,
    pub certificate: String,
    pub certificate_seconds_left: Option<u64>,
    pub requests: u64,
    pub errors: u64,
    pub rates: RouteRates,
}

/// What was dropped or refused for a reason, on this node since the kernel's maps were created.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct ShownDrop {
    pub reason: String,
    /// What the reason means.
    pub meaning: &'static str,
    /// Left to the host, not dropped.
    pub left: bool,
    pub count: u64,
    /// By how much it rose between the last two reads.
    pub rising: u64,
    /// By service; an empty name for what was for none.
    pub services: BTreeMap<String, u64>,
}
