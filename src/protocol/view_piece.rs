//! A piece of a view as it travels in a session. Only data; [`super::view_stream`] makes and takes pieces.

use crate::model::http::HttpService;
use crate::model::view::{Backend, ClusterPart, NetworkPart, Peer, PublishedPort, ServiceNames, ServiceVip, TaskEndpoint};
use crate::model::{NetworkId, NodeId, Payload, PayloadId, Protocol, Revision, ServiceId, Task, TaskId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One entry of a view that is added, changed or removed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ViewChange {
    Task(Arc<Task>),
    NoTask(TaskId),
    /// The content of a secret or config, which never changes.
    Payload(PayloadId, Arc<Payload>),
    NoPayload(PayloadId),
    /// A network without its lists, which have changes of their own.
    Network(NetworkId, NetworkPart),
    NoNetwork(NetworkId),
    Member(NetworkId, Arc<TaskEndpoint>),
    NoMember(NetworkId, TaskId),
    Vip(NetworkId, Arc<ServiceVip>),
    NoVip(NetworkId, ServiceId),
    Names(NetworkId, Arc<ServiceNames>),
    NoNames(NetworkId, ServiceId),
    /// The cluster without its lists, which have changes of their own.
    Cluster(ClusterPart),
    Node(Peer),
    NoNode(NodeId),
    /// With its backends: before format [`super::BACKENDS`].
    Port(Arc<PublishedPort>),
    /// A port without its backends, which have changes of their own.
    PortHead(PublishedPort),
    Backend(Protocol, u16, Backend),
    NoBackend(Protocol, u16, TaskId),
    NoPort(Protocol, u16),
    /// With its backends.
    Http(Arc<HttpService>),
    NoHttp(ServiceId),
}

/// Some changes of a view.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ViewPiece {
    pub changes: Vec<ViewChange>,
    /// The view is complete with these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<ViewEnd>,
}

/// What a view is, once all of its changes are made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ViewEnd {
    pub revision: Revision,
    /// Which parts it has; the others are as before.
    pub tasks: bool,
    pub networks: bool,
    pub cluster: bool,
}
