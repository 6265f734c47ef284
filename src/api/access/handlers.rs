//! Requests that several nodes answer, and those whose node is chosen.

use super::access_request::{AccessRequest, NODE, posted};
use super::context::AccessContext;
use super::create::{self, plain_name};
use super::engine_node::{EngineNode, split_reference};
use super::events;
use super::everywhere;
use super::info::{self, NodeRow};
use super::merge;
use super::nodes::{ANSWER, NodeRequest, WORK};
use super::objects::content;
use super::planner::CandidateNode;
use super::reply::{collect, merged, passed_on, refusal_of};
use super::route::replaced;
use super::volumes;
use crate::api::error::{ApiError, Result};
use crate::api::handlers::{field, read_body, update};
use crate::api::query::{RequestQuery, decode_segment, encode, split_version};
use crate::model::docker::{API_VERSION_HEADER, ApiVersion};
use crate::sync::lock;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use hyper::header::HeaderValue;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::sync::Arc;

/// What a container of a lost node is shown as.
const HOST_DOWN: &str = "Host Down";

/// The router of everything that [`super::route`] leaves to handlers.
pub fn router(access: Arc<AccessContext>) -> Router {
    Router::new().fallback(respond).with_state(access)
}

async fn respond(State(access): State<Arc<AccessContext>>, request: Request<Body>) -> Response {
    let identity = access.api.engine.identity().await;
    let api = newest_version(&access, identity.api);
    let mut response = handle(access, api, request).await.unwrap_or_else(ApiError::into_response);
    let headers = response.headers_mut();
    for (name, value) in
        [(API_VERSION_HEADER, api.to_string()), ("ostype", identity.ostype.clone()), ("server", identity.server.clone())]
    {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    response
}

/// What every node that was read serves: a client speaks one version to all of them.
fn newest_version(access: &AccessContext, own: ApiVersion) -> ApiVersion {
    let seen = lock(&access.seen);
    seen.values().filter_map(|seen| seen.facts.as_ref()?.api).fold(own, ApiVersion::min)
}

async fn handle(access: Arc<AccessContext>, api: ApiVersion, request: Request<Body>) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let (_, path) = split_version(parts.uri.path());
    let version = parts.uri.path()[..parts.uri.path().len() - path.len()].to_owned();
    let segments: Vec<String> = path.trim_start_matches('/').split('/').map(decode_segment).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if segments == ["_ping"] {
        return Ok(ping(&access, &parts.method));
    }
    let nodes = access.nodes()?;
    let query_text = parts.uri.query().unwrap_or_default().to_owned();
    let query = RequestQuery::parse(&query_text);
    let call = AccessRequest { access, version, query_text, query, headers: parts.headers, nodes };
    match (parts.method.as_str(), &segments[..]) {
        ("GET", ["info"]) => show_info(&call).await,
        ("GET", ["version"]) => show_version(&call, api).await,
        ("GET", ["events"]) => events::stream(call.access, &call.version, &call.query_text).await,
        ("GET", ["containers", "json"]) => containers(&call).await,
        ("POST", ["containers", "create"]) => create::create(&call, &read_body(body).await?).await,
        ("GET", ["containers", names @ .., "json"]) => inspect(&call, &names.join("/")).await,
        ("POST", ["containers", names @ .., "rename"]) => rename(&call, &names.join("/")).await,
        ("GET", ["images", "json"]) => images(&call).await,
        ("POST", ["images", "create"]) => everywhere::pull(&call, body).await,
        ("POST", ["images", "load"]) => everywhere::load(&call, body).await,
        ("POST", ["images", names @ .., "tag"]) => everywhere::tag(&call, &names.join("/")).await,
        ("DELETE", ["images", names @ ..]) => everywhere::remove(&call, &names.join("/")).await,
        ("GET", ["volumes"]) => volumes::list(&call).await,
        ("POST", ["volumes", "create"]) => volumes::create(&call, body).await,
        ("GET", ["volumes", names @ ..]) => volumes::inspect(&call, &names.join("/")).await,
        ("DELETE", ["volumes", names @ ..]) => volumes::remove(&call, &names.join("/")).await,
        ("GET", ["networks"]) => networks(&call).await,
        ("POST", ["networks", "create"]) => create_network(&call, body).await,
        ("POST", ["networks", names @ .., action]) if *action != "prune" => connect(&call, &names.join("/"), action, body).await,
        ("POST", [kind, "prune"]) => prune(&call, kind).await,
        _ => Err(ApiError::page_not_found()),
    }
}

/// Answered on every node, because every command of the CLI begins with it.
fn ping(access: &AccessContext, method: &Method) -> Response {
    let fields = [
        ("content-type", "text/plain; charset=utf-8"),
        ("cache-control", "no-cache, no-store, must-revalidate"),
        ("pragma", "no-cache"),
        ("swarm", access.api.control.membership().ping_header()),
    ];
    (fields, if method == Method::HEAD { Body::empty() } else { Body::from("OK") }).into_response()
}

/// This node, as the reply of what all have in common.
async fn own(call: &AccessRequest, target: String) -> Result<Value> {
    let reply = call.access.ask_here(call.request(Method::GET, target), ANSWER).await?;
    if reply.status.is_success() { content(&reply).map_err(ApiError::failed) } else { Err(refusal_of(&reply)) }
}

async fn show_version(call: &AccessRequest, api: ApiVersion) -> Result<Response> {
    let mut body = own(call, call.target("/version")).await?;
    body["ApiVersion"] = json!(api.to_string());
    Ok(merged(&body, &[]))
}

async fn show_info(call: &AccessRequest) -> Result<Response> {
    let store = call.access.store()?;
    let (info, list) = (NodeRequest::get("/info"), NodeRequest::get("/images/json"));
    let infos = call.access.ask_all(call.nodes.clone(), &info, ANSWER);
    let lists = call.access.ask_all(call.nodes.clone(), &list, ANSWER);
    let (base, infos, lists, candidates) =
        tokio::join!(own(call, call.target("/info")), infos, lists, create::candidates(&call.access, &store, &call.nodes, false));
    let candidates = candidates.unwrap_or_default();
    let images = collect(lists).map(|collected| merge::images(collected.found).len()).unwrap_or_default();
    let rows: Vec<NodeRow> = infos
        .into_iter()
        .map(|(node, answer)| {
            let found = candidates.iter().find(|candidate| candidate.node.id == node.id);
            let info = answer.and_then(|reply| content(&reply).map_err(|error| format!("node {}: {error}", node.name)));
            let seen_at = lock(&call.access.seen).get(&node.id).and_then(|seen| seen.at);
            NodeRow { reserved: found.map(CandidateNode::reserved).unwrap_or_default(), seen_at, info, node }
        })
        .collect();
    Ok(merged(&info::info(base?, &rows, images, call.access.rules), &[]))
}

async fn containers(call: &AccessRequest) -> Result<Response> {
    let (nodes, query) = call.filtered()?;
    let every = call.query.loose_bool("all");
    let answers =
        call.access.ask_all(nodes, &call.request(Method::GET, call.target_with("/containers/json", &query)), ANSWER).await;
    let silent: Vec<EngineNode> = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(node, _)| node.clone()).collect();
    let mut collected = collect::<Vec<Value>>(answers)?;
    // What a lost node had is still shown, as long as nothing but the node is asked for.
    if call.query.any_filters()?.to_json().as_object().is_none_or(|filters| filters.keys().all(|name| name == NODE)) {
        for node in silent {
            let seen = lock(&call.access.seen).get(&node.id).map(|seen| seen.containers.clone()).unwrap_or_default();
            let shown = seen.into_iter().filter(|container| every || container["State"] == "running");
            let down = shown.map(|mut container| {
                container["Status"] = json!(HOST_DOWN);
                container
            });
            collected.found.push((node, down.collect()));
        }
    }
    for (node, list) in &collected.found {
        for id in list.iter().filter_map(|container| container["Id"].as_str()) {
            call.access.remember(id, &node.id);
        }
    }
    let limit = call.query.get("limit").parse().unwrap_or(0);
    Ok(merged(&Value::Array(merge::containers(collected.found, limit)), &collected.missing))
}

async fn inspect(call: &AccessRequest, reference: &str) -> Result<Response> {
    let found = call.access.container(reference).await?;
    let target = call.target(&format!("/containers/{}/json", encode(&found.name)));
    let reply = call.access.ask(&found.node, call.request(Method::GET, target), ANSWER).await?;
    if !reply.status.is_success() {
        return Ok(passed_on(reply));
    }
    let mut body: Value = content(&reply).map_err(ApiError::failed)?;
    merge::inspected(&mut body, &found.node);
    Ok(merged(&body, &[]))
}

async fn rename(call: &AccessRequest, reference: &str) -> Result<Response> {
    let found = call.access.container(reference).await?;
    let wanted = call.query.get("name").trim_start_matches('/').to_owned();
    let name = match split_reference(&call.nodes, &wanted) {
        Some((node, _)) if node.id != found.node.id => {
            let message = format!("container {reference} is on node {} and stays there: {wanted} names another", found.node.name);
            return Err(ApiError::bad(message));
        }
        Some((_, name)) => name.to_owned(),
        None => wanted,
    };
    let lists = call.access.ask_all(call.nodes.clone(), &NodeRequest::get("/containers/json?all=1"), ANSWER).await;
    let lists = collect::<Vec<Value>>(lists)?.found;
    if let Some(taken) = lists.iter().flat_map(|(_, list)| list).find(|container| plain_name(container) == name) {
        let message = format!("Conflict. The container name \"/{name}\" is already in use by container {}.", taken["Id"]);
        return Err(ApiError::new(StatusCode::CONFLICT, message));
    }
    let query = replaced(&call.query_text, "name", Some(&name));
    let target = call.target_with(&format!("/containers/{}/rename", encode(&found.name)), &query);
    call.access.ask(&found.node, call.request(Method::POST, target), WORK).await.map(passed_on)
}

async fn images(call: &AccessRequest) -> Result<Response> {
    let (nodes, query) = call.filtered()?;
    let answers = call.access.ask_all(nodes, &call.request(Method::GET, call.target_with("/images/json", &query)), ANSWER).await;
    let collected = collect::<Vec<Value>>(answers)?;
    Ok(merged(&Value::Array(merge::images(collected.found)), &collected.missing))
}

async fn networks(call: &AccessRequest) -> Result<Response> {
    let (mut nodes, query) = call.filtered()?;
    // A manager knows more of the swarm's networks than a worker does: it comes first.
    let me = call.access.me()?;
    nodes.sort_by_key(|node| node.id != me);
    let answers = call.access.ask_all(nodes, &call.request(Method::GET, call.target_with("/networks", &query)), ANSWER).await;
    let collected = collect::<Vec<Value>>(answers)?;
    Ok(merged(&Value::Array(merge::networks(collected.found)), &collected.missing))
}

/// On the node that its name begins with; an overlay network belongs to the swarm. So does one without a driver, as in the stand-alone
/// Swarm: that is what compose makes for the containers of a project.
async fn create_network(call: &AccessRequest, body: Body) -> Result<Response> {
    let mut posted: Value = posted(body).await?;
    let name = field(&posted, "Name").as_str().unwrap_or_default().to_owned();
    let driver = field(&posted, "Driver").as_str().unwrap_or_default().to_owned();
    let node = match split_reference(&call.nodes, &name) {
        Some((node, name)) => {
            update(&mut posted, "Name", |value| *value = json!(name));
            Some(node)
        }
        None if driver.is_empty() => {
            update(&mut posted, "Driver", |value| *value = json!("overlay"));
            update(&mut posted, "Attachable", |value| *value = json!(true));
            None
        }
        None if driver == "overlay" => None,
        None => {
            return Err(ApiError::bad(format!(
                "a network with driver {driver:?} belongs to one node: name it NODE/{name}, or make one of the swarm with --driver overlay \
                 --attachable"
            )));
        }
    };
    let request = call.request(Method::POST, call.target("/networks/create")).json(&posted);
    match node {
        Some(node) => call.access.ask(node, request, WORK).await.map(passed_on),
        None => call.access.ask_here(request, WORK).await.map(passed_on),
    }
}

/// `connect` and `disconnect`: at the node of the container.
async fn connect(call: &AccessRequest, network: &str, action: &str, body: Body) -> Result<Response> {
    let mut posted: Value = posted(body).await?;
    let container = field(&posted, "Container").as_str().unwrap_or_default().to_owned();
    let found = call.access.container(&container).await?;
    let network = split_reference(&call.nodes, network).map_or(network, |(_, name)| name);
    update(&mut posted, "Container", |value| *value = json!(found.name));
    let target = call.target(&format!("/networks/{}/{action}", encode(network)));
    call.access.ask(&found.node, call.request(Method::POST, target).json(&posted), WORK).await.map(passed_on)
}

async fn prune(call: &AccessRequest, kind: &str) -> Result<Response> {
    let (nodes, query) = call.filtered()?;
    let target = call.target_with(&format!("/{kind}/prune"), &query);
    let collected = collect::<Value>(call.access.ask_all(nodes, &call.request(Method::POST, target), WORK).await)?;
    let replies = collected.found.into_iter().map(|(_, reply)| reply).collect();
    Ok(merged(&merge::pruned(replies), &collected.missing))
}
