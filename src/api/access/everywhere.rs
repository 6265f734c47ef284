//! Images on all nodes at once: pull, load, tag, remove.

use super::access_request::AccessRequest;
use super::archive;
use super::nodes::{NodeRequest, WORK};
use super::progress::{opening, progress};
use super::reply::{collect, merged, passed_on, refusal_of};
use super::route::encode_image;
use crate::api::error::{ApiError, Result};
use crate::http;
use axum::body::Body;
use axum::response::Response;
use hyper::{Method, StatusCode};
use serde_json::Value;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// A node that takes nothing of an archive for so long is left out.
const STUCK: Duration = Duration::from_secs(30);
/// Time for an engine's first word after it has the whole archive: it may unpack all of it before.
const LOADED: Duration = Duration::from_mins(10);

/// POST /images/create: with a body, it is an import.
pub async fn pull(call: &AccessRequest, body: Body) -> Result<Response> {
    if call.query.get("fromImage").is_empty() {
        return load_to(call, "/images/create", body).await;
    }
    let request = call.request(Method::POST, call.target("/images/create"));
    let openings = call.nodes.iter().map(|node| {
        let (access, asked, request) = (call.access.clone(), node.clone(), request.clone());
        opening(node.clone(), WORK, async move { access.open(&asked, request).await })
    });
    progress(openings).await
}

/// POST /images/load
pub async fn load(call: &AccessRequest, body: Body) -> Result<Response> {
    load_to(call, "/images/load", body).await
}

async fn load_to(call: &AccessRequest, path: &str, body: Body) -> Result<Response> {
    let (target, headers) = (call.target(path), call.request(Method::POST, String::new()).headers);
    let (mut queues, mut sending) = (Vec::new(), Vec::new());
    for node in call.nodes.clone() {
        let (queue, parts) = archive::queue();
        let (access, target, headers, asked) = (call.access.clone(), target.clone(), headers.clone(), node.clone());
        queues.push(queue);
        let sent = tokio::spawn(async move {
            let connection = access.connect(&asked).await?;
            let request = NodeRequest::http_with(Method::POST, &target, headers, Body::from_stream(parts));
            let sent = async { http::exchange(connection, request?).await };
            sent.await.map_err(|error| ApiError::unavailable(format!("node {}: {error:#}", asked.name)))
        });
        sending.push((node, AbortOnDropHandle::new(sent)));
    }
    let stuck = archive::pass_on(body, queues, STUCK).await?;
    let openings = sending.into_iter().zip(stuck).map(|((node, sent), is_stuck)| {
        let message = format!("node {} took nothing of the archive for {} s", node.name, STUCK.as_secs());
        opening(node, LOADED, async move {
            if is_stuck {
                return Err(ApiError::unavailable(message));
            }
            sent.await.unwrap_or_else(|error| Err(ApiError::failed(error.to_string())))
        })
    });
    progress(openings).await
}

/// POST /images/{name}/tag: on every node that has the image.
pub async fn tag(call: &AccessRequest, name: &str) -> Result<Response> {
    let request = call.request(Method::POST, call.target(&format!("/images/{}/tag", encode_image(name))));
    let mut done = None;
    let mut refused = None;
    for (node, answer) in call.access.ask_all(call.nodes.clone(), &request, WORK).await {
        match answer {
            Ok(reply) if reply.status.is_success() => done = Some(reply),
            Ok(reply) if reply.status == StatusCode::NOT_FOUND => drop(refused.get_or_insert_with(|| refusal_of(&reply))),
            Ok(reply) => {
                let error = refusal_of(&reply);
                return Err(ApiError::new(error.status, format!("node {}: {}", node.name, error.message)));
            }
            Err(reason) => drop(refused.get_or_insert(ApiError::unavailable(reason))),
        }
    }
    match (done, refused) {
        (Some(reply), _) => Ok(passed_on(reply)),
        (None, Some(error)) => Err(error),
        (None, None) => Err(ApiError::unavailable("no node answers")),
    }
}

/// DELETE /images/{name}: on every node that has the image.
pub async fn remove(call: &AccessRequest, name: &str) -> Result<Response> {
    let request = call.request(Method::DELETE, call.target(&format!("/images/{}", encode_image(name))));
    let answers = call.access.ask_all(call.nodes.clone(), &request, WORK).await;
    let in_use = answers.iter().find_map(|(node, answer)| {
        let reply = answer.as_ref().ok().filter(|reply| !reply.status.is_success() && reply.status != StatusCode::NOT_FOUND)?;
        let error = refusal_of(reply);
        Some(ApiError::new(error.status, format!("node {}: {}", node.name, error.message)))
    });
    if let Some(error) = in_use {
        return Err(error);
    }
    let collected = collect::<Vec<Value>>(answers)?;
    let mut removed: Vec<Value> = Vec::new();
    for part in collected.found.into_iter().flat_map(|(_, list)| list) {
        if !removed.contains(&part) {
            removed.push(part);
        }
    }
    let missing: Vec<String> = collected.missing.into_iter().filter(|reason| reason.contains("cannot be asked")).collect();
    Ok(merged(&Value::Array(removed), &missing))
}
