//! Volumes: a name with a node is that node's, one without is that of all nodes that have it, as in the stand-alone Swarm.

use super::access_request::{AccessRequest, posted};
use super::engine_node::split_reference;
use super::merge;
use super::nodes::{ANSWER, NodeRequest, WORK};
use super::reply::{collect, merged, passed_on, refusal_of, with_missing};
use crate::api::error::{ApiError, Result};
use crate::api::handlers::{field, update};
use crate::api::query::encode;
use axum::body::Body;
use axum::response::Response;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

/// GET /volumes
pub async fn list(call: &AccessRequest) -> Result<Response> {
    let (nodes, query) = call.filtered()?;
    let answers = call.access.ask_all(nodes, &call.request(Method::GET, call.target_with("/volumes", &query)), ANSWER).await;
    let collected = collect::<Value>(answers)?;
    Ok(merged(&merge::volumes(collected.found), &collected.missing))
}

/// POST /volumes/create: on the node that its name begins with, or on all.
pub async fn create(call: &AccessRequest, body: Body) -> Result<Response> {
    let mut posted: Value = posted(body).await?;
    let mut name = field(&posted, "Name").as_str().unwrap_or_default().to_owned();
    if name.is_empty() {
        // Each engine would draw another one.
        name = std::iter::repeat_with(|| format!("{:016x}", rand::random::<u64>())).take(4).collect();
        update(&mut posted, "Name", |value| *value = json!(name));
    }
    let nodes = match split_reference(&call.nodes, &name) {
        Some((node, name)) => {
            update(&mut posted, "Name", |value| *value = json!(name));
            vec![node.clone()]
        }
        None => call.nodes.clone(),
    };
    let answers =
        call.access.ask_all(nodes, &call.request(Method::POST, call.target("/volumes/create")).json(&posted), WORK).await;
    let mut collected = collect::<Value>(answers)?;
    let mut volume = collected.found.pop().map_or_else(|| json!({}), |(_, volume)| volume);
    volume["Name"] = json!(name);
    let mut response = merged(&volume, &collected.missing);
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// GET /volumes/{name}: of several nodes that have it the first one's.
pub async fn inspect(call: &AccessRequest, reference: &str) -> Result<Response> {
    if let Some(reply) = on_its_node(call, Method::GET, reference).await {
        return reply;
    }
    let answers = call.access.ask_all(call.nodes.clone(), &on_each(call, Method::GET, reference), ANSWER).await;
    let (mut refused, mut missing) = (None, Vec::new());
    for (_, answer) in answers {
        match answer {
            Ok(reply) if reply.status.is_success() => return Ok(passed_on(reply)),
            Ok(reply) => refused = Some(refusal_of(&reply)),
            Err(reason) => missing.push(reason),
        }
    }
    Err(absent(refused, &missing))
}

/// DELETE /volumes/{name}: on every node that has it.
pub async fn remove(call: &AccessRequest, reference: &str) -> Result<Response> {
    if let Some(reply) = on_its_node(call, Method::DELETE, reference).await {
        return reply;
    }
    let answers = call.access.ask_all(call.nodes.clone(), &on_each(call, Method::DELETE, reference), WORK).await;
    let (mut removed, mut absent_from, mut kept, mut missing) = (Vec::new(), None, None, Vec::new());
    for (node, answer) in answers {
        match answer {
            Ok(reply) if reply.status.is_success() => removed.push((node, reply)),
            Ok(reply) if reply.status == StatusCode::NOT_FOUND => absent_from = Some(refusal_of(&reply)),
            Ok(reply) => {
                let error = refusal_of(&reply);
                kept.get_or_insert(ApiError::new(error.status, format!("node {}: {}", node.name, error.message)));
            }
            Err(reason) => missing.push(reason),
        }
    }
    if let Some(ApiError { status, message, .. }) = kept {
        let names: Vec<&str> = removed.iter().map(|(node, _)| node.name.as_str()).collect();
        let gone = if names.is_empty() { String::new() } else { format!(" (removed from {})", names.join(", ")) };
        return Err(ApiError::new(status, message + &gone));
    }
    let (_, reply) = removed.pop().ok_or_else(|| absent(absent_from, &missing))?;
    Ok(with_missing(passed_on(reply), &missing))
}

/// The reply of the node that a reference names; `None` if it names none.
async fn on_its_node(call: &AccessRequest, method: Method, reference: &str) -> Option<Result<Response>> {
    let (node, name) = split_reference(&call.nodes, reference)?;
    let limit = if method == Method::GET { ANSWER } else { WORK };
    Some(call.access.ask(node, on_each(call, method, name), limit).await.map(passed_on))
}

fn on_each(call: &AccessRequest, method: Method, name: &str) -> NodeRequest {
    call.request(method, call.target(&format!("/volumes/{}", encode(name))))
}

/// The 404 says so if a node that may have it was not asked.
fn absent(refused: Option<ApiError>, missing: &[String]) -> ApiError {
    let missing_text = missing.join("; ");
    match refused {
        Some(error) if missing.is_empty() => error,
        Some(error) => ApiError::new(error.status, format!("{} ({missing_text})", error.message)),
        None => ApiError::unavailable(missing_text),
    }
}
