//! `/networks/prune`: removes unused networks of the engine and of the cluster. The engine's own prune is not used: it
//! would remove its parts of swarm networks that have no container on this node.

use super::local_networks::{parse_list, remove_local};
use super::networks::{remove_from_swarm, store};
use super::reply::ok;
use super::request::ApiRequest;
use crate::api::control::Standing;
use crate::api::convert::network::swarm_network_of;
use crate::api::error::{ApiError, Result};
use crate::api::lookup;
use crate::api::prune_filter::PruneFilter;
use crate::api::query::encode;
use crate::model::{Network, Timestamp};
use crate::store::{ProposeError, StoreError};
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Networks that the engine creates and needs.
const PREDEFINED: [&str; 4] = ["bridge", "host", "none", "docker_gwbridge"];

/// POST /networks/prune
pub async fn networks(request: &ApiRequest) -> Result<Response> {
    if request.api.control.standing() == Standing::Inactive {
        return request.forward().await;
    }
    let pruned = PruneFilter::of(&request.query, request.api.clock.now())?;
    let mut deleted = Vec::new();
    for network in unused_on_engine(request).await? {
        let text = |key: &str| network[key].as_str().unwrap_or_default().to_owned();
        if swarm_network_of(&network).is_none()
            && !PREDEFINED.contains(&text("Name").as_str())
            && local_is_removed(&pruned, &network)
            && remove_local(request, &text("Id")).await?
        {
            deleted.push(text("Name"));
        }
    }
    if let (Some(store), Some(handle)) = (store(request), request.api.control.store()) {
        let is_unused = |n: &&Network| store.network_user(n).is_none() && pruned.removes(&n.spec.labels, n.meta.created_at);
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

/// Where labels cannot be read the network stays, and where its time cannot, if the time counts.
fn local_is_removed(pruned: &PruneFilter, network: &Value) -> bool {
    let labels = serde_json::from_value::<Option<BTreeMap<String, String>>>(network["Labels"].clone());
    let made = network["Created"].as_str().and_then(Timestamp::parse).unwrap_or(Timestamp(i64::MAX));
    labels.is_ok_and(|labels| pruned.removes(&labels.unwrap_or_default(), made))
}

/// The engine's networks without containers.
async fn unused_on_engine(request: &ApiRequest) -> Result<Vec<Value>> {
    let path = format!("/networks?filters={}", encode(&json!({ "dangling": { "true": true } }).to_string()));
    let reply = request.api.engine.get(&request.engine_target(&path)).await?;
    reply.ok().map_err(|e| ApiError::failed(format!("the engine did not list its networks: {e}")))?;
    parse_list(&reply.body)
}
