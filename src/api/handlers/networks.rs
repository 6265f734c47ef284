//! `/networks`: the engine's own merged with the cluster's. The engine's networks of our driver are plumbing: each is
//! shown as the overlay that it is a part of, once.

use super::{Call, json};
use crate::api::convert::network as convert;
use crate::api::engine::{DRIVER, swarm_network_of};
use crate::api::error::{ApiError, Code, Result};
use crate::api::query::{ApiVersion, Filters, encode, quote};
use crate::api::schema::{self, NETWORK};
use crate::api::{lookup, validate};
use crate::model::{Meta, Network, NetworkId, NetworkSpec};
use crate::store::{Action, Kind, Store};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::StatusCode;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::sync::Arc;

const FILTERS: [&str; 7] = ["driver", "id", "label", "name", "scope", "type", "dangling"];

/// The store's newest state, on managers.
pub fn store(call: &Call) -> Option<Arc<Store>> {
    call.api.control.store().map(|s| s.read())
}

/// GET /networks
pub async fn list(call: &Call) -> Result<Response> {
    let filters = call.query.filters(&FILTERS)?;
    let store = store(call);
    let mut all: Vec<Value> = store
        .iter()
        .flat_map(|s| s.networks().map(move |n| (s, n)))
        .filter(|(s, n)| passes(n, s, &filters))
        .map(|(_, n)| shown(convert::network(n, call.version)))
        .collect();
    if filters.has("scope") && !filters.values("scope").any(|v| v != "swarm") && store.is_some() {
        return super::ok(&all);
    }
    let reply = call.api.engine.get(&call.target).await?;
    if !reply.status.is_success() {
        return call.forward().await;
    }
    for network in local(&reply.body)? {
        if swarm_network_of(&network).is_none() {
            all.push(network);
        }
    }
    if store.is_none() {
        all.extend(plumbing(call).await?.iter().map(convert::local_only).filter(|n| passes_local(n, &filters)));
    }
    super::ok(&all)
}

/// The engine's networks of our driver.
async fn plumbing(call: &Call) -> Result<Vec<Value>> {
    let filters = encode(&json!({ "driver": { DRIVER: true } }).to_string());
    let reply = call.api.engine.get(&call.at_engine(&format!("/networks?filters={filters}"))).await?;
    Ok(local(&reply.body)?.into_iter().filter(|n| swarm_network_of(n).is_some()).collect())
}

/// Reads the engine's list.
pub fn local(body: &[u8]) -> Result<Vec<Value>> {
    serde_json::from_slice(body).map_err(|e| ApiError::failed(format!("the engine's list of networks cannot be read: {e}")))
}

fn shown(network: impl serde::Serialize) -> Value {
    serde_json::to_value(network).unwrap_or_default()
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

/// The same for an engine's copy, of which a worker knows less.
fn passes_local(network: &Value, filters: &Filters) -> bool {
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

/// Who uses a network: a service that is on it, or else a task that is not yet gone from it.
pub fn user(network: &Network, store: &Store) -> Option<String> {
    let id = network.id.as_str();
    let service = store.services().find(|s| s.spec.task_template.networks.iter().any(|n| n.target == id));
    let task = || {
        store
            .tasks()
            .find(|t| !t.status.state.is_final() && t.attachments.iter().any(|a| a.network_id == network.id))
            .map(|t| format!("task {}", t.id))
    };
    service.map(|s| format!("service {}", s.id)).or_else(task)
}

/// GET /networks/{id}
pub async fn inspect(call: &Call, reference: &str) -> Result<Response> {
    let scope = call.query.get("scope");
    if scope == "local" {
        return local_one(call, reference).await;
    }
    if let Some(store) = store(call) {
        // The engine's own come first, as a local network may have the same name; but `scope=swarm` is the store's alone.
        match lookup::network(&store, reference) {
            Ok(network) => {
                let shown = convert::network(network, call.version);
                return match part(call, network.id.as_str()).await {
                    Some(part) => super::ok(&convert::with_local_part(shown, &part)),
                    None => super::ok(&shown),
                };
            }
            Err(error) if error.status != StatusCode::NOT_FOUND => return Err(error),
            Err(error) if scope == "swarm" => return Err(error),
            Err(_) => return local_one(call, reference).await,
        }
    }
    if scope == "swarm" || !call.api.control.membership().local_state().eq("inactive") {
        let found = plumbing(call).await?.into_iter().find(|n| {
            let id = swarm_network_of(n).unwrap_or_default();
            n["Name"].as_str() == Some(reference) || (!reference.is_empty() && id.starts_with(reference))
        });
        if let Some(network) = found {
            let whole = part(call, swarm_network_of(&network).unwrap_or_default()).await.unwrap_or(network);
            return super::ok(&convert::local_only(&whole));
        }
    }
    if scope == "swarm" { Err(ApiError::not_found("network", reference)) } else { local_one(call, reference).await }
}

/// One of the engine's own; our plumbing is not.
async fn local_one(call: &Call, reference: &str) -> Result<Response> {
    let reply = call.api.engine.get(&call.target).await?;
    let network: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    if swarm_network_of(&network).is_some() {
        return Err(ApiError::not_found("network", reference));
    }
    let kind = [("content-type", "application/json")];
    Ok((reply.status, kind, axum::body::Body::from(reply.body)).into_response())
}

/// This node's part in a swarm network, as its engine shows it; `None` if it has none or the engine is down.
async fn part(call: &Call, id: &str) -> Option<Value> {
    let networks = plumbing(call).await.ok()?;
    let network = networks.iter().find(|n| swarm_network_of(n) == Some(id))?;
    let path = format!("/networks/{}", network["Id"].as_str()?);
    let reply = call.api.engine.get(&call.at_engine(&path)).await.ok()?;
    reply.json().ok()
}

/// POST /networks/create: overlays are ours, the rest the engine's.
pub async fn create(call: &Call) -> Result<Response> {
    let Ok(posted) = call.read(&NETWORK) else {
        // The engine says what is wrong with it, in its own words.
        return call.forward().await;
    };
    let text = |key: &str| posted[key].as_str().unwrap_or_default();
    let (driver, scope) = (text("Driver"), text("Scope"));
    if driver == DRIVER {
        return Err(ApiError::bad(format!("the driver {DRIVER} is skep's own: make the network with the driver overlay")));
    }
    if driver != convert::OVERLAY && scope != "swarm" {
        return call.forward().await;
    }
    let Some(handle) = call.api.control.store() else {
        return Err(ApiError::new(StatusCode::FORBIDDEN, super::NOT_IN_SWARM));
    };
    if !driver.is_empty() && driver != convert::OVERLAY {
        return Err(validate::not_carried_out("Scope swarm with Driver", driver));
    }
    let store = handle.read();
    let spec = spec(&posted)?;
    if store.networks().any(|n| n.spec.name == spec.name) {
        return Err(ApiError::new(StatusCode::CONFLICT, format!("network with name {} already exists", spec.name)));
    }
    validate::network_name(&spec.name)?;
    ingress(&spec, &store)?;
    let id = NetworkId::draw(&mut rand::rng());
    let network = Network { id: id.clone(), meta: Meta::default(), spec, subnet: None };
    handle.write(call.api.clock.now(), vec![Action::create(network)]).await?;
    json(StatusCode::CREATED, &json!({ "Id": id, "Warning": "" }))
}

fn ingress(spec: &NetworkSpec, store: &Store) -> Result<()> {
    if spec.ingress && spec.attachable {
        return Err(ApiError::rpc(Code::InvalidArgument, "ingress network cannot be attachable"));
    }
    match store.networks().find(|n| n.spec.ingress) {
        Some(present) if spec.ingress => {
            Err(ApiError::rpc(Code::AlreadyExists, format!("ingress network ({}) is already present", present.id)))
        }
        _ => Ok(()),
    }
}

/// Reads a posted overlay network.
fn spec(posted: &Value) -> Result<NetworkSpec> {
    let name = posted["Name"].as_str().unwrap_or_default();
    if name.trim().is_empty() {
        return Err(ApiError::bad("invalid name: name is empty"));
    }
    let subnets = subnets(posted)?;
    if let Some(path) = schema::not_built(posted, &NETWORK) {
        return Err(validate::not_carried_out(&path, ""));
    }
    if posted["EnableIPv4"] == json!(false) {
        return Err(validate::not_carried_out("EnableIPv4", "false"));
    }
    let ipam = posted["IPAM"]["Driver"].as_str().unwrap_or_default();
    if !["", "default"].contains(&ipam) {
        return Err(validate::not_carried_out("IPAM.Driver", ipam));
    }
    let options: std::collections::BTreeMap<String, String> =
        serde_json::from_value(posted["Options"].clone()).unwrap_or_default();
    // Everything between nodes is encrypted anyway.
    if let Some(option) = options.keys().find(|o| *o != "encrypted") {
        return Err(validate::not_carried_out("Options", option));
    }
    let flag = |key: &str| posted[key].as_bool().unwrap_or(false);
    Ok(NetworkSpec {
        name: name.to_owned(),
        labels: serde_json::from_value(posted["Labels"].clone()).unwrap_or_default(),
        internal: flag("Internal"),
        attachable: flag("Attachable"),
        ingress: flag("Ingress"),
        subnets,
        options,
    })
}

fn subnets(posted: &Value) -> Result<Vec<Ipv4Net>> {
    let mut subnets = Vec::new();
    for (i, config) in posted["IPAM"]["Config"].as_array().into_iter().flatten().enumerate() {
        let text = config["Subnet"].as_str().unwrap_or_default();
        if text.is_empty() {
            continue;
        }
        let subnet: ipnet::IpNet = text
            .parse()
            .map_err(|_| ApiError::bad(format!("invalid network config:\ninvalid subnet {text}: invalid CIDR block notation")))?;
        let ipnet::IpNet::V4(subnet) = subnet else {
            return Err(validate::not_carried_out(&format!("IPAM.Config[{i}].Subnet"), text));
        };
        if subnet.addr() != subnet.network() {
            return Err(ApiError::bad(format!(
                "invalid network config:\ninvalid subnet {subnet}: it should be {}",
                subnet.trunc()
            )));
        }
        let gateway = config["Gateway"].as_str().unwrap_or_default();
        let ours = convert::gateway(subnet).to_string();
        if !gateway.is_empty() && gateway != ours {
            return Err(validate::not_carried_out(
                &format!("IPAM.Config[{i}].Gateway {gateway} (the gateway is always {ours}, the first address)"),
                "",
            ));
        }
        subnets.push(subnet);
    }
    if subnets.len() > 1 {
        return Err(validate::not_carried_out("more than one subnet in IPAM.Config", ""));
    }
    Ok(subnets)
}

/// DELETE /networks/{id}
pub async fn remove(call: &Call, reference: &str) -> Result<Response> {
    let Some(handle) = call.api.control.store() else {
        if engine_copy(call, reference).await.is_some() {
            return Err(ApiError::unavailable(super::NOT_MANAGER));
        }
        return call.forward().await;
    };
    let store = handle.read();
    let network = match lookup::network(&store, reference) {
        Ok(network) => network,
        Err(error) if error.status == StatusCode::NOT_FOUND => {
            // Plumbing goes with the network that it is a part of.
            if engine_copy(call, reference).await.is_some() {
                return Err(error);
            }
            return call.forward().await;
        }
        Err(error) => return Err(error),
    };
    if network.spec.ingress {
        if let Some(service) = store.services().find(|s| s.spec.wants_ingress()) {
            return Err(ApiError::rpc(
                Code::FailedPrecondition,
                format!("ingress network cannot be removed because service {} depends on it", service.id),
            ));
        }
    } else if let Some(user) = user(network, &store) {
        return Err(ApiError::rpc(Code::FailedPrecondition, format!("network {} is in use by {user}", network.id)));
    }
    handle.write(call.api.clock.now(), vec![Action::Remove(Kind::Network, network.id.to_string())]).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The engine's copy of a swarm network, if that is what it knows under this name or id.
pub async fn engine_copy(call: &Call, reference: &str) -> Option<Value> {
    let reply = call.api.engine.get(&call.at_engine(&format!("/networks/{}", encode(reference)))).await.ok()?;
    let network: Value = serde_json::from_slice(&reply.body).ok()?;
    swarm_network_of(&network).is_some().then_some(network)
}

/// POST /networks/{id}/connect and /disconnect
pub async fn attach(call: &Call, reference: &str, verb: &str) -> Result<Response> {
    match refusal(call, reference).await? {
        Some(_) if verb == "disconnect" => Err(ApiError::not_built(format!(
            "{reference} is a network of the swarm: taking a container off it is not built into skep yet"
        ))),
        Some(error) => Err(error),
        None => call.forward().await,
    }
}

/// Why a plain container cannot be on this network; `None` if it is one of the engine's own.
pub async fn refusal(call: &Call, reference: &str) -> Result<Option<ApiError>> {
    let attachable = match store(call).as_deref().map(|s| lookup::network(s, reference)) {
        Some(Ok(network)) => network.spec.attachable,
        Some(Err(error)) if error.status != StatusCode::NOT_FOUND => return Err(error),
        _ => match engine_copy(call, reference).await {
            Some(copy) => copy["Attachable"].as_bool().unwrap_or(false),
            None => return Ok(None),
        },
    };
    Ok(Some(if attachable {
        ApiError::not_built(format!(
            "{reference} is an attachable network of the swarm: attaching plain containers to it is not built into skep yet"
        ))
    } else {
        ApiError::failed(not_attachable(call, reference))
    }))
}

fn not_attachable(call: &Call, reference: &str) -> String {
    let text = format!(
        "Could not attach to network {reference}: rpc error: code = PermissionDenied desc = network {reference} not manually attachable"
    );
    // The newer engine's sentence for a container that starts.
    if call.target.contains("/containers/") && call.identity.api >= ApiVersion::v1(48) {
        format!("failed to set up container networking: {text}")
    } else {
        text
    }
}

/// The refusal of a service's network that the cluster does not know.
pub async fn unknown_target(call: &Call, target: &str) -> ApiError {
    let path = call.at_engine(&format!("/networks/{}", encode(target)));
    match call.api.engine.get(&path).await {
        Ok(reply) if reply.status.is_success() => {
            if ["host", "bridge", "none"].contains(&target) {
                return validate::not_carried_out("TaskTemplate.Networks.Target", &quote(target));
            }
            ApiError::new(
                StatusCode::FORBIDDEN,
                format!(
                    "The network {target} cannot be used with services. Only networks scoped to the swarm can be used, such as those \
                     created with the overlay driver."
                ),
            )
        }
        _ => ApiError::failed(format!("network {target} not found")),
    }
}

/// Removes one of the engine's networks; false if it would not go.
pub async fn remove_local(call: &Call, id: &str) -> Result<bool> {
    let reply = call.api.engine.ask("DELETE", &call.at_engine(&format!("/networks/{}", encode(id))), &[], Bytes::new()).await?;
    Ok(reply.status.is_success())
}
