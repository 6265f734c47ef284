//! `/services`.

use super::{Call, empty, json, ok};
use crate::api::convert;
use crate::api::error::{ApiError, Code, Result};
use crate::api::query::{ApiVersion, Filters};
use crate::api::schema::SERVICE_SPEC;
use crate::api::{lookup, validate};
use crate::model::service::{Endpoint, ServiceSpec};
use crate::model::{Meta, Service, ServiceId};
use crate::store::{Action, Kind, Store};
use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// GET /services
pub fn list(call: &Call) -> Result<Response> {
    let filters = call.query.filters(&["id", "name", "label", "mode", "runtime"])?;
    let status = call.query.strict_bool("status")? && call.version >= ApiVersion::v1(41);
    let store = call.store()?.read();
    let mut found: Vec<&Service> = store.services().filter(|s| passes(s, &filters)).collect();
    if filters.has("name") {
        found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    }
    let running = if status { convert::service::running(store.tasks()) } else { BTreeMap::new() };
    let services: Vec<_> = found
        .into_iter()
        .map(|service| {
            let mut shown = convert::service::service(service, false);
            shown.service_status = status.then(|| convert::service::status(service, &running));
            shown
        })
        .collect();
    ok(&services)
}

fn passes(service: &Service, filters: &Filters) -> bool {
    filters.any("id", |v| service.id.as_str().starts_with(v))
        && filters.any("name", |v| service.spec.name.starts_with(v))
        && filters.any("mode", |v| v == "replicated")
        && filters.any("runtime", |v| v == "container")
        && filters.labels("label", &service.spec.labels)
}

/// GET /services/{id}
pub fn inspect(call: &Call, reference: &str) -> Result<Response> {
    let defaults = call.query.strict_bool("insertDefaults")?;
    let store = call.store()?.read();
    ok(&convert::service::service(lookup::service(&store, reference)?, defaults))
}

/// POST /services/create
pub async fn create(call: &Call) -> Result<Response> {
    let posted = call.read(&SERVICE_SPEC)?;
    let handle = call.store()?;
    let store = handle.read();
    credentials(call)?;
    let mut spec = validate::spec(posted)?;
    if spec.name.is_empty() {
        spec.name = validate::random_name(&mut rand::rng(), store.services().map(|s| s.spec.name.as_str()));
    }
    networks(call, &mut spec, &store).await?;
    validate::service(&spec)?;
    validate::free_ports(&spec, None, store.services())?;
    if spec.wants_ingress() && !store.networks().any(|n| n.spec.ingress) {
        return Err(ApiError::rpc(Code::FailedPrecondition, "service needs ingress network, but no ingress network is present"));
    }
    let id = ServiceId::draw(&mut rand::rng());
    let service = Service {
        id: id.clone(),
        meta: Meta::default(),
        spec,
        previous_spec: None,
        spec_version: 1,
        endpoint: Endpoint::default(),
    };
    handle.write(call.api.clock.now(), vec![Action::create(service)]).await?;
    json(StatusCode::CREATED, &json!({ "ID": id, "Warnings": Value::Null }))
}

/// Puts ids in the place of the networks' names.
async fn networks(call: &Call, spec: &mut ServiceSpec, store: &Store) -> Result<()> {
    for attachment in &mut spec.task_template.networks {
        let target = &attachment.target;
        let network = match lookup::network(store, target) {
            Ok(network) => network,
            Err(error) if error.status != StatusCode::NOT_FOUND => return Err(error),
            Err(_) => return Err(super::networks::unknown_target(call, target).await),
        };
        if network.spec.ingress {
            return Err(ApiError::rpc(
                Code::InvalidArgument,
                format!("Service cannot be explicitly attached to the ingress network \"{}\"", network.spec.name),
            ));
        }
        attachment.target = network.id.to_string();
    }
    Ok(())
}

/// POST /services/{id}/update: the number of replicas and the service's labels may change.
pub async fn update(call: &Call, reference: &str) -> Result<Response> {
    let posted = call.read(&SERVICE_SPEC)?;
    let version = call.query.version("service")?;
    let handle = call.store()?;
    let store = handle.read();
    let stored = lookup::service(&store, reference)?;
    let spec = match call.query.get("rollback") {
        "" | "none" => {
            mode_change(&posted)?;
            credentials(call)?;
            let mut spec = validate::spec(posted)?;
            networks(call, &mut spec, &store).await?;
            spec
        }
        "previous" => stored.previous_spec.clone().ok_or_else(|| {
            ApiError::rpc(Code::FailedPrecondition, format!("service {} does not have a previous spec", stored.id))
        })?,
        other => return Err(ApiError::failed(format!("unrecognized rollback option {other}"))),
    };
    if !["", "spec", "previous-spec"].contains(&call.query.get("registryAuthFrom")) {
        return Err(ApiError::failed("unsupported registryAuthFrom value"));
    }
    validate::service(&spec)?;
    validate::free_ports(&spec, Some(&stored.id), store.services())?;
    if spec.name != stored.spec.name {
        return Err(ApiError::rpc(Code::Unimplemented, "renaming services is not supported"));
    }
    if let Some(path) = first_change(&stored.spec, &spec) {
        return Err(ApiError::not_built(format!(
            "{path} of service {} cannot be changed: rolling updates are not built into skep yet, only the number of replicas \
             and the service's labels can be updated (nothing was changed)",
            stored.spec.name
        )));
    }
    let mut service = stored.clone();
    service.previous_spec = Some(std::mem::replace(&mut service.spec, spec));
    service.meta.version = version;
    handle.write(call.api.clock.now(), vec![Action::update(service)]).await?;
    ok(&json!({ "Warnings": Value::Null }))
}

/// Refuses credentials for a registry, which would have to be kept for the nodes. None at all, or garbage, is as good
/// as the header's absence.
fn credentials(call: &Call) -> Result<()> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let field = call.headers.get("x-registry-auth").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let decoded = URL_SAFE_NO_PAD.decode(field.trim_end_matches('=')).unwrap_or_default();
    let auth: Value = serde_json::from_slice(&decoded).unwrap_or_default();
    let given = |key: &&str| auth[key].as_str().is_some_and(|text| !text.is_empty());
    match ["username", "password", "auth", "identitytoken", "registrytoken"].iter().find(|k| given(k)) {
        Some(key) => Err(ApiError::not_built(format!(
            "X-Registry-Auth ({key}) is not carried out by skep yet: log in on every node, or use images that need no login"
        ))),
        None => Ok(()),
    }
}

/// Every service is replicated: another mode is a change of it.
fn mode_change(posted: &Value) -> Result<()> {
    let other = |mode: &str| !posted["Mode"][mode].is_null();
    if posted["Mode"]["Replicated"].is_null() && ["Global", "ReplicatedJob", "GlobalJob"].into_iter().any(other) {
        return Err(ApiError::rpc(Code::Unimplemented, "service mode change is not allowed"));
    }
    Ok(())
}

/// The path of the first difference that is not carried out.
fn first_change(old: &ServiceSpec, new: &ServiceSpec) -> Option<String> {
    let shown = |spec: &ServiceSpec| {
        let spec = ServiceSpec { labels: BTreeMap::new(), mode: new.mode.clone(), ..spec.clone() };
        serde_json::to_value(spec).unwrap_or_default()
    };
    difference(&shown(old), &shown(new), String::new())
}

fn difference(old: &Value, new: &Value, path: String) -> Option<String> {
    if old == new {
        return None;
    }
    let (Value::Object(a), Value::Object(b)) = (old, new) else { return Some(path) };
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        difference(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), path)
    })
}

/// DELETE /services/{id}
pub async fn remove(call: &Call, reference: &str) -> Result<Response> {
    let handle = call.store()?;
    let store = handle.read();
    let id = lookup::service(&store, reference)?.id.to_string();
    handle.write(call.api.clock.now(), vec![Action::Remove(Kind::Service, id)]).await?;
    empty()
}

/// GET /services/{id}/logs
pub fn logs(call: &Call, reference: &str) -> Result<Response> {
    let store = call.store()?.read();
    let service = lookup::service(&store, reference)?;
    check_logs(call)?;
    Err(ApiError::not_built(format!(
        "logs of services and tasks are not built into skep yet: docker service ps {} shows where its tasks run, docker logs there",
        service.spec.name
    )))
}

/// Refuses what the real server refuses of the arguments.
pub fn check_logs(call: &Call) -> Result<()> {
    if !call.query.loose_bool("stdout") && !call.query.loose_bool("stderr") {
        return Err(ApiError::failed("Bad parameters: you must choose at least one stream"));
    }
    let tail = call.query.get("tail");
    if !tail.is_empty() && tail != "all" && tail.parse::<u64>().is_err() {
        return Err(ApiError::failed("tail value must be a positive integer or \"all\""));
    }
    Ok(())
}
