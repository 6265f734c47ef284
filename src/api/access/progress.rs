//! The progress of several nodes as one reply. Each line names its node, and no node waits for another one.

use super::engine_node::EngineNode;
use super::reply::refusal_of;
use crate::api::error::{ApiError, Result};
use crate::http::ReplyStream;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _, unfold};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::mpsc;

/// Lines that wait for the client.
const QUEUE: usize = 16;
/// A node that has begun and says nothing for so long is left out.
const SILENT: Duration = Duration::from_mins(10);

/// A node's reply that is to begin, or the reason why it does not.
pub type OpeningReply = BoxFuture<'static, (EngineNode, Result<ReplyStream>)>;

/// The beginning of a node's reply, within a time; its refusal is an error.
pub fn opening(
    node: EngineNode,
    limit: Duration,
    opened: impl Future<Output = Result<ReplyStream>> + Send + 'static,
) -> OpeningReply {
    async move {
        let begun = async {
            let reply = opened.await?;
            if reply.status.is_success() {
                return Ok(reply);
            }
            let reply = reply.whole().await.map_err(|error| ApiError::unavailable(format!("node {}: {error:#}", node.name)))?;
            let error = refusal_of(&reply);
            Err(ApiError::new(error.status, format!("node {}: {}", node.name, error.message)))
        };
        let begun = tokio::time::timeout(limit, begun).await.unwrap_or_else(|_| {
            let message = format!("node {} has not begun to answer within {} s", node.name, limit.as_secs());
            Err(ApiError::unavailable(message))
        });
        (node, begun)
    }
    .boxed()
}

/// Nodes that are no part of the reply.
#[derive(Default)]
struct LeftOut {
    /// They are down: that is no failure.
    down: Vec<String>,
    failed: Vec<String>,
    /// The reply if no node begins: what an engine says, before that a node cannot be asked.
    refusal: Option<ApiError>,
}

impl LeftOut {
    fn add(&mut self, node: &EngineNode, error: ApiError) {
        let list = if node.unreachable().is_some() { &mut self.down } else { &mut self.failed };
        list.push(error.message.clone());
        if self.refusal.as_ref().is_none_or(|known| known.status == StatusCode::SERVICE_UNAVAILABLE) {
            self.refusal = Some(error);
        }
    }
}

/// The progress of all nodes as one reply, from when the first one begins. Errors come last, so that the client does not go away
/// before the others are done.
///
/// # Errors
/// No node begins.
pub async fn progress(openings: impl IntoIterator<Item = OpeningReply>) -> Result<Response> {
    let mut openings: FuturesUnordered<OpeningReply> = openings.into_iter().collect();
    let mut left_out = LeftOut::default();
    let first = loop {
        match openings.next().await {
            Some((node, Ok(reply))) => break (node, reply),
            Some((node, Err(error))) => left_out.add(&node, error),
            None => return Err(left_out.refusal.unwrap_or_else(|| ApiError::unavailable("no node answers"))),
        }
    };
    let (sender, receiver) = mpsc::channel::<Bytes>(QUEUE);
    tokio::spawn(async move {
        tokio::select! {
            () = follow_all(first, openings, left_out, &sender) => {}
            // The nodes' connections end, and they stop with them.
            () = sender.closed() => {}
        }
    });
    let lines = unfold(receiver, async |mut receiver| {
        let line: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

async fn follow_all(
    first: (EngineNode, ReplyStream),
    mut openings: FuturesUnordered<OpeningReply>,
    mut left_out: LeftOut,
    sender: &mpsc::Sender<Bytes>,
) {
    let mut followed = FuturesUnordered::new();
    followed.push(follow(first.0, first.1, sender));
    loop {
        for text in left_out.down.drain(..) {
            let _ = sender.send(line(&json!({ "status": text }))).await;
        }
        tokio::select! {
            Some((node, opened)) = openings.next() => match opened {
                Ok(reply) => followed.push(follow(node, reply, sender)),
                Err(error) => left_out.add(&node, error),
            },
            Some(ended) = followed.next() => left_out.failed.extend(ended),
            else => break,
        }
    }
    if !left_out.failed.is_empty() {
        let text = left_out.failed.join("; ");
        let _ = sender.send(line(&json!({ "errorDetail": { "message": text }, "error": text }))).await;
    }
}

/// Passes a node's progress on; returns the error that it ended with.
async fn follow(node: EngineNode, reply: ReplyStream, sender: &mpsc::Sender<Bytes>) -> Option<String> {
    let failed = |text: &str| Some(format!("node {}: {text}", node.name));
    let mut lines = match reply.lines().await {
        Ok(lines) => lines,
        Err(error) => return failed(&format!("{error:#}")),
    };
    loop {
        let Ok(next) = tokio::time::timeout(SILENT, lines.next()).await else {
            return failed(&format!("it has said nothing for {} s", SILENT.as_secs()));
        };
        match next {
            Ok(Some(text)) => {
                let Ok(mut part @ Value::Object(_)) = serde_json::from_str::<Value>(&text) else { continue };
                if let Some(error) = part["error"].as_str() {
                    return failed(error);
                }
                if sender.send(line(&named(&mut part, &node))).await.is_err() {
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

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;
    use crate::api::access::nodes::NodeRequest;
    use crate::http::exchange;
    use http_body_util::BodyExt as _;
    use hyper::{HeaderMap, Method};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A node's engine that answers a pull with this.
    fn answering(name: &str, reply: &'static str) -> OpeningReply {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && far.read_buf(&mut request).await.unwrap() > 0 {}
            far.write_all(reply.as_bytes()).await.unwrap();
        });
        let request =
            NodeRequest::http_with(Method::POST, "/images/create?fromImage=x", HeaderMap::new(), Body::empty()).unwrap();
        let opened = async { exchange(near, request).await.map_err(|error| ApiError::failed(format!("{error:#}"))) };
        opening(engine_node(name), Duration::from_secs(20), opened)
    }

    const PULLED: &str =
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n[\"no progress\"]\n{\"id\":\"layer\",\"status\":\"Pulling\"}\n";
    const REFUSED: &str = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n{\"message\":\"no image\"}";

    fn hung(limit: Duration) -> OpeningReply {
        opening(engine_node("n1"), limit, std::future::pending())
    }

    #[tokio::test]
    async fn a_node_that_does_not_begin_delays_no_other_and_is_named_in_the_end() {
        let mut reply = progress([hung(Duration::from_hours(1)), answering("n2", PULLED)]).await.unwrap().into_body();
        let first = reply.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "{\"id\":\"n2 layer\",\"status\":\"Pulling\"}\n");
        let reply = progress([hung(Duration::from_millis(20)), answering("n2", PULLED)]).await.unwrap();
        let whole = reply.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&whole);
        assert!(text.contains("n2 layer") && text.contains("\"error\":\"node n1 has not begun to answer"), "{text}");
    }

    #[tokio::test]
    async fn a_refusal_is_the_reply_if_no_node_begins() {
        let refused = progress([hung(Duration::from_millis(20)), answering("n2", REFUSED)]).await.unwrap_err();
        assert_eq!((refused.status, refused.message.as_str()), (StatusCode::NOT_FOUND, "node n2: no image"));
        let mixed = progress([answering("n1", REFUSED), answering("n2", PULLED)]).await.unwrap();
        let whole = mixed.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&whole).contains("\"error\":\"node n1: no image\""));
    }
}
