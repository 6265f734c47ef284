//! Plain containers on networks of the swarm: which network a request means, and the preparation of this node's engine for it. The
//! engine itself attaches the container; it gets the address from skep's driver.

use super::local_networks::{engine_part, engine_part_named};
use super::network_reference::{self, ReferencedNetwork, local_names};
use super::networks::store;
use super::request::ApiRequest;
use crate::api::control::{AttachRefusal, PreparedNetwork, RequestedAddresses};
use crate::api::error::{ApiError, Result};
use crate::api::query::encode;
use crate::model::AttachDenial;
use crate::model::docker::ApiVersion;
use axum::response::Response;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// POST /networks/{id}/connect
pub async fn connect(request: &ApiRequest, reference: &str) -> Result<Response> {
    // The engine refuses what cannot be parsed.
    let mut posted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let requested = requested_addresses(field(&posted, "EndpointConfig"))?;
    match prepare(request, reference, requested).await? {
        Some(network) => {
            let target = request.engine_target(&format!("/networks/{}/connect", encode(&network.name)));
            let Some(address) = network.belonging else { return request.forward_to(&target).await };
            update(&mut posted, "EndpointConfig", |endpoint| set_address(endpoint, address));
            request.forward_body(&target, posted.to_string().into()).await
        }
        None => request.forward().await,
    }
}

/// POST /networks/{id}/disconnect: also what is on a network that is not attachable, since clients disconnect all containers of a
/// network before they remove it.
pub async fn disconnect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let known = store(request);
    let found = match &known {
        Some(store) => network_reference::find(request, store, reference).await?,
        None => ReferencedNetwork::Unknown,
    };
    let part = match found {
        ReferencedNetwork::Swarm(network) => match engine_part(request, network.id.as_str()).await {
            Some(part) => Some(part),
            None => return Err(ApiError::not_found("network", reference)),
        },
        ReferencedNetwork::Local(_) => None,
        ReferencedNetwork::Unknown => engine_part_named(request, reference).await,
    };
    match part.as_ref().and_then(|part| part["Id"].as_str()) {
        Some(id) => request.forward_to(&request.engine_target(&format!("/networks/{id}/disconnect"))).await,
        None => request.forward().await,
    }
}

/// Prepares this node's engine for a container on the network that a request names; `None` if that is one of the engine's own, or
/// unknown to both.
///
/// # Errors
/// The network is not attachable, no manager answers, or several networks match.
pub async fn prepare(request: &ApiRequest, reference: &str, requested: RequestedAddresses) -> Result<Option<PreparedNetwork>> {
    let prepared = match store(request) {
        Some(store) => match network_reference::find(request, &store, reference).await? {
            ReferencedNetwork::Swarm(network) if !network.spec.attachable => {
                return Err(refusal(request, reference, &AttachDenial::NotAttachable(network.spec.name.clone())));
            }
            ReferencedNetwork::Swarm(network) => request.api.control.prepare_network(network.id.as_str(), requested).await,
            // A part of a network that the swarm has no longer.
            ReferencedNetwork::Unknown if engine_part_named(request, reference).await.is_some() => {
                return Err(ApiError::not_found("network", reference));
            }
            ReferencedNetwork::Local(_) | ReferencedNetwork::Unknown => return Ok(None),
        },
        None if request.api.control.membership().info().is_none() => return Ok(None),
        None => {
            let local = local_names(request).await?;
            if local.iter().any(|(id, name)| name == reference || id == reference) {
                return Ok(None);
            }
            // The name of a network of the swarm is more than the beginning of a local one's id.
            match request.api.control.prepare_network(reference, requested).await {
                Err(AttachRefusal::Node(_)) if local.iter().any(|(id, _)| id.starts_with(reference)) => return Ok(None),
                prepared => prepared,
            }
        }
    };
    match prepared {
        Ok(network) => Ok(Some(network)),
        Err(AttachRefusal::Managers(AttachDenial::UnknownNetwork(name))) if name == reference => Ok(None),
        Err(AttachRefusal::Managers(reason)) => Err(refusal(request, reference, &reason)),
        Err(AttachRefusal::Node(error)) => Err(error.into()),
    }
}

/// Docker's words for what its managers refuse.
fn refusal(request: &ApiRequest, reference: &str, reason: &AttachDenial) -> ApiError {
    let code = match reason {
        AttachDenial::NotAttachable(_) => "rpc error: code = PermissionDenied desc = ",
        AttachDenial::UnknownNetwork(_) | AttachDenial::Other(_) => "",
    };
    let text = format!("Could not attach to network {reference}: {code}{reason}");
    // Newer engines prefix the error when a container is created or started.
    if request.target.contains("/containers/") && request.identity.api >= ApiVersion::v1(48) {
        ApiError::failed(format!("failed to set up container networking: {text}"))
    } else {
        ApiError::failed(text)
    }
}

/// The addresses that a posted endpoint asks for.
///
/// # Errors
/// 400 if one is none of its family.
pub fn requested_addresses(endpoint: &Value) -> Result<RequestedAddresses> {
    let config = field(endpoint, "IPAMConfig");
    Ok(RequestedAddresses { v4: requested(config, "IPv4")?, v6: requested(config, "IPv6")? })
}

fn requested<A: FromStr>(config: &Value, family: &str) -> Result<Option<A>> {
    let text = field(config, &format!("{family}Address")).as_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    let refused = |_| ApiError::bad(format!("invalid endpoint settings:\ninvalid {family} address: {text}"));
    text.parse().map(Some).map_err(refused)
}

/// Has a posted endpoint ask for this address.
pub fn set_address(endpoint: &mut Value, address: Ipv4Addr) {
    update(endpoint, "IPAMConfig", |config| update(config, "IPv4Address", |v4| *v4 = json!(address.to_string())));
}

/// Changes a field, whatever its spelling; one that is missing is `null` before.
pub fn update(value: &mut Value, name: &str, change: impl FnOnce(&mut Value)) {
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(map) = value else { return };
    let key = map.keys().find(|key| key.eq_ignore_ascii_case(name)).cloned();
    change(map.entry(key.unwrap_or_else(|| name.to_owned())).or_insert(Value::Null));
}

/// A field by its name in any case, as the engine matches it.
pub fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let found = value.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |(_, value)| value)
}
