//! Networks of the local engine: its own ones, and those of skep's driver, which are this node's parts of swarm networks.

use super::request::ApiRequest;
use crate::api::convert::network::swarm_network_of;
use crate::api::error::{ApiError, Result};
use crate::api::query::encode;
use crate::model::docker::DRIVER;
use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

/// The engine's networks of skep's driver.
///
/// # Errors
/// 503 if the engine does not answer.
pub async fn engine_list(request: &ApiRequest) -> Result<Vec<Value>> {
    let filters = encode(&json!({ "driver": { DRIVER: true } }).to_string());
    let reply = request.api.engine.get(&request.engine_target(&format!("/networks?filters={filters}"))).await?;
    Ok(parse_list(&reply.body)?.into_iter().filter(|n| swarm_network_of(n).is_some()).collect())
}

/// Parses the engine's reply to `GET /networks`.
///
/// # Errors
/// 500 if it is not a list.
pub fn parse_list(body: &[u8]) -> Result<Vec<Value>> {
    serde_json::from_slice(body).map_err(|e| ApiError::failed(format!("the engine's list of networks cannot be read: {e}")))
}

/// The engine's inspection of its part of the swarm network `id`; `None` if it has none or does not answer.
pub async fn engine_part(request: &ApiRequest, id: &str) -> Option<Value> {
    let networks = engine_list(request).await.ok()?;
    let network = networks.iter().find(|n| swarm_network_of(n) == Some(id))?;
    let path = format!("/networks/{}", network["Id"].as_str()?);
    let reply = request.api.engine.get(&request.engine_target(&path)).await.ok()?;
    reply.json().ok()
}

/// The engine's network of this name or engine id, if it is part of a swarm network.
pub async fn engine_part_named(request: &ApiRequest, reference: &str) -> Option<Value> {
    let reply = request.api.engine.get(&request.engine_target(&format!("/networks/{}", encode(reference)))).await.ok()?;
    let network: Value = serde_json::from_slice(&reply.body).ok()?;
    swarm_network_of(&network).is_some().then_some(network)
}

/// The refusal of a network in a service's spec that the store does not have.
pub async fn unknown_target(request: &ApiRequest, target: &str) -> ApiError {
    let path = request.engine_target(&format!("/networks/{}", encode(target)));
    match request.api.engine.get(&path).await {
        Ok(reply) if reply.status.is_success() => ApiError::new(
            StatusCode::FORBIDDEN,
            format!(
                "The network {target} cannot be used with services. Only networks scoped to the swarm can be used, such as those \
                     created with the overlay driver."
            ),
        ),
        _ => ApiError::failed(format!("network {target} not found")),
    }
}

/// Removes one of the engine's networks; false if the engine refused.
///
/// # Errors
/// 503 if the engine does not answer.
pub async fn remove_local(request: &ApiRequest, id: &str) -> Result<bool> {
    let target = request.engine_target(&format!("/networks/{}", encode(id)));
    let reply = request.api.engine.send("DELETE", &target, &[], Bytes::new()).await?;
    Ok(reply.status.is_success())
}
