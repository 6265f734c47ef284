//! What the engine says of itself, with our part of it.

use super::{Call, ok};
use crate::api::convert;
use crate::api::error::Result;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use hyper::Method;
use hyper::header::HeaderValue;
use serde_json::{Value, json};

/// `/_ping`: answered whether or not the engine is up, because every command begins with it.
#[expect(clippy::unnecessary_wraps, reason = "a handler")]
pub fn ping(call: &Call) -> Result<Response> {
    let body = if call.method == Method::HEAD { Body::empty() } else { Body::from("OK") };
    let fields = [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("swarm", call.api.control.membership().ping_header()),
    ];
    let mut response = (fields, body).into_response();
    if let Some(Ok(builder)) = call.identity.builder.as_deref().map(HeaderValue::from_str) {
        response.headers_mut().insert("builder-version", builder);
    }
    Ok(response)
}

/// The engine's object; an empty one if it is none.
fn object(body: &[u8]) -> Value {
    serde_json::from_slice(body).ok().filter(Value::is_object).unwrap_or_else(|| json!({}))
}

/// `/version`: the engine's, with a component of ours and the version that we announce.
pub async fn version(call: &Call) -> Result<Response> {
    let mut body = match call.api.engine.get(&call.target).await {
        Ok(reply) if reply.status.is_success() => object(&reply.body),
        // Alone we are still a server.
        _ => json!({
            "Platform": { "Name": "" }, "Components": [], "Version": "", "MinAPIVersion": call.identity.min_api.to_string(),
            "Os": "linux", "Arch": std::env::consts::ARCH,
        }),
    };
    body["ApiVersion"] = json!(call.identity.api.to_string());
    let ours = json!({
        "Name": "skep",
        "Version": env!("CARGO_PKG_VERSION"),
        "Details": { "Engine": call.api.engine.socket().display().to_string() },
    });
    match body["Components"].as_array_mut() {
        Some(components) => components.push(ours),
        None => body["Components"] = json!([ours]),
    }
    ok(&body)
}

/// `/info`: the engine's, with our `Swarm` block. Without an engine that block alone, and a warning: `docker node ls`
/// asks for it.
pub async fn info(call: &Call) -> Result<Response> {
    let mut body = match call.api.engine.get(&call.target).await {
        Ok(reply) if reply.status.is_success() => object(&reply.body),
        Ok(_) => return call.forward().await,
        Err(down) => json!({ "ID": "", "Name": "", "ServerVersion": "", "Warnings": [format!("WARNING: {}", down.message)] }),
    };
    let membership = call.api.control.membership();
    let store = call.api.control.store().map(|s| s.read());
    let swarm = convert::swarm::info(&membership, store.as_deref());
    for warning in &swarm.warnings {
        match body["Warnings"].as_array_mut() {
            Some(warnings) => warnings.push(json!(warning)),
            None => body["Warnings"] = json!([warning]),
        }
    }
    body["Swarm"] = serde_json::to_value(swarm).unwrap_or(Value::Null);
    // Users know the driver as what it stands in for.
    if let Some(drivers) = body.pointer_mut("/Plugins/Network").and_then(Value::as_array_mut) {
        let ours = |v: &Value| matches!(v.as_str(), Some("overlay" | crate::api::engine::DRIVER));
        drivers.retain(|v| !ours(v));
        drivers.push(json!(convert::network::OVERLAY));
    }
    ok(&body)
}
