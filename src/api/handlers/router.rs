//! From an HTTP request to its handler.

use super::request::ApiRequest;
use super::{
    acme, attach, containers, events, logs, networks, nodes, payloads, prune, rebalance, services, swarm, system,
    task_containers, tasks,
};
use crate::api::context::ApiContext;
use crate::api::engine_http::EngineIdentity;
use crate::api::error::{ApiError, Result};
use crate::api::query::{RequestQuery, decode_segment, split_version};
use crate::model::docker::{API_VERSION_HEADER, ApiVersion};
use crate::model::{ClusterConfig, ClusterSecret, Timestamp};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode};
use std::sync::Arc;

/// Largest body that is accepted, in bytes. The largest legitimate one is a service with many labels.
const MAX_BODY: usize = 4 << 20;
/// Header field of replies of a manager that knows no leader: since when. What it has may be older than what the swarm has.
const STALE_SINCE: &str = "skep-stale-since";
/// How much of a larger body is read and dropped before the connection is closed, in bytes.
const MAX_DISCARDED: usize = 64 << 20;

/// The router of all swarm paths. They are matched by hand: an unknown path, a wrong method and a trailing slash all get
/// the same "page not found".
pub fn router(api: Arc<ApiContext>) -> Router {
    Router::new().fallback(respond).with_state(api)
}

/// Handles a request and adds the header fields that the engine sends with every reply.
async fn respond(State(api): State<Arc<ApiContext>>, request: Request<Body>) -> Response {
    let identity = api.engine.identity().await;
    let stale_since = api.stale_since();
    let mut response = match handle(api, identity.clone(), request).await {
        Ok(response) => response,
        Err(error) => {
            if error.status.is_server_error() {
                tracing::debug!(status = error.status.as_u16(), message = %error.message, "refused");
            }
            error.into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (API_VERSION_HEADER, identity.api.to_string().as_str()),
        ("docker-experimental", &identity.experimental),
        ("ostype", &identity.ostype),
        ("server", &identity.server),
        (STALE_SINCE, &stale_since.map(Timestamp::to_rfc3339).unwrap_or_default()),
    ] {
        if value.is_empty() {
            continue;
        }
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

async fn handle(api: Arc<ApiContext>, identity: Arc<EngineIdentity>, http_request: Request<Body>) -> Result<Response> {
    let (parts, body) = http_request.into_parts();
    if parts.method == Method::OPTIONS {
        return Ok(StatusCode::OK.into_response());
    }
    let target = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let (requested, path) = split_version(parts.uri.path());
    if let Some(response) = check_version(requested, &identity) {
        return response;
    }
    let path: Vec<String> = path.trim_start_matches('/').split('/').map(decode_segment).collect();
    let body = read_body(body).await?;
    let request = ApiRequest {
        version: requested.unwrap_or(identity.api),
        query: RequestQuery::parse(parts.uri.query().unwrap_or_default()),
        method: parts.method,
        headers: parts.headers,
        api,
        identity,
        target,
        body,
    };
    dispatch(&request, &path.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// The refusal of a version that is not served. Too old ones are refused in plain text: their clients do not read JSON
/// errors.
fn check_version(requested: Option<ApiVersion>, identity: &EngineIdentity) -> Option<Result<Response>> {
    let requested = requested?;
    if requested > identity.api {
        return Some(Err(ApiError::bad(format!(
            "client version {requested} is too new. Maximum supported API version is {}",
            identity.api
        ))));
    }
    if requested < identity.min_api {
        let text = format!(
            "client version {requested} is too old. Minimum supported API version is {}, please upgrade your client to a newer version\n",
            identity.min_api
        );
        let fields = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")];
        return Some(Ok((StatusCode::BAD_REQUEST, fields, text).into_response()));
    }
    None
}

/// Reads a body. The excess of a too large one is read and dropped, because a client that cannot send its whole request
/// does not read the reply.
///
/// # Errors
/// 413 above [`MAX_BODY`], 400 if the body ends early.
pub async fn read_body(mut body: Body) -> Result<Bytes> {
    let mut read = BytesMut::new();
    let mut received = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad(format!("the body of the request could not be read: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        received = received.saturating_add(data.len());
        if received <= MAX_BODY {
            read.extend_from_slice(&data);
        } else if received > MAX_DISCARDED {
            break;
        }
    }
    if received > MAX_BODY {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body of the request is larger than {} MiB", MAX_BODY >> 20),
        ));
    }
    Ok(read.freeze())
}

async fn dispatch(request: &ApiRequest, path: &[&str]) -> Result<Response> {
    match (request.method.as_str(), path) {
        ("GET" | "HEAD", ["_ping"]) => system::ping(request),
        ("GET", ["version"]) => system::version(request).await,
        ("GET", ["info"]) => system::info(request).await,

        ("GET", ["swarm"]) => swarm::inspect(request),
        ("POST", ["swarm", "init"]) => swarm::init(request).await,
        ("POST", ["swarm", "join"]) => swarm::join(request).await,
        ("POST", ["swarm", "leave"]) => swarm::leave(request).await,
        ("POST", ["swarm", "update"]) => swarm::update(request).await,
        ("GET", ["swarm", "unlockkey"]) => swarm::unlock_key(request),
        ("POST", ["swarm", "unlock"]) => swarm::unlock(request).await,

        ("GET", ["nodes"]) => nodes::list(request),
        ("GET", ["nodes", node]) if !node.is_empty() => nodes::inspect(request, node),
        ("POST", ["nodes", node, "update"]) => nodes::update(request, node).await,
        ("DELETE", ["nodes", node]) if !node.is_empty() => nodes::remove(request, node).await,

        ("GET", ["services"]) => services::list(request),
        ("POST", ["services", "create"]) => services::create(request).await,
        ("GET", ["services", service]) if !service.is_empty() => services::inspect(request, service),
        ("POST", ["services", service, "update"]) => services::update(request, service).await,
        ("DELETE", ["services", service]) if !service.is_empty() => services::remove(request, service).await,
        ("GET", ["services", service, "logs"]) => logs::of_service(request, service),

        ("GET", ["services", service, "history"]) => services::history(request, service),
        ("GET", ["rebalance"]) => rebalance::show(request),
        ("GET", ["acme"]) => acme::show(request),
        ("POST", ["acme"]) => acme::change(request).await,
        ("POST", ["rebalance"]) => rebalance::start(request).await,

        ("GET", ["tasks"]) => tasks::list(request),
        ("GET", ["tasks", task]) if !task.is_empty() => tasks::inspect(request, task),
        ("GET", ["tasks", task, "logs"]) => logs::of_task(request, task),

        (method, ["secrets", rest @ ..]) => payload::<ClusterSecret>(request, method, rest).await,
        (method, ["configs", rest @ ..]) => payload::<ClusterConfig>(request, method, rest).await,

        ("GET", ["events"]) => events::stream(request).await,

        ("GET", ["networks"]) => networks::list(request).await,
        ("POST", ["networks", "create"]) => networks::create(request).await,
        ("POST", ["networks", "prune"]) => prune::networks(request).await,
        ("GET", ["networks", network]) if !network.is_empty() => networks::inspect(request, network).await,
        ("DELETE", ["networks", network]) if !network.is_empty() => networks::remove(request, network).await,
        ("POST", ["networks", network, "connect"]) => attach::connect(request, network).await,
        ("POST", ["networks", network, "disconnect"]) => attach::disconnect(request, network).await,

        ("POST", ["containers", "create"]) => containers::create(request).await,
        ("GET", ["containers", "json"]) => task_containers::list(request).await,
        ("POST", ["containers", "prune"]) => task_containers::prune(request).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// `/secrets` and `/configs`.
async fn payload<T: payloads::StoredPayload>(request: &ApiRequest, method: &str, path: &[&str]) -> Result<Response> {
    match (method, path) {
        ("GET", []) => payloads::list::<T>(request),
        ("POST", ["create"]) => payloads::create::<T>(request).await,
        ("GET", [reference]) if !reference.is_empty() => payloads::inspect::<T>(request, reference),
        ("POST", [reference, "update"]) if !reference.is_empty() => payloads::update::<T>(request, reference).await,
        ("DELETE", [reference]) if !reference.is_empty() => payloads::remove::<T>(request, reference).await,
        _ => Err(ApiError::page_not_found()),
    }
}
