//! Plain containers on networks of the swarm: which network a request means, and the preparation of this node's engine for it. The
//! engine itself attaches the container; it gets the address from skep's driver.

use super::local_networks::{engine_part, engine_part_named};
use super::network_reference::{self, ReferencedNetwork, local_names};
use super::networks::store;
use super::request::ApiRequest;
use crate::api::control::{AttachRefusal, PreparedNetwork};
use crate::api::error::{ApiError, Result};
use crate::api::query::encode;
use crate::model::AttachDenial;
use crate::model::docker::ApiVersion;
use axum::response::Response;
use serde_json::Value;
use std::net::Ipv4Addr;

/// POST /networks/{id}/connect
pub async fn connect(request: &ApiRequest, reference: &str) -> Result<Response> {
    // The engine refuses what cannot be parsed.
    let posted: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let requested = requested_address(field(&posted, "EndpointConfig"))?;
    match prepare(request, reference, requested).await? {
        Some(network) => {
            request.forward_to(&request.engine_target(&format!("/networks/{}/connect", encode(&network.name)))).await
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
pub async fn prepare(request: &ApiRequest, reference: &str, requested: Option<Ipv4Addr>) -> Result<Option<PreparedNetwork>> {
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
            if local.iter().any(|(id, name)| name == reference || id.starts_with(reference)) {
                return Ok(None);
            }
            request.api.control.prepare_network(reference, requested).await
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

/// The IPv4 address that a posted endpoint asks for.
///
/// # Errors
/// 400 if it is none.
pub fn requested_address(endpoint: &Value) -> Result<Option<Ipv4Addr>> {
    let text = field(field(endpoint, "IPAMConfig"), "IPv4Address").as_str().unwrap_or_default();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ApiError::bad(format!("invalid endpoint settings:\ninvalid IPv4 address: {text}")))
}

/// A field by its name in any case, as the engine matches it.
pub fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let found = value.as_object().and_then(|map| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
    found.map_or(&Value::Null, |(_, value)| value)
}
