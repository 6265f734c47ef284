//! Answers, one file per kind of object. A request comes as a [`Call`]: method and path split up, body read (bounded),
//! version checked.

mod containers;
mod networks;
mod nodes;
mod prune;
mod services;
mod swarm;
mod system;
mod tasks;
mod unsupported;

use super::Api;
use super::body;
use super::control::Membership;
use super::engine::Identity;
use super::error::{ApiError, Result};
use super::query::{ApiVersion, Query, decode_segment, split_version};
use super::schema::Struct;
use crate::store::StoreHandle;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// Largest body that is read, in bytes. The largest honest one is a service with many labels.
const MAX_BODY: usize = 4 << 20;
/// So much of a larger one is taken and thrown away, in bytes.
const MAX_TAKEN: usize = 64 << 20;

/// Sentences of a node that is no manager.
pub(crate) const NOT_IN_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";
const NOT_MANAGER: &str = "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.";
const NOT_YET: &str = "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.";

/// A request.
pub struct Call {
    api: Arc<Api>,
    method: Method,
    /// As asked for; the announced one if the path says nothing.
    version: ApiVersion,
    identity: Identity,
    /// Path and query as sent, version included.
    target: String,
    query: Query,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// The store's handle.
    ///
    /// # Errors
    /// 503 unless this node is a manager.
    fn store(&self) -> Result<StoreHandle> {
        match self.api.control.membership() {
            Membership::Manager(_) => self.api.control.store().ok_or_else(|| ApiError::unavailable(NOT_YET)),
            Membership::Worker(_) | Membership::Pending { .. } => Err(ApiError::unavailable(NOT_MANAGER)),
            Membership::Inactive => Err(ApiError::unavailable(NOT_IN_SWARM)),
        }
    }
    /// The body as this struct.
    ///
    /// # Errors
    /// 400.
    fn read(&self, of: &'static Struct) -> Result<Value> {
        body::read(&self.headers, &self.body, of)
    }
    /// Hands the request to the engine as it came, and back what it says.
    ///
    /// # Errors
    /// 503 if the engine does not answer.
    async fn forward(&self) -> Result<Response> {
        let fields: Vec<(&str, &str)> = ["content-type", "x-registry-auth", "x-registry-config", "user-agent"]
            .into_iter()
            .filter_map(|name| Some((name, self.headers.get(name)?.to_str().ok()?)))
            .collect();
        let reply = self.api.engine.ask(self.method.as_str(), &self.target, &fields, self.body.clone()).await?;
        let mut response = Response::new(Body::from(reply.body));
        *response.status_mut() = reply.status;
        if let Some(kind) = reply.headers.get(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
        Ok(response)
    }
    /// This path at the engine, in the version that the client speaks.
    fn at_engine(&self, path: &str) -> String {
        let (version, _) = split_version(&self.target);
        version.map_or_else(|| path.to_owned(), |v| format!("/v{v}{path}"))
    }
}

/// The router of everything that is ours. Paths are matched by hand: an unknown one, a wrong method and a trailing slash
/// are all the same "page not found".
pub fn router(api: Arc<Api>) -> Router {
    Router::new().fallback(answer).with_state(api)
}

async fn answer(State(api): State<Arc<Api>>, request: Request<Body>) -> Response {
    let identity = api.engine.identity().await;
    let mut response = match call(api, identity.clone(), request).await {
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
        ("api-version", identity.api.to_string()),
        ("docker-experimental", identity.experimental),
        ("ostype", identity.ostype),
        ("server", identity.server),
    ] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

async fn call(api: Arc<Api>, identity: Identity, request: Request<Body>) -> Result<Response> {
    let (parts, request_body) = request.into_parts();
    if parts.method == Method::OPTIONS {
        return Ok(StatusCode::OK.into_response());
    }
    let target = parts.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let (asked, path) = split_version(parts.uri.path());
    if let Some(response) = wrong_version(asked, &identity) {
        return response;
    }
    let path: Vec<String> = path.trim_start_matches('/').split('/').map(decode_segment).collect();
    let body = read_body(request_body).await?;
    let call = Call {
        version: asked.unwrap_or(identity.api),
        query: Query::parse(parts.uri.query().unwrap_or_default()),
        method: parts.method,
        headers: parts.headers,
        api,
        identity,
        target,
        body,
    };
    dispatch(&call, &path.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Refuses versions that are not served; the too old ones in plain text, as their clients read nothing else.
fn wrong_version(asked: Option<ApiVersion>, identity: &Identity) -> Option<Result<Response>> {
    let asked = asked?;
    if asked > identity.api {
        return Some(Err(ApiError::bad(format!(
            "client version {asked} is too new. Maximum supported API version is {}",
            identity.api
        ))));
    }
    if asked < identity.min_api {
        let text = format!(
            "client version {asked} is too old. Minimum supported API version is {}, please upgrade your client to a newer version\n",
            identity.min_api
        );
        let fields = [("content-type", "text/plain; charset=utf-8"), ("x-content-type-options", "nosniff")];
        return Some(Ok((StatusCode::BAD_REQUEST, fields, text).into_response()));
    }
    None
}

/// Reads a body. What is too much is still taken for a while, because a client that cannot send its request to the end
/// does not read why.
async fn read_body(mut body: Body) -> Result<Bytes> {
    let mut read = BytesMut::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad(format!("the body of the request broke off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        seen = seen.saturating_add(data.len());
        if seen <= MAX_BODY {
            read.extend_from_slice(&data);
        } else if seen > MAX_TAKEN {
            break;
        }
    }
    if seen > MAX_BODY {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body of the request is larger than {} MiB", MAX_BODY >> 20),
        ));
    }
    Ok(read.freeze())
}

async fn dispatch(call: &Call, path: &[&str]) -> Result<Response> {
    match (call.method.as_str(), path) {
        ("GET" | "HEAD", ["_ping"]) => system::ping(call),
        ("GET", ["version"]) => system::version(call).await,
        ("GET", ["info"]) => system::info(call).await,

        ("GET", ["swarm"]) => swarm::inspect(call),
        ("POST", ["swarm", "init"]) => swarm::init(call).await,
        ("POST", ["swarm", "join"]) => swarm::join(call).await,
        ("POST", ["swarm", "leave"]) => swarm::leave(call).await,
        ("POST", ["swarm", "update"]) => swarm::update(call).await,
        ("GET", ["swarm", "unlockkey"]) => swarm::unlock_key(call),
        ("POST", ["swarm", "unlock"]) => swarm::unlock(call),

        ("GET", ["nodes"]) => nodes::list(call),
        ("GET", ["nodes", node]) if !node.is_empty() => nodes::inspect(call, node),
        ("POST", ["nodes", node, "update"]) => nodes::update(call, node).await,
        ("DELETE", ["nodes", node]) if !node.is_empty() => nodes::remove(call, node).await,

        ("GET", ["services"]) => services::list(call),
        ("POST", ["services", "create"]) => services::create(call).await,
        ("GET", ["services", service]) if !service.is_empty() => services::inspect(call, service),
        ("POST", ["services", service, "update"]) => services::update(call, service).await,
        ("DELETE", ["services", service]) if !service.is_empty() => services::remove(call, service).await,
        ("GET", ["services", service, "logs"]) => services::logs(call, service),

        ("GET", ["tasks"]) => tasks::list(call),
        ("GET", ["tasks", task]) if !task.is_empty() => tasks::inspect(call, task),
        ("GET", ["tasks", task, "logs"]) => tasks::logs(call, task),

        ("GET", [kind @ ("secrets" | "configs")]) => unsupported::list(call, kind),
        (method, [kind @ ("secrets" | "configs"), rest @ ..]) => unsupported::other(call, kind, method, rest),

        ("GET", ["networks"]) => networks::list(call).await,
        ("POST", ["networks", "create"]) => networks::create(call).await,
        ("POST", ["networks", "prune"]) => prune::networks(call).await,
        ("GET", ["networks", network]) if !network.is_empty() => networks::inspect(call, network).await,
        ("DELETE", ["networks", network]) if !network.is_empty() => networks::remove(call, network).await,
        ("POST", ["networks", network, verb @ ("connect" | "disconnect")]) => networks::attach(call, network, verb).await,

        ("POST", ["containers", "create"]) => containers::create(call).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// A reply in JSON.
fn json(status: StatusCode, value: &impl Serialize) -> Result<Response> {
    let text = serde_json::to_vec(value).map_err(|e| ApiError::failed(format!("the reply cannot be written: {e}")))?;
    Ok((status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response())
}

/// 200 in JSON.
fn ok(value: &impl Serialize) -> Result<Response> {
    json(StatusCode::OK, value)
}

/// 200 without a body.
#[expect(clippy::unnecessary_wraps, reason = "what a handler ends with")]
fn empty() -> Result<Response> {
    Ok(StatusCode::OK.into_response())
}
