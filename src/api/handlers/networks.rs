//! `/networks`: the cluster's networks and the engine's. A network of skep's driver on the engine is only this node's
//! part of a swarm network; it is shown as that swarm network, once.

use super::local_networks::{engine_list, engine_part, engine_part_named, parse_list};
use super::reply::{json, ok};
use super::request::{ApiRequest, NOT_IN_SWARM, NOT_MANAGER};
use crate::api::convert::network as convert;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::query::Filters;
use crate::api::schema::NETWORK;
use crate::api::{lookup, validate};
use crate::model::docker::{ApiVersion, DRIVER};
use crate::model::{Meta, Network, NetworkId, Timestamp};
use crate::store::{Action, Condition, Kind, Store, Transaction};
use axum::response::{IntoResponse as _, Response};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

const FILTERS: [&str; 7] = ["driver", "id", "label", "name", "scope", "type", "dangling"];

/// The newest state of the store; `None` on workers and outside a swarm.
pub fn store(request: &ApiRequest) -> Option<Arc<Store>> {
    request.api.control.store().map(|s| s.read())
}

/// GET /networks
pub async fn list(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(&FILTERS)?;
    let store = store(request);
    let mut all: Vec<Value> = Vec::new();
    if let Some(store) = &store {
        let passing = store.networks().filter(|n| passes(n, store, &filters));
        all.extend(passing.map(|n| serde_json::to_value(convert::network(n, request.version)).unwrap_or_default()));
    }
    if filters.has("scope") && !filters.values("scope").any(|v| v != "swarm") && store.is_some() {
        return ok(&all);
    }
    let reply = request.api.engine.get(&request.target).await?;
    if !reply.status.is_success() {
        return request.forward().await;
    }
    all.extend(parse_list(&reply.body)?.into_iter().filter(|n| convert::swarm_network_of(n).is_none()));
    if store.is_none() {
        let parts = engine_list(request).await?;
        all.extend(parts.iter().map(convert::from_engine_part).filter(|n| engine_part_passes(n, &filters)));
    }
    ok(&all)
}

fn passes(network: &Network, store: &Store, filters: &Filters) -> bool {
    filters.any("driver", |v| v == convert::OVERLAY)
        && filters.any("id", |v| network.id.as_str().contains(v))
        && filters.any("name", |v| network.spec.name.contains(v))
        && filters.any("scope", |v| v == "swarm")
        && filters.any("type", |v| (v == "builtin") == network.spec.ingress)
        && filters.any("dangling", |v| matches!(v, "1" | "true") != (network.spec.ingress || user(network, store).is_some()))
        && filters.labels("label", &network.spec.labels)
}

/// As [`passes`], for what a worker knows of a swarm network.
fn engine_part_passes(network: &Value, filters: &Filters) -> bool {
    let text = |key: &str| network[key].as_str().unwrap_or_default();
    let labels = serde_json::from_value(network["Labels"].clone()).unwrap_or_default();
    filters.any("driver", |v| v == convert::OVERLAY)
        && filters.any("id", |v| text("Id").contains(v))
        && filters.any("name", |v| text("Name").contains(v))
        && filters.any("scope", |v| v == "swarm")
        && filters.any("type", |v| v == "custom")
        && filters.any("dangling", |v| !matches!(v, "1" | "true"))
        && filters.labels("label", &labels)
}

/// What uses a network, as `service ID` or `task ID`.
pub fn user(network: &Network, store: &Store) -> Option<String> {
    store.user_of(Kind::Network, network.id.as_str()).map(|(kind, id)| format!("{kind} {id}"))
}

/// The removal of a network, if nothing uses it when it is applied.
pub fn removal(network: &Network, now: Timestamp) -> Transaction {
    let remove = Action::Remove(Kind::Network, network.id.to_string());
    Transaction::new(now, vec![remove]).require([Condition::unreferenced(Kind::Network, &network.id)])
}

/// GET /networks/{id}
pub async fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let scope = request.query.get("scope");
    if scope == "local" {
        return inspect_local(request, reference).await;
    }
    match store(request) {
        Some(store) => inspect_in_store(request, reference, scope, &store).await,
        None => inspect_on_worker(request, reference, scope).await,
    }
}

async fn inspect_in_store(request: &ApiRequest, reference: &str, scope: &str, store: &Store) -> Result<Response> {
    match lookup::network(store, reference) {
        Ok(network) => {
            let shown = convert::network(network, request.version);
            match engine_part(request, network.id.as_str()).await {
                Some(part) => ok(&convert::with_engine_part(shown, &part)),
                None => ok(&shown),
            }
        }
        Err(error) if error.status != StatusCode::NOT_FOUND || scope == "swarm" => Err(error),
        Err(_) => inspect_local(request, reference).await,
    }
}

async fn inspect_on_worker(request: &ApiRequest, reference: &str, scope: &str) -> Result<Response> {
    if scope == "swarm" || request.api.control.membership().local_state() != "inactive" {
        let found = engine_list(request).await?.into_iter().find(|n| {
            let id = convert::swarm_network_of(n).unwrap_or_default();
            n["Name"].as_str() == Some(reference) || (!reference.is_empty() && id.starts_with(reference))
        });
        if let Some(network) = found {
            // The list has no containers, an inspection has.
            let id = convert::swarm_network_of(&network).unwrap_or_default();
            let inspected = engine_part(request, id).await.unwrap_or(network);
            return ok(&convert::from_engine_part(&inspected));
        }
    }
    if scope == "swarm" { Err(ApiError::not_found("network", reference)) } else { inspect_local(request, reference).await }
}

/// Inspects one of the engine's own networks; networks of skep's driver are not shown.
async fn inspect_local(request: &ApiRequest, reference: &str) -> Result<Response> {
    let reply = request.api.engine.get(&request.target).await?;
    let network: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if convert::swarm_network_of(&network).is_some() {
        return Err(ApiError::not_found("network", reference));
    }
    let kind = [("content-type", "application/json")];
    Ok((reply.status, kind, axum::body::Body::from(reply.body)).into_response())
}

/// POST /networks/create: overlay networks are created in the store, all others on the engine.
pub async fn create(request: &ApiRequest) -> Result<Response> {
    let Ok(posted) = request.decode_body(&NETWORK) else {
        // The engine reports the error in its own words.
        return request.forward().await;
    };
    let text = |key: &str| posted[key].as_str().unwrap_or_default();
    let (driver, scope) = (text("Driver"), text("Scope"));
    if driver == DRIVER {
        return Err(ApiError::bad(format!(
            "the driver {DRIVER} is for skep's own use: create the network with the driver overlay"
        )));
    }
    if driver != convert::OVERLAY && scope != "swarm" {
        return request.forward().await;
    }
    let Some(handle) = request.api.control.store() else {
        return Err(ApiError::new(StatusCode::FORBIDDEN, NOT_IN_SWARM));
    };
    if !driver.is_empty() && driver != convert::OVERLAY {
        return Err(ApiError::unsupported_field("Scope swarm with Driver", driver));
    }
    let store = handle.read();
    let spec = validate::network_spec(&posted)?;
    if store.networks().any(|n| n.spec.name == spec.name) {
        return Err(ApiError::new(StatusCode::CONFLICT, format!("network with name {} already exists", spec.name)));
    }
    validate::network_name(&spec.name)?;
    validate::ingress_network(&spec, store.networks())?;
    let id = NetworkId::draw(&mut rand::rng());
    let network = Network { id: id.clone(), meta: Meta::default(), spec, subnet: None };
    handle.write(request.api.clock.now(), vec![Action::create(network)]).await?;
    json(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" }))
}

/// DELETE /networks/{id}
pub async fn remove(request: &ApiRequest, reference: &str) -> Result<Response> {
    let Some(handle) = request.api.control.store() else {
        if engine_part_named(request, reference).await.is_some() {
            return Err(ApiError::unavailable(NOT_MANAGER));
        }
        return request.forward().await;
    };
    let store = handle.read();
    let network = match lookup::network(&store, reference) {
        Ok(network) => network,
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            // The agent removes the engine's part of a swarm network, users do not.
            if engine_part_named(request, reference).await.is_some() {
                return Err(error);
            }
            return request.forward().await;
        }
        Err(error) => return Err(error),
    };
    if network.spec.ingress {
        if let Some(service) = store.services().find(|s| s.spec.wants_ingress()) {
            return Err(ApiError::rpc(
                GrpcCode::FailedPrecondition,
                format!("ingress network cannot be removed because service {} depends on it", service.id),
            ));
        }
    } else if let Some(user) = user(network, &store) {
        return Err(ApiError::rpc(GrpcCode::FailedPrecondition, format!("network {} is in use by {user}", network.id)));
    }
    handle.propose(removal(network, request.api.clock.now())).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// POST /networks/{id}/connect and /disconnect
pub async fn attach(request: &ApiRequest, reference: &str, verb: &str) -> Result<Response> {
    match attachment_refusal(request, reference).await? {
        Some(_) if verb == "disconnect" => Err(ApiError::not_implemented(format!(
            "{reference} is a network of the swarm: disconnecting a container from it is not implemented in skep yet"
        ))),
        Some(error) => Err(error),
        None => request.forward().await,
    }
}

/// Why a plain container cannot be attached to this network; `None` if the network is one of the engine's own.
///
/// # Errors
/// 400 if several networks match.
pub async fn attachment_refusal(request: &ApiRequest, reference: &str) -> Result<Option<ApiError>> {
    let attachable = match store(request).as_deref().map(|s| lookup::network(s, reference)) {
        Some(Ok(network)) => network.spec.attachable,
        Some(Err(error)) if error.status != StatusCode::NOT_FOUND => return Err(error),
        _ => match engine_part_named(request, reference).await {
            Some(part) => part["Attachable"].as_bool().unwrap_or(false),
            None => return Ok(None),
        },
    };
    Ok(Some(if attachable {
        ApiError::not_implemented(format!(
            "{reference} is an attachable network of the swarm: attaching plain containers to it is not implemented in skep yet"
        ))
    } else {
        ApiError::failed(not_attachable(request, reference))
    }))
}

fn not_attachable(request: &ApiRequest, reference: &str) -> String {
    let text = format!(
        "Could not attach to network {reference}: rpc error: code = PermissionDenied desc = network {reference} not manually attachable"
    );
    // Newer engines prefix the error when a container is created or started.
    if request.target.contains("/containers/") && request.identity.api >= ApiVersion::v1(48) {
        format!("failed to set up container networking: {text}")
    } else {
        text
    }
}
