//! `/networks`: the cluster's networks and the engine's. A network of skep's driver on the engine is only this node's
//! part of a swarm network; it is shown as that swarm network, once.

use super::local_networks::{engine_list, engine_part, engine_part_named, parse_list};
use super::network_reference::{self, ReferencedNetwork, local_names};
use super::reply::{json, ok};
use super::request::{ApiRequest, NOT_IN_SWARM};
use crate::api::control::{NOT_MANAGER, Standing};
use crate::api::convert::network as convert;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::query::Filters;
use crate::api::schema::NETWORK;
use crate::api::{lookup, validate};
use crate::manager::bounds;
use crate::model::docker::DRIVER;
use crate::model::{Network, NetworkId, PredefinedNetwork};
use crate::store::{Action, Condition, Kind, ProposeError, Store, StoreError, StoreHandle, Transaction};
use axum::response::{IntoResponse as _, Response};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// Attempts to remove a network while the allocator assigns addresses on it.
const REMOVE_ATTEMPTS: usize = 5;
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
        let passing = lookup::networks(store).filter(|n| passes(n, store, &filters));
        all.extend(passing.map(|n| serde_json::to_value(convert::network(n, request.version)).unwrap_or_default()));
    }
    if filters.has("scope") && !filters.values("scope").any(|v| v != "swarm") && store.is_some() {
        return ok(&all);
    }
    let reply = request.api.engine.get(&request.lifted_target()).await?;
    if !reply.status.is_success() {
        return request.forward().await;
    }
    all.extend(parse_list(&reply.body)?.into_iter().filter(|n| convert::swarm_network_of(n).is_none()));
    if store.is_none() {
        let parts = engine_list(request).await?;
        all.extend(parts.iter().map(|part| shown(request, part)).filter(|n| engine_part_passes(n, &filters)));
    }
    ok(&all)
}

fn passes(network: &Network, store: &Store, filters: &Filters) -> bool {
    filters.any("driver", |v| v == convert::OVERLAY)
        && filters.matches("id", network.id.as_str())
        && filters.matches("name", &network.spec.name)
        && filters.any("scope", |v| v == "swarm")
        && filters.any("type", |v| (v == "builtin") == network.spec.ingress)
        && filters
            .any("dangling", |v| matches!(v, "1" | "true") != (network.spec.ingress || store.network_user(network).is_some()))
        && filters.labels("label", &network.spec.labels)
}

/// As [`passes`], for what a worker knows of a swarm network.
fn engine_part_passes(network: &Value, filters: &Filters) -> bool {
    let text = |key: &str| network[key].as_str().unwrap_or_default();
    let labels = serde_json::from_value(network["Labels"].clone()).unwrap_or_default();
    filters.any("driver", |v| v == convert::OVERLAY)
        && filters.matches("id", text("Id"))
        && filters.matches("name", text("Name"))
        && filters.any("scope", |v| v == "swarm")
        && filters.any("type", |v| (v == "builtin") == (network["Ingress"] == true))
        && filters.any("dangling", |v| !matches!(v, "1" | "true"))
        && filters.labels("label", &labels)
}

/// The engine's part of a swarm network as that network.
fn shown(request: &ApiRequest, part: &Value) -> Value {
    let id = convert::swarm_network_of(part).unwrap_or_default();
    convert::from_engine_part(part, request.api.control.network(&NetworkId::from(id)).as_ref())
}

/// GET /networks/{id}
pub async fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let scope = request.query.get("scope");
    if scope == "local" {
        return inspect_local(request, reference).await;
    }
    let meant = of_engine_id(request, reference).await;
    let reference = meant.as_deref().unwrap_or(reference);
    match store(request) {
        Some(store) => inspect_in_store(request, reference, scope, &store).await,
        None => inspect_on_worker(request, reference, scope).await,
    }
}

/// Characters of an engine's id of a network; those of the swarm are shorter.
const ENGINE_ID: usize = 64;

/// The swarm network whose part on this engine has the id: clients read it in the inspection of a container (Portainer's agent,
/// to find the address at which it is reached).
async fn of_engine_id(request: &ApiRequest, reference: &str) -> Option<String> {
    if reference.len() != ENGINE_ID || !reference.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let reply = request.api.engine.get(&request.engine_target(&format!("/networks/{reference}"))).await.ok()?;
    let network: Value = serde_json::from_slice(&reply.body).ok()?;
    convert::swarm_network_of(&network).map(str::to_owned)
}

async fn inspect_in_store(request: &ApiRequest, reference: &str, scope: &str, store: &Store) -> Result<Response> {
    let predefined = if scope == "swarm" { PredefinedNetwork::find(reference) } else { PredefinedNetwork::with_id(reference) };
    if let Some(predefined) = predefined {
        let created = store.cluster().map(|cluster| cluster.meta.created_at).unwrap_or_default();
        return ok(&convert::predefined(predefined, created, request.version));
    }
    let network = if scope == "swarm" {
        lookup::network(store, reference)?
    } else {
        match network_reference::find(request, store, reference).await? {
            ReferencedNetwork::Swarm(network) => network,
            ReferencedNetwork::Local(_) | ReferencedNetwork::Unknown => return inspect_local(request, reference).await,
        }
    };
    let mut shown = convert::network(network, request.version);
    if request.query.loose_bool("verbose") {
        shown.services = Some(convert::services(network, store));
        shown.peers = Some(convert::peers(network, store));
    }
    if let Some(part) = engine_part(request, network.id.as_str()).await {
        shown.peers = Some(convert::peers(network, store));
        shown = convert::with_engine_part(shown, &part, &network.subnets(), network.subnet6);
    }
    ok(&shown)
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
            return ok(&shown(request, &inspected));
        }
    }
    if let Some(unreadable) = unreadable(request, reference) {
        return Err(unreadable);
    }
    if scope == "swarm" { Err(ApiError::not_found("network", reference)) } else { inspect_local(request, reference).await }
}

/// Why a network of the swarm cannot be read on a node that is to become, or to be again, what could read it. A worker is not: as in
/// a real swarm it has the networks of its tasks, and clients (compose) take its 404 for that.
fn unreadable(request: &ApiRequest, name: &str) -> Option<ApiError> {
    let control = &request.api.control;
    let is_known = match control.standing() {
        Standing::Inactive | Standing::Worker => false,
        Standing::Pending | Standing::Locked | Standing::Manager => control.knows_network(name),
    };
    if is_known { request.store().err() } else { None }
}

/// Inspects one of the engine's own networks; networks of skep's driver are not shown.
async fn inspect_local(request: &ApiRequest, reference: &str) -> Result<Response> {
    let reply = request.api.engine.get(&request.lifted_target()).await?;
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
        if let Some(name) = swarm_network_named(request, text("Name")).await {
            return Err(exists(&name));
        }
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
    bounds::spec("a spec of a network", &spec, None).map_err(ApiError::invalid_argument)?;
    // An engine that does not answer has no say: its networks are of this node only.
    let local = local_names(request).await.unwrap_or_default();
    if lookup::networks(&store).any(|n| n.spec.name == spec.name) || local.iter().any(|(_, name)| *name == spec.name) {
        return Err(exists(&spec.name));
    }
    validate::network_name(&spec.name)?;
    validate::ingress_network(&spec, lookup::networks(&store))?;
    if let Some(cluster) = store.cluster() {
        validate::network_subnet6(&spec, cluster)?;
    }
    let id = NetworkId::draw(&mut rand::rng());
    let warning = validate::network_warning(&spec, lookup::networks(&store), store.nodes().count());
    let pools = store.cluster().and_then(|cluster| validate::pool_warning(&spec, lookup::networks(&store), cluster));
    let warning = [warning, pools.unwrap_or_default()].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    let network = Network::new(id.clone(), spec);
    handle.write(request.api.clock.now(), vec![Action::create(network)]).await?;
    json(StatusCode::CREATED, &json!({ "Id": id, "Warning": warning }))
}

fn exists(name: &str) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, format!("network with name {name} already exists"))
}

/// The name, if a network of the swarm has it: on a worker by its view, and by what its engine has.
async fn swarm_network_named(request: &ApiRequest, name: &str) -> Option<String> {
    let taken = match store(request) {
        Some(store) => lookup::networks(&store).any(|n| n.spec.name == name),
        None if request.api.control.membership().local_state() == "inactive" => false,
        None if request.api.control.knows_network(name) => true,
        None => engine_list(request).await.is_ok_and(|parts| parts.iter().any(|n| n["Name"].as_str() == Some(name))),
    };
    taken.then(|| name.to_owned())
}

/// DELETE /networks/{id}
pub async fn remove(request: &ApiRequest, reference: &str) -> Result<Response> {
    let Some(handle) = request.api.control.store() else {
        if let Some(unreadable) = unreadable(request, reference) {
            return Err(unreadable);
        }
        if engine_part_named(request, reference).await.is_some() {
            return Err(request.store().err().unwrap_or_else(|| ApiError::unavailable(NOT_MANAGER)));
        }
        return request.forward().await;
    };
    let store = handle.read();
    match network_reference::find(request, &store, reference).await? {
        ReferencedNetwork::Swarm(network) => {
            let removed = remove_from_swarm(request, &handle, &network.id).await;
            removed.map_err(|error| removal_error(network, error))?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        ReferencedNetwork::Local(id) => request.forward_to(&request.engine_target(&format!("/networks/{id}"))).await,
        // The agent removes the engine's part of a swarm network, users do not.
        ReferencedNetwork::Unknown if engine_part_named(request, reference).await.is_some() => {
            Err(ApiError::not_found("network", reference))
        }
        ReferencedNetwork::Unknown => request.forward().await,
    }
}

/// First feature level at which managers know of a network that is being removed. Below it a network stays until no container has
/// an address there.
const REMOVING_LEVEL: u32 = 2;

/// Removes a network that nothing is wanted to run on when the removal is applied. While tasks that are to stop still have
/// addresses on it, its name is free and it is shown no more; the reaper deletes it with the last address.
///
/// # Errors
/// [`StoreError::InUse`] while it is in use; see [`ProposeError`].
pub async fn remove_from_swarm(request: &ApiRequest, handle: &StoreHandle, id: &NetworkId) -> Result<(), ProposeError> {
    for _ in 0..REMOVE_ATTEMPTS {
        let store = handle.read();
        let Some(network) = store.network(id).filter(|n| !n.removing) else { return Ok(()) };
        if store.feature_level() < REMOVING_LEVEL
            && store.network_user(network).is_none()
            && let Some(task) = store.tasks_on_network(id).find(|task| !task.status.state.is_final())
        {
            let by_id = task.id.to_string();
            return Err(StoreError::InUse { kind: Kind::Network, id: id.to_string(), by: Kind::Task, by_id }.into());
        }
        // The allocator writes the network with each address that it assigns there, so that this update is refused then.
        let mut actions = vec![Action::update(Network { removing: true, ..network.clone() })];
        if !store.has_addresses_on(network) {
            actions.push(Action::Remove(Kind::Network, id.to_string()));
        }
        let removal = Transaction::new(request.api.clock.now(), actions).require([Condition::unreferenced(Kind::Network, id)]);
        match handle.propose(removal).await {
            Err(ProposeError::Refused(StoreError::OutOfSequence)) => {}
            outcome => return outcome.map(drop),
        }
    }
    Err(StoreError::OutOfSequence.into())
}

fn removal_error(network: &Network, error: ProposeError) -> ApiError {
    match error {
        ProposeError::Refused(StoreError::InUse { by_id, .. }) if network.spec.ingress => ApiError::rpc(
            GrpcCode::FailedPrecondition,
            format!("ingress network cannot be removed because service {by_id} depends on it"),
        ),
        error => error.into(),
    }
}
