//! `/networks/prune`: removes unused networks of the engine and of the cluster. The engine's own prune is not used: it
//! would remove its parts of swarm networks that have no container on this node.

use super::local_networks::{parse_list, remove_local};
use super::networks::{remove_from_swarm, store};
use super::reply::ok;
use super::request::ApiRequest;
use crate::api::convert::network::swarm_network_of;
use crate::api::error::{ApiError, Result};
use crate::api::lookup;
use crate::api::query::{Filters, encode};
use crate::model::Network;
use crate::store::{ProposeError, StoreError};
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Networks that the engine creates and needs.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];

/// POST /networks/prune
pub async fn networks(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(&["until", "label", "label!"])?;
    if filters.has("until") {
        return Err(ApiError::not_implemented(
            "network prune with the filter until is not implemented in skep yet: remove networks by name, or use label= and label!=",
        ));
    }
    let excepted = |labels: &BTreeMap<String, String>| filters.has("label!") && filters.labels("label!", labels);
    let mut deleted = Vec::new();
    for network in unused_on_engine(request, &filters).await? {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        if swarm_network_of(&network).is_none()
            && !PREDEFINED.contains(&text("Name").as_str())
            && !excepted(&serde_json::from_value(network["Labels"].clone()).unwrap_or_default())
            && remove_local(request, &text("Id")).await?
        {
            deleted.push(text("Name"));
        }
    }
    if let (Some(store), Some(handle)) = (store(request), request.api.control.store()) {
        let passes = |n: &Network| filters.labels("label", &n.spec.labels) && !excepted(&n.spec.labels);
        let is_unused = |n: &&Network| store.network_user(n).is_none() && passes(n);
        for network in lookup::networks(&store).filter(|n| !n.spec.ingress).filter(is_unused) {
            match remove_from_swarm(request, &handle, &network.id).await {
                Ok(()) => deleted.push(network.spec.name.clone()),
                // In use since it was listed.
                Err(ProposeError::Refused(StoreError::InUse { .. })) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    ok(&json!({ "NetworksDeleted": deleted }))
}

/// The engine's networks without containers.
async fn unused_on_engine(request: &ApiRequest, filters: &Filters) -> Result<Vec<Value>> {
    let mut query = json!({ "dangling": { "true": true } });
    for label in filters.values("label") {
        query["label"][label] = json!(true);
    }
    let path = format!("/networks?filters={}", encode(&query.to_string()));
    let reply = request.api.engine.get(&request.engine_target(&path)).await?;
    reply.ok().map_err(|e| ApiError::failed(format!("the engine did not list its networks: {e}")))?;
    parse_list(&reply.body)
}
