//! `/_ping`, `/version` and `/info`: the engine's replies with skep's part added.

use super::reply::ok;
use super::request::ApiRequest;
use crate::api::convert::network::OVERLAY;
use crate::api::convert::swarm;
use crate::api::error::{ApiError, Result};
use crate::model::docker::DRIVER;
use crate::store::ProposeError;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use hyper::Method;
use hyper::header::HeaderValue;
use serde_json::{Value, json};

/// GET and HEAD /_ping: answered without the engine too, because every command of the CLI begins with it.
#[expect(clippy::unnecessary_wraps, reason = "the signature of handlers")]
pub fn ping(request: &ApiRequest) -> Result<Response> {
    let body = if request.method == Method::HEAD { Body::empty() } else { Body::from("OK") };
    let fields = [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("swarm", request.api.control.membership().ping_header()),
    ];
    let mut response = (fields, body).into_response();
    if let Some(Ok(builder)) = request.identity.builder.as_deref().map(HeaderValue::from_str) {
        response.headers_mut().insert("builder-version", builder);
    }
    Ok(response)
}

/// Parses a JSON object; anything else becomes an empty one.
fn parse_object(body: &[u8]) -> Value {
    serde_json::from_slice(body).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// GET /version: the engine's, with skep as a component and the API version that skep announces.
pub async fn version(request: &ApiRequest) -> Result<Response> {
    let mut body = match request.api.engine.get(&request.lifted_target()).await {
        Ok(reply) if reply.status.is_success() => parse_object(&reply.body),
        // The CLI needs a version without the engine too.
        _ => json!({
            "Platform": { "Name": "" }, "Components": [], "Version": "", "MinAPIVersion": request.identity.min_api.to_string(),
            "Os": "linux", "Arch": std::env::consts::ARCH,
        }),
    };
    body["ApiVersion"] = json!(request.identity.api.to_string());
    let component = json!({
        "Name": "skep",
        "Version": env!("CARGO_PKG_VERSION"),
        "Details": { "Engine": request.api.engine.socket().display().to_string() },
    });
    match body["Components"].as_array_mut() {
        Some(components) => components.push(component),
        None => body["Components"] = json!([component]),
    }
    ok(&body)
}

/// GET /info: the engine's, with skep's `Swarm` block. If the engine does not answer, that block alone and a warning:
/// `docker node ls` reads it.
pub async fn info(request: &ApiRequest) -> Result<Response> {
    let mut body = match request.api.engine.get(&request.lifted_target()).await {
        Ok(reply) if reply.status.is_success() => parse_object(&reply.body),
        Ok(_) => return request.forward().await,
        Err(down) => json!({ "ID": "", "Name": "", "ServerVersion": "", "Warnings": [format!("WARNING: {}", down.message)] }),
    };
    let membership = request.api.control.membership();
    let store = request.api.control.store().map(|s| s.read());
    let mut block = swarm::info(&membership, store.as_deref());
    if request.api.stale_since().is_some() {
        block.error = ApiError::from(ProposeError::NotLeader).message;
    }
    for warning in &block.warnings {
        match body["Warnings"].as_array_mut() {
            Some(warnings) => warnings.push(json!(warning)),
            None => body["Warnings"] = json!([warning]),
        }
    }
    body["Swarm"] = serde_json::to_value(block).unwrap_or(Value::Null);
    // Users see skep's driver as the overlay driver that it stands in for.
    if let Some(drivers) = body.pointer_mut("/Plugins/Network").and_then(Value::as_array_mut) {
        drivers.retain(|v| !matches!(v.as_str(), Some(OVERLAY | DRIVER)));
        drivers.push(json!(OVERLAY));
    }
    ok(&body)
}
