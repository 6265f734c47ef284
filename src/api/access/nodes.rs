//! Requests to the APIs of nodes: at the same time, each within a time, so that a node that is lost delays no reply.

use super::context::AccessContext;
use super::engine_node::{EngineNode, all};
use crate::api::error::{ApiError, Result};
use crate::http::{self, BoxedStream, HttpReply, ReplyStream};
use axum::body::Body;
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::{HeaderMap, Method, Request};
use std::time::Duration;

/// Time for a node's reply to what it answers at once: lists and looks.
pub const ANSWER: Duration = Duration::from_secs(6);
/// Time for what an engine works on: a container is made, started, removed.
pub const WORK: Duration = Duration::from_mins(2);
/// Header field of merged replies: the nodes that are not part of them, and why.
pub const MISSING_NODES: &str = "skep-missing-nodes";
/// Header fields of a client that nodes get.
const FORWARDED: [&str; 4] = ["content-type", "x-registry-auth", "x-registry-config", "user-agent"];

/// A request as each node gets it.
#[derive(Clone, Debug)]
pub struct NodeRequest {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl NodeRequest {
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: Method::GET, target: target.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, ..Self::get(target) }
    }
    /// With a JSON body.
    #[must_use]
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
        self.body = body.to_string().into();
        self
    }
    /// With those of a client's header fields that concern an engine.
    #[must_use]
    pub fn with_headers(mut self, from: &HeaderMap) -> Self {
        for name in FORWARDED {
            if let Some(value) = from.get(name) {
                self.headers.insert(name, value.clone());
            }
        }
        self
    }
    fn http(self) -> anyhow::Result<Request<Body>> {
        Self::http_with(self.method, &self.target, self.headers, Body::from(self.body))
    }
    /// A request whose body is streamed.
    ///
    /// # Errors
    /// The target is none.
    pub fn http_with(method: Method, target: &str, headers: HeaderMap, body: Body) -> anyhow::Result<Request<Body>> {
        let mut request = Request::builder().method(method).uri(target).body(body)?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
        Ok(request)
    }
}

/// What a node answered, or why it did not.
pub type NodeAnswer = (EngineNode, std::result::Result<HttpReply, String>);

impl AccessContext {
    /// All nodes, by name.
    ///
    /// # Errors
    /// 503 unless this node is a manager.
    pub fn nodes(&self) -> Result<Vec<EngineNode>> {
        let store = self.store()?;
        Ok(all(&store))
    }

    /// A connection to a node's API.
    ///
    /// # Errors
    /// 503 that names the node.
    pub async fn connect(&self, node: &EngineNode) -> Result<BoxedStream> {
        let reason = match node.unreachable() {
            Some(reason) => reason.to_owned(),
            None => match self.api.control.node_api(&node.id).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error.message,
            },
        };
        Err(unreachable_node(node, &reason))
    }

    /// A reply of this node's own API, for what is the same on every manager: whether managers may use its engine does not matter.
    ///
    /// # Errors
    /// 503 if it does not answer.
    pub async fn ask_here(&self, request: NodeRequest, limit: Duration) -> Result<HttpReply> {
        let asked = async { http::exchange(self.own_api.connect(), request.http()?).await?.whole().await };
        match tokio::time::timeout(limit, asked).await {
            Ok(reply) => reply.map_err(|error| ApiError::unavailable(format!("this node's Docker API: {error:#}"))),
            Err(_) => Err(ApiError::unavailable(format!("this node's Docker API gave no answer within {} s", limit.as_secs()))),
        }
    }

    /// The beginning of a node's reply, whenever it comes.
    ///
    /// # Errors
    /// 503 that names the node.
    pub async fn open(&self, node: &EngineNode, request: NodeRequest) -> Result<ReplyStream> {
        let stream = self.connect(node).await?;
        let opened = async { http::exchange(stream, request.http()?).await };
        opened.await.map_err(|error| unreachable_node(node, &format!("{error:#}")))
    }

    /// A node's whole reply, within a time.
    ///
    /// # Errors
    /// 503 that names the node.
    pub async fn ask(&self, node: &EngineNode, request: NodeRequest, limit: Duration) -> Result<HttpReply> {
        let asked = async {
            let reply = self.open(node, request).await?;
            reply.whole().await.map_err(|error| unreachable_node(node, &format!("{error:#}")))
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(reply) => reply,
            Err(_) => Err(unreachable_node(node, &format!("it gave no answer within {} s", limit.as_secs()))),
        }
    }

    /// Asks nodes at the same time.
    pub async fn ask_all(&self, nodes: Vec<EngineNode>, request: &NodeRequest, limit: Duration) -> Vec<NodeAnswer> {
        let asked = nodes.into_iter().map(async |node| {
            let answer = self.ask(&node, request.clone(), limit).await.map_err(|error| error.message);
            (node, answer)
        });
        join_all(asked).await
    }
}

fn unreachable_node(node: &EngineNode, reason: &str) -> ApiError {
    ApiError::unavailable(format!("node {} cannot be asked: {reason}", node.name))
}
