//! `/services`.

use super::local_networks::unknown_target;
use super::pinned_image;
use super::reply::{empty, json, json_text, ok};
use super::request::ApiRequest;
use crate::api::convert;
use crate::api::error::{ApiError, GrpcCode, Result};
use crate::api::query::Filters;
use crate::api::schema::SERVICE_SPEC;
use crate::api::{lookup, validate};
use crate::manager::bounds;
use crate::model::docker::ApiVersion;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::port_labels::sources_of;
use crate::model::service::{Endpoint, ServiceSpec};
use crate::model::{JobStatus, Meta, PayloadId, PredefinedNetwork, PullAuth, Service, ServiceId, SpecChange};
use crate::store::{Action, Condition, FieldUpdate, Kind, Store, Transaction};
use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};
use std::sync::Arc;

/// GET /services
pub fn list(request: &ApiRequest) -> Result<Response> {
    let filters = request.query.filters(&["id", "name", "label", "mode", "runtime"])?;
    let status = request.query.strict_bool("status")? && request.version >= ApiVersion::v1(41);
    let store = request.store()?.read();
    let mut found: Vec<&Arc<Service>> = store.shared_services().filter(|s| passes(s, &filters)).collect();
    if filters.has("name") {
        found.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
    }
    let status_of = |service: &Service| status.then(|| convert::service::status(service, &store));
    let text = request.api.services.list(&found, status_of, &store)?;
    Ok(json_text(StatusCode::OK, text.into()))
}

fn passes(service: &Service, filters: &Filters) -> bool {
    filters.any("id", |v| service.id.as_str().starts_with(v))
        && filters.any("name", |v| service.spec.name.starts_with(v))
        && filters.any("mode", |v| v == service.spec.mode.as_str())
        && filters.any("runtime", |v| v == "container")
        && filters.swarm_labels("label", &service.spec.labels)
}

/// GET /services/{id}
pub fn inspect(request: &ApiRequest, reference: &str) -> Result<Response> {
    let defaults = request.query.strict_bool("insertDefaults")?;
    let store = request.store()?.read();
    let service = lookup::service(&store, reference)?;
    match store.shared_service(&service.id) {
        Some(service) if !defaults => Ok(json_text(StatusCode::OK, request.api.services.one(service, &store)?)),
        _ => ok(&convert::service::service(service, &store, defaults)),
    }
}

/// POST /services/create
pub async fn create(request: &ApiRequest) -> Result<Response> {
    let posted = request.decode_body(&SERVICE_SPEC)?;
    let handle = request.store()?;
    let store = handle.read();
    let pull_auth = posted_pull_auth(request, &store)?;
    let mut spec = validate::service_spec(posted)?;
    if spec.name.is_empty() {
        spec.name = validate::random_name(&mut rand::rng(), store.services().map(|s| s.spec.name.as_str()));
    }
    resolve_networks(request, &mut spec, &store).await?;
    validate::service(&spec)?;
    bounds::service(&spec).map_err(ApiError::invalid_argument)?;
    validate::payload_references(&spec.task_template.container_spec, &store)?;
    let http_warnings = validate::http_labels(&spec, None, &store)?;
    validate::reserved(&spec, store.cluster().map_or(DEFAULT_PORT, |cluster| cluster.data_path_port))?;
    validate::free_ports(&spec, None, &store)?;
    if spec.wants_ingress() && !lookup::networks(&store).any(|n| n.spec.ingress) {
        return Err(ApiError::rpc(
            GrpcCode::FailedPrecondition,
            "service needs ingress network, but no ingress network is present",
        ));
    }
    let unpinned = pinned_image::pin(request, &mut spec).await;
    let now = request.api.clock.now();
    let job = spec.mode.is_job().then_some(JobStatus { iteration: 0, last_execution: now });
    let id = ServiceId::draw(&mut rand::rng());
    let service = Service {
        id: id.clone(),
        meta: Meta::default(),
        spec,
        previous_spec: None,
        pull_auth,
        previous_pull_auth: None,
        spec_version: 1,
        previous_spec_version: None,
        newest_spec_version: None,
        update: None,
        job,
        endpoint: Endpoint::default(),
        scalings: Vec::new(),
    };
    let conditions = conditions(&service.spec, None, &store);
    let small_networks = validate::small_networks(&service.spec, None, &store);
    let warnings = [unpinned, small_networks, http_warnings, validate::autoscale_warnings(&service.spec)].concat();
    let warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    handle.propose(Transaction::new(now, vec![Action::create(service)]).require(conditions)).await?;
    json(StatusCode::CREATED, &json!({ "ID": id, "Warnings": warnings }))
}

/// First feature level at which managers keep registry credentials. Below it one of the release before would drop them.
const PULL_AUTH_LEVEL: u32 = 2;

/// The registry credentials that a request brings.
fn posted_pull_auth(request: &ApiRequest, store: &Store) -> Result<Option<PullAuth>> {
    let (auth, level) = (validate::pull_auth(&request.headers)?, store.feature_level());
    if auth.is_some() && level < PULL_AUTH_LEVEL {
        return Err(ApiError::rpc(
            GrpcCode::FailedPrecondition,
            format!(
                "registry credentials need feature level {PULL_AUTH_LEVEL}, the cluster is at level {level}: upgrade skep on every \
                 manager first"
            ),
        ));
    }
    Ok(auth)
}

/// What other requests must not take away before the spec is written: its networks exist, `ingress` included, its secrets and configs
/// too, and its ports are free. `own` is the id of the service itself on an update.
fn conditions(spec: &ServiceSpec, own: Option<&ServiceId>, store: &Store) -> Vec<Condition> {
    let ingress = lookup::networks(store).filter(|n| n.spec.ingress && spec.wants_ingress()).map(|n| n.id.clone());
    let networks = spec.task_template.swarm_networks().chain(ingress).map(|id| Condition::present(Kind::Network, &id));
    let ports = spec.endpoint_spec.iter().flat_map(|e| &e.ports).filter(|p| p.published_port != 0);
    let ports = ports.map(|p| Condition::FreePort {
        mode: p.publish_mode,
        protocol: p.protocol,
        port: p.published_port,
        except: own.cloned(),
    });
    let entries = sources_of(spec) as u64;
    // A service that adds none is not refused for what others have.
    let lists = (entries > 0).then(|| Condition::AllowListsFit { entries, except: own.cloned() });
    let payloads = spec.task_template.container_spec.payloads().map(|payload| match payload {
        PayloadId::Secret(id) => Condition::present(Kind::ClusterSecret, &id),
        PayloadId::Config(id) => Condition::present(Kind::ClusterConfig, &id),
    });
    networks.chain(ports).chain(payloads).chain(lists).collect()
}

/// Replaces names of networks by their ids.
async fn resolve_networks(request: &ApiRequest, spec: &mut ServiceSpec, store: &Store) -> Result<()> {
    for attachment in &mut spec.task_template.networks {
        let target = &attachment.target;
        if let Some(predefined) = PredefinedNetwork::find(target) {
            predefined.id().clone_into(&mut attachment.target);
            continue;
        }
        let network = match lookup::network(store, target) {
            Ok(network) => network,
            Err(error) if error.status != StatusCode::NOT_FOUND => return Err(error),
            Err(_) => return Err(unknown_target(request, target).await),
        };
        if network.spec.ingress {
            return Err(ApiError::invalid_argument(format!(
                "Service cannot be explicitly attached to the ingress network \"{}\"",
                network.spec.name
            )));
        }
        attachment.target = network.id.to_string();
    }
    validate::predefined_networks(spec)
}

/// A spec that is sent again, as `docker stack deploy` sends it, with the number of replicas of before does not undo what its service
/// was scaled to by load since. Returns what to say of it.
fn keep_scaled_replicas(spec: &mut ServiceSpec, stored: &Service) -> Option<String> {
    let (given, now) = (stored.given_replicas(), stored.spec.mode.replicas());
    if now == given || spec.mode.replicas() != given {
        return None;
    }
    spec.keep_scaled_replicas(&stored.spec.mode);
    let kept = spec.mode.replicas();
    (kept != given).then(|| {
        format!(
            "service {} keeps the {kept} replicas that its load has scaled it to: {given} is the number that it was given before; another one is \
             taken as it is",
            stored.spec.name
        )
    })
}

/// POST /services/{id}/update
pub async fn update(request: &ApiRequest, reference: &str) -> Result<Response> {
    let posted = request.decode_body(&SERVICE_SPEC)?;
    let version = request.query.version("service")?;
    let handle = request.store()?;
    let store = handle.read();
    let stored = lookup::service(&store, reference)?;
    let is_stale = stored.meta.version != version;
    let mut scaled = None;
    let mut spec = match request.query.get("rollback") {
        "" | "none" => {
            let posted = with_name_and_mode(posted, &stored.spec)?;
            // Old news comes before what skep cannot do.
            let mut spec = validate::service_spec(posted).map_err(|error| {
                if error.status == StatusCode::NOT_IMPLEMENTED && is_stale { ApiError::out_of_sequence() } else { error }
            })?;
            resolve_networks(request, &mut spec, &store).await?;
            scaled = keep_scaled_replicas(&mut spec, stored);
            spec
        }
        "previous" => {
            let mut spec = stored.previous_spec.clone().ok_or_else(|| {
                ApiError::rpc(GrpcCode::FailedPrecondition, format!("service {} does not have a previous spec", stored.id))
            })?;
            spec.keep_scaled_replicas(&stored.spec.mode);
            resolve_networks(request, &mut spec, &store).await?;
            spec
        }
        other => return Err(ApiError::failed(format!("unrecognized rollback option {other}"))),
    };
    let posted_auth = posted_pull_auth(request, &store)?;
    let kept_auth = match request.query.get("registryAuthFrom") {
        "previous-spec" if posted_auth.is_none() && stored.previous_spec.is_none() => {
            return Err(ApiError::failed("service does not have a previous spec"));
        }
        "previous-spec" => &stored.previous_pull_auth,
        "" | "spec" if request.query.get("rollback") == "previous" => &stored.previous_pull_auth,
        "" | "spec" => &stored.pull_auth,
        _ => return Err(ApiError::failed("unsupported registryAuthFrom value")),
    };
    let pull_auth = posted_auth.or_else(|| kept_auth.clone());
    validate::service(&spec)?;
    bounds::service(&spec).map_err(ApiError::invalid_argument)?;
    validate::payload_references(&spec.task_template.container_spec, &store)?;
    let http_warnings = validate::http_labels(&spec, Some(stored), &store)?;
    validate::reserved(&spec, store.cluster().map_or(DEFAULT_PORT, |cluster| cluster.data_path_port))?;
    validate::free_ports(&spec, Some(&stored.id), &store)?;
    if spec.name != stored.spec.name {
        return Err(ApiError::rpc(GrpcCode::Unimplemented, "renaming services is not supported"));
    }
    if is_stale {
        return Err(ApiError::out_of_sequence());
    }
    let rollback = request.query.get("rollback") == "previous";
    let unpinned = if rollback { Vec::new() } else { pinned_image::pin(request, &mut spec).await };
    let now = request.api.clock.now();
    let replaces_tasks = !spec.mode.is_job() && validate::replaces_tasks(&stored.spec, &spec);
    let stays_paused = !replaces_tasks && !rollback && stored.update.as_ref().is_some_and(|update| update.state.is_paused());
    let small_networks = validate::small_networks(&spec, Some(&stored.id), &store);
    let mut warnings = [unpinned, small_networks, http_warnings, validate::autoscale_warnings(&spec)].concat();
    warnings.extend(scaled);
    if stays_paused {
        // A rollback that has failed was the way back: there is no other spec behind it.
        let way_back = match stored.previous_spec {
            Some(_) => "docker service rollback brings back the spec that last worked",
            None => "or post another spec",
        };
        warnings.push(format!(
            "the update of service {} stays paused, because this change replaces no task: docker service update --force goes on with \
             it, {way_back}",
            stored.spec.name
        ));
    }
    let warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
    let conditions = conditions(&spec, Some(&stored.id), &store);
    let change = SpecChange { replaces_tasks, rollback, job_run_at: stored.job.map(|_| now) };
    let update = FieldUpdate::ServiceSpec { id: stored.id.clone(), version, spec: Box::new(spec), pull_auth, change };
    handle.propose(Transaction::new(now, vec![Action::Set(update)]).require(conditions)).await?;
    ok(&json!({ "Warnings": warnings }))
}

/// The posted spec, with the name and the mode that the service has if it leaves them out: what real servers take for a new
/// name, and for one replica.
fn with_name_and_mode(mut posted: Value, stored: &ServiceSpec) -> Result<Value> {
    if posted["Name"].as_str().is_none_or(str::is_empty) {
        posted["Name"] = json!(stored.name);
    }
    let has = serde_json::to_value(&stored.mode).map_err(|error| ApiError::failed(error.to_string()))?;
    let named: Vec<String> = posted["Mode"].as_object().into_iter().flatten().map(|(kind, _)| kind.clone()).collect();
    match &named[..] {
        [] => posted["Mode"] = has,
        [kind] if has[kind].is_null() => {
            return Err(ApiError::rpc(GrpcCode::Unimplemented, "service mode change is not allowed"));
        }
        // Without its numbers.
        [kind] if posted["Mode"][kind] == json!({}) => posted["Mode"][kind] = has[kind].clone(),
        // Refused when it is read.
        _ => {}
    }
    Ok(posted)
}

/// DELETE /services/{id}
pub async fn remove(request: &ApiRequest, reference: &str) -> Result<Response> {
    let handle = request.store()?;
    let store = handle.read();
    let id = lookup::service(&store, reference)?.id.to_string();
    handle.write(request.api.clock.now(), vec![Action::Remove(Kind::Service, id)]).await?;
    empty()
}

/// GET /services/{id}/history, for `skep history`
pub fn history(request: &ApiRequest, reference: &str) -> Result<Response> {
    let store = request.store()?.read();
    ok(&convert::history::history(lookup::service(&store, reference)?, &store))
}
