//! Secrets and configs: there are none yet, and none can be made.

use super::{Call, ok};
use crate::api::error::{ApiError, Result};
use axum::response::Response;
use serde_json::Value;

/// An empty list: what the CLI's look-ups need.
pub fn list(call: &Call, kind: &str) -> Result<Response> {
    call.query.filters(if kind == "secrets" { &["id", "name", "names", "label"] } else { &["id", "name", "label"] })?;
    call.store()?;
    ok(&Vec::<Value>::new())
}

/// Everything else about them.
pub fn other(call: &Call, kind: &str, method: &str, rest: &[&str]) -> Result<Response> {
    let one = kind.trim_end_matches('s');
    match (method, rest) {
        ("POST", ["create"]) => {
            call.store()?;
            Err(ApiError::not_built(format!("{kind} are not built into skep yet: this {one} was not created")))
        }
        ("GET" | "DELETE", [reference]) | ("POST", [reference, "update"]) if !reference.is_empty() => {
            call.store()?;
            Err(ApiError::not_found(one, reference))
        }
        _ => Err(ApiError::page_not_found()),
    }
}
