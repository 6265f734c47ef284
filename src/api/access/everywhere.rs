//! Images on all nodes at once: pull, load, tag, remove. Each line of progress names its node.

use super::access_request::AccessRequest;
use super::engine_node::EngineNode;
use super::nodes::{NodeRequest, WORK};
use super::objects::decoded;
use super::reply::{collect, merged, passed_on, refusal_of};
use crate::api::error::{ApiError, Result};
use crate::http::{self, ReplyStream};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;

/// Lines of progress that wait for the client, and parts of an archive that wait for a node.
const QUEUE: usize = 16;
/// A node that takes nothing of an archive for so long is left out.
const STUCK: Duration = Duration::from_secs(30);

/// What one node has begun to answer.
type Begun = (EngineNode, Result<ReplyStream>);

/// POST /images/create: with a body, it is an import.
pub async fn pull(call: &AccessRequest, body: Body) -> Result<Response> {
    if call.query.get("fromImage").is_empty() {
        return load_to(call, "/images/create", body).await;
    }
    let request = call.request(Method::POST, call.target("/images/create"));
    let begun = call.nodes.iter().map(async |node| (node.clone(), call.access.open(node, request.clone()).await));
    progress(join_all(begun).await).await
}

/// POST /images/load
pub async fn load(call: &AccessRequest, body: Body) -> Result<Response> {
    load_to(call, "/images/load", body).await
}

async fn load_to(call: &AccessRequest, path: &str, mut body: Body) -> Result<Response> {
    let (target, headers) = (call.target(path), call.request(Method::POST, String::new()).headers);
    let (mut parts, mut begun) = (Vec::new(), Vec::new());
    for node in call.nodes.clone() {
        let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let stream = futures_util::stream::unfold(receiver, async |mut receiver| {
            let part = receiver.recv().await?;
            Some((Ok::<_, Infallible>(part), receiver))
        });
        let (access, target, headers) = (call.access.clone(), target.clone(), headers.clone());
        parts.push(Some(sender));
        begun.push(tokio::spawn(async move {
            let opened = async {
                let connection = access.connect(&node).await?;
                let request = NodeRequest::http_with(Method::POST, &target, headers, Body::from_stream(stream));
                let sent = async { http::exchange(connection, request?).await };
                sent.await.map_err(|error| ApiError::unavailable(format!("node {}: {error:#}", node.name)))
            };
            let opened = opened.await;
            (node, opened)
        }));
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::bad(format!("the body of the request could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let sent = parts.iter_mut().map(async |part| {
            if let Some(sender) = part
                && !matches!(tokio::time::timeout(STUCK, sender.send(data.clone())).await, Ok(Ok(())))
            {
                *part = None;
            }
        });
        join_all(sent).await;
        if parts.iter().all(Option::is_none) {
            break;
        }
    }
    drop(parts);
    progress(join_all(begun).await.into_iter().filter_map(std::result::Result::ok).collect()).await
}

/// The progress of all nodes as one reply. Errors come last, so that the client does not go away before the others are done.
async fn progress(begun: Vec<Begun>) -> Result<Response> {
    let (mut running, mut notes, mut refusal) = (Vec::new(), Vec::new(), None);
    for (node, opened) in begun {
        match opened {
            Ok(reply) if reply.status.is_success() => running.push((node, reply)),
            Ok(reply) => {
                let error = match reply.whole().await {
                    Ok(reply) => refusal_of(&reply),
                    Err(error) => ApiError::unavailable(format!("{error:#}")),
                };
                notes.push(Err(format!("node {}: {}", node.name, error.message)));
                refusal = Some(error);
            }
            // A node that is down is named, and is no failure: it is not there.
            Err(error) if node.unreachable().is_some() => {
                notes.push(Ok(error.message.clone()));
                refusal.get_or_insert(error);
            }
            Err(error) => {
                notes.push(Err(error.message.clone()));
                refusal.get_or_insert(error);
            }
        }
    }
    if running.is_empty() {
        return Err(refusal.unwrap_or_else(|| ApiError::unavailable("no node answers")));
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        let mut failed: Vec<String> = Vec::new();
        for note in notes {
            match note {
                Ok(text) => drop(sender.send(line(&json!({ "status": text }))).await),
                Err(text) => failed.push(text),
            }
        }
        let read = running.into_iter().map(async |(node, reply)| follow(&node, reply, &sender).await);
        failed.extend(join_all(read).await.into_iter().flatten());
        if !failed.is_empty() {
            let text = failed.join("; ");
            let _ = sender.send(line(&json!({ "errorDetail": { "message": text }, "error": text }))).await;
        }
    });
    let lines = futures_util::stream::unfold(receiver, async |mut receiver| {
        let line: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

/// Passes a node's progress on; returns the error that it ended with.
async fn follow(node: &EngineNode, reply: ReplyStream, sender: &mpsc::Sender<Bytes>) -> Option<String> {
    let failed = |text: &str| Some(format!("node {}: {text}", node.name));
    let mut lines = match reply.lines().await {
        Ok(lines) => lines,
        Err(error) => return failed(&format!("{error:#}")),
    };
    loop {
        match lines.next().await {
            Ok(Some(text)) => {
                let Ok(mut part) = decoded::<Value>(text.as_bytes()) else { continue };
                if let Some(error) = part["error"].as_str() {
                    return failed(error);
                }
                if sender.send(line(&named(&mut part, node))).await.is_err() {
                    return None;
                }
            }
            Ok(None) => return None,
            Err(error) => return failed(&format!("{error:#}")),
        }
    }
}

fn named(part: &mut Value, node: &EngineNode) -> Value {
    if let Some(text) = part["stream"].as_str() {
        part["stream"] = json!(format!("{}: {text}", node.name));
    } else {
        let id = part["id"].as_str().unwrap_or_default();
        part["id"] = json!(if id.is_empty() { node.name.clone() } else { format!("{} {id}", node.name) });
    }
    part.take()
}

fn line(part: &Value) -> Bytes {
    Bytes::from(format!("{part}\n"))
}

/// POST /images/{name}/tag: on every node that has the image.
pub async fn tag(call: &AccessRequest, name: &str) -> Result<Response> {
    let request = call.request(Method::POST, call.target(&format!("/images/{name}/tag")));
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
    let request = call.request(Method::DELETE, call.target(&format!("/images/{name}")));
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
