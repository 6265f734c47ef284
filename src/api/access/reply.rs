//! Replies that are made of those of several nodes.

use super::engine_node::EngineNode;
use super::nodes::{MISSING_NODES, NodeAnswer};
use super::objects::{NodeContent, decoded};
use crate::api::error::{ApiError, Result};
use crate::http::HttpReply;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde_json::Value;

/// The decoded successes by node, and the nodes that are missing with the reason.
pub struct Collected<T> {
    pub found: Vec<(EngineNode, T)>,
    pub missing: Vec<String>,
}

/// Sorts answers into successes and the rest.
///
/// # Errors
/// The first refusal of a node, if no node succeeded; 503 if none answered.
pub fn collect<T: NodeContent>(answers: Vec<NodeAnswer>) -> Result<Collected<T>> {
    let (mut found, mut missing, mut refusal) = (Vec::new(), Vec::new(), None);
    for (node, answer) in answers {
        match answer {
            Ok(reply) if reply.status.is_success() => match decoded(&reply.body) {
                Ok(value) => found.push((node, value)),
                Err(error) => missing.push(format!("node {}: {error}", node.name)),
            },
            Ok(reply) => {
                let error = refusal_of(&reply);
                missing.push(format!("node {}: {}", node.name, error.message));
                refusal.get_or_insert(error);
            }
            Err(reason) => missing.push(reason),
        }
    }
    match (found.is_empty(), refusal) {
        (true, Some(refusal)) => Err(refusal),
        (true, None) if !missing.is_empty() => Err(ApiError::unavailable(missing.join("; "))),
        _ => Ok(Collected { found, missing }),
    }
}

/// A node's refusal as an error of ours.
pub fn refusal_of(reply: &HttpReply) -> ApiError {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let text = body["message"].as_str().map_or_else(|| String::from_utf8_lossy(&reply.body).into_owned(), str::to_owned);
    ApiError::new(reply.status, text)
}

/// A node's reply as it is.
pub fn passed_on(reply: HttpReply) -> Response {
    let mut response = Response::new(Body::from(reply.body));
    *response.status_mut() = reply.status;
    if let Some(kind) = reply.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

/// 200 with JSON, and the nodes that are missing in the header.
pub fn merged(body: &Value, missing: &[String]) -> Response {
    let fields = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    with_missing((StatusCode::OK, fields, body.to_string()).into_response(), missing)
}

/// The reply with the nodes that are missing in its header.
pub fn with_missing(mut response: Response, missing: &[String]) -> Response {
    let text: String = missing.join("; ").chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if let (false, Ok(value)) = (text.is_empty(), HeaderValue::from_str(&text)) {
        response.headers_mut().insert(MISSING_NODES, value);
    }
    response
}
