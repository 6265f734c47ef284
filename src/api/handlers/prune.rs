//! `/networks/prune`: the engine's unused networks and the cluster's. The engine may not do it alone: it would take our
//! plumbing for unused.

use super::networks::{local, remove_local, store, user};
use super::{Call, ok};
use crate::api::engine::swarm_network_of;
use crate::api::error::{ApiError, Result};
use crate::api::query::{Filters, encode};
use crate::store::{Action, Kind};
use axum::response::Response;
use serde_json::{Value, json};

/// Names of the engine's own networks that are never removed.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];

/// POST /networks/prune
pub async fn networks(call: &Call) -> Result<Response> {
    let filters = call.query.filters(&["until", "label", "label!"])?;
    if filters.has("until") || filters.has("label!") {
        return Err(ApiError::not_built(
            "network prune with the filters until or label!= is not built into skep yet: remove networks by name, or use label=",
        ));
    }
    let mut deleted = Vec::new();
    for network in dangling(call, &filters).await? {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        if swarm_network_of(&network).is_none()
            && !PREDEFINED.contains(&text("Name").as_str())
            && remove_local(call, &text("Id")).await?
        {
            deleted.push(text("Name"));
        }
    }
    if let (Some(store), Some(handle)) = (store(call), call.api.control.store()) {
        let unused =
            store.networks().filter(|n| !n.spec.ingress && filters.labels("label", &n.spec.labels) && user(n, &store).is_none());
        for network in unused {
            handle.write(call.api.clock.now(), vec![Action::Remove(Kind::Network, network.id.to_string())]).await?;
            deleted.push(network.spec.name.clone());
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    ok(&json!({ "NetworksDeleted": deleted }))
}

/// The engine's networks that no container is on.
async fn dangling(call: &Call, filters: &Filters) -> Result<Vec<Value>> {
    let mut asked = json!({ "dangling": { "true": true } });
    for label in filters.values("label") {
        asked["label"][label] = json!(true);
    }
    let path = format!("/networks?filters={}", encode(&asked.to_string()));
    let reply = call.api.engine.get(&call.at_engine(&path)).await?;
    reply.ok().map_err(|e| ApiError::failed(format!("the engine does not list its networks: {e}")))?;
    local(&reply.body)
}
