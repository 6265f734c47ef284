//! Secrets and configs, which skep does not support yet: the lists are empty, creation is refused.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::error::{ApiError, Result};
use axum::response::Response;
use serde_json::Value;

/// GET /secrets and /configs: the CLI lists them before it creates a service.
pub fn list(request: &ApiRequest, kind: &str) -> Result<Response> {
    request.query.filters(if kind == "secrets" { &["id", "name", "names", "label"] } else { &["id", "name", "label"] })?;
    request.store()?;
    ok(&Vec::<Value>::new())
}

/// All other requests below /secrets and /configs.
pub fn other(request: &ApiRequest, kind: &str, method: &str, rest: &[&str]) -> Result<Response> {
    let one = kind.trim_end_matches('s');
    match (method, rest) {
        ("POST", ["create"]) => {
            request.store()?;
            Err(ApiError::not_implemented(format!("{kind} are not implemented in skep yet: this {one} was not created")))
        }
        ("GET" | "DELETE", [reference]) | ("POST", [reference, "update"]) if !reference.is_empty() => {
            request.store()?;
            Err(ApiError::not_found(one, reference))
        }
        _ => Err(ApiError::page_not_found()),
    }
}
