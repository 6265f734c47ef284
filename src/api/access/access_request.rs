//! A request as handlers of the access point see it.

use super::context::AccessContext;
use super::engine_node::EngineNode;
use super::nodes::NodeRequest;
use super::route::replaced;
use crate::api::error::{ApiError, Result};
use crate::api::handlers::read_body;
use crate::api::query::RequestQuery;
use axum::body::Body;
use hyper::{HeaderMap, Method};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Filter by node, which only the access point has.
pub const NODE: &str = "node";

/// The request, without its body.
pub struct AccessRequest {
    pub access: Arc<AccessContext>,
    /// `/v1.50`, or empty.
    pub version: String,
    pub query_text: String,
    pub query: RequestQuery,
    pub headers: HeaderMap,
    pub nodes: Vec<EngineNode>,
}

impl AccessRequest {
    /// A target on a node with the version and the query of this request.
    pub fn target(&self, path: &str) -> String {
        self.target_with(path, &self.query_text)
    }
    /// As [`Self::target`], with another query.
    pub fn target_with(&self, path: &str, query: &str) -> String {
        format!("{}{path}{}{query}", self.version, if query.is_empty() { "" } else { "?" })
    }
    /// A request to a node with what concerns an engine of this one.
    pub fn request(&self, method: Method, target: String) -> NodeRequest {
        NodeRequest::new(method, target).with_headers(&self.headers)
    }
    /// The nodes that the filter `node` leaves, and the query without it.
    ///
    /// # Errors
    /// 400 if the filters cannot be parsed.
    pub fn filtered(&self) -> Result<(Vec<EngineNode>, String)> {
        let filters = self.query.any_filters()?;
        let wanted: BTreeSet<&str> = filters.values(NODE).collect();
        if wanted.is_empty() {
            return Ok((self.nodes.clone(), self.query_text.clone()));
        }
        let mut others = filters.to_json();
        if let Some(map) = others.as_object_mut() {
            map.remove(NODE);
        }
        let nodes = self.nodes.iter().filter(|node| wanted.iter().any(|wanted| node.is_named(wanted))).cloned().collect();
        Ok((nodes, replaced(&self.query_text, "filters", Some(&others.to_string()))))
    }
}

/// The body of a request, as JSON.
///
/// # Errors
/// It is too long, or none.
pub async fn posted(body: Body) -> Result<Value> {
    let body = read_body(body).await?;
    serde_json::from_slice(&body).map_err(|error| ApiError::bad(format!("invalid JSON: {error}")))
}
