//! Events of all engines in one stream, each with its node. Nodes that come, and those that are back, are followed too.

use super::context::AccessContext;
use super::engine_node::{EngineNode, all};
use super::merge;
use super::nodes::NodeRequest;
use super::objects::decoded;
use super::route::replaced;
use crate::api::error::{ApiError, Result};
use crate::api::query::RequestQuery;
use crate::model::NodeId;
use crate::sync::lock;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often nodes are looked for that are not followed.
const LOOK: Duration = Duration::from_secs(1);
/// Events that wait for the client.
const QUEUE: usize = 256;
/// Time for what is over: a range of events that ends now or before.
const PAST: Duration = Duration::from_secs(6);
/// Most events of a time that is over, and most bytes of them.
const MAX_PAST: usize = 100_000;
const MAX_PAST_BYTES: usize = 16 << 20;

/// GET /events
pub async fn stream(access: Arc<AccessContext>, version: &str, query: &str) -> Result<Response> {
    let parsed = RequestQuery::parse(query);
    let filters = parsed.any_filters()?;
    let wanted: BTreeSet<String> = filters.values("node").map(str::to_owned).collect();
    let mut others = filters.to_json();
    if let Some(map) = others.as_object_mut() {
        map.remove("node");
    }
    let me = access.me()?;
    let now = access.api.clock.now().0 / 1_000_000_000;
    let is_over = parsed.get("until").split('.').next().unwrap_or_default().parse::<i64>().is_ok_and(|until| until <= now);
    let query = replaced(query, "filters", Some(&others.to_string()));
    let followed = Arc::new(FollowedEvents { access, me, target: format!("{version}/events?"), query, wanted });
    let headers = [(CONTENT_TYPE, "application/json")];
    if is_over {
        let lines = followed.past().await?.into_iter().map(Ok::<_, Infallible>);
        return Ok((headers, Body::from_stream(futures_util::stream::iter(lines))).into_response());
    }
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(followed.live(sender));
    let lines = futures_util::stream::unfold(receiver, async |mut receiver| {
        let line: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(line), receiver))
    });
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// Events of a time that is over, held until all nodes have given theirs.
#[derive(Default)]
struct PastEvents {
    /// Lines with their times.
    lines: Vec<(i64, Bytes)>,
    bytes: usize,
}

impl PastEvents {
    fn add(&mut self, event: &Value) -> Result<()> {
        let line = line(event);
        self.bytes += line.len();
        if self.lines.len() >= MAX_PAST || self.bytes > MAX_PAST_BYTES {
            let message = format!(
                "these are more than {MAX_PAST} events or {} MiB of all nodes: ask for a shorter time (--since, --until), or with --filter",
                MAX_PAST_BYTES >> 20
            );
            return Err(ApiError::bad(message));
        }
        self.lines.push((event["timeNano"].as_i64().unwrap_or_default(), line));
        Ok(())
    }

    fn in_order(mut self) -> Vec<Bytes> {
        self.lines.sort_by_key(|(at, _)| *at);
        self.lines.into_iter().map(|(_, line)| line).collect()
    }
}

struct FollowedEvents {
    access: Arc<AccessContext>,
    me: NodeId,
    target: String,
    query: String,
    /// Nodes by name or id; empty: all.
    wanted: BTreeSet<String>,
}

impl FollowedEvents {
    fn nodes(&self) -> Vec<EngineNode> {
        let Ok(store) = self.access.store() else { return Vec::new() };
        let mut nodes = all(&store);
        nodes.retain(|node| node.unreachable().is_none());
        nodes.retain(|node| self.wanted.is_empty() || self.wanted.iter().any(|wanted| node.is_named(wanted)));
        nodes
    }

    /// All of a time that is over, in order.
    ///
    /// # Errors
    /// They are too many.
    async fn past(self: Arc<Self>) -> Result<Vec<Bytes>> {
        let (each, mut all) = mpsc::channel(QUEUE);
        for node in self.nodes() {
            let (this, each) = (self.clone(), each.clone());
            tokio::spawn(async move { tokio::time::timeout(PAST, this.read(&node, &this.query, &each)).await });
        }
        drop(each);
        let mut past = PastEvents::default();
        while let Some(event) = all.recv().await {
            past.add(&event)?;
        }
        Ok(past.in_order())
    }

    /// As they come, until the client goes away or a time that it has named is reached on every node.
    async fn live(self: Arc<Self>, sender: mpsc::Sender<Bytes>) {
        let ends = self.query.split('&').any(|pair| pair.starts_with("until=") && pair.len() > "until=".len());
        let (each, mut events) = mpsc::channel::<Value>(QUEUE);
        let running: Arc<Mutex<BTreeSet<NodeId>>> = Arc::default();
        // When each node was last followed: it is followed from there on when it is back.
        let mut last: BTreeMap<NodeId, i64> = BTreeMap::new();
        let (mut is_first, mut look) = (true, tokio::time::interval(LOOK));
        loop {
            tokio::select! {
                () = sender.closed() => return,
                Some(event) = events.recv() => {
                    if sender.send(line(&event)).await.is_err() {
                        return;
                    }
                    continue;
                }
                _ = look.tick() => {}
            }
            let now = self.now();
            for node in self.nodes() {
                if !lock(&running).insert(node.id.clone()) {
                    last.insert(node.id, now);
                    continue;
                }
                let query = match last.insert(node.id.clone(), now) {
                    None if is_first => self.query.clone(),
                    since => replaced(&self.query, "since", Some(&since.unwrap_or(now).to_string())),
                };
                let (this, running, each, gone) = (self.clone(), running.clone(), each.clone(), sender.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = this.read(&node, &query, &each) => {}
                        () = gone.closed() => {}
                    }
                    lock(&running).remove(&node.id);
                });
            }
            is_first = false;
            if ends && lock(&running).is_empty() && events.is_empty() {
                return;
            }
        }
    }

    /// In seconds.
    fn now(&self) -> i64 {
        self.access.api.clock.now().0 / 1_000_000_000
    }

    /// Reads a node's events until they end, or none takes them any more.
    async fn read(&self, node: &EngineNode, query: &str, sender: &mpsc::Sender<Value>) {
        let Ok(reply) = self.access.open(node, NodeRequest::get(format!("{}{query}", self.target))).await else { return };
        let Ok(mut lines) = reply.lines().await else { return };
        while let Ok(Some(text)) = lines.next().await {
            let Ok(event) = decoded::<Value>(text.as_bytes()) else { continue };
            // Every manager has the swarm's events: once is enough.
            if event["scope"] == "swarm" && node.id != self.me {
                continue;
            }
            if sender.send(merge::event(event, node)).await.is_err() {
                return;
            }
        }
    }
}

fn line(event: &Value) -> Bytes {
    Bytes::from(format!("{event}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn past_events_are_in_order_and_bounded() {
        let mut past = PastEvents::default();
        for at in [3, 1, 2] {
            past.add(&json!({ "timeNano": at })).unwrap();
        }
        assert_eq!(past.in_order(), ["{\"timeNano\":1}\n", "{\"timeNano\":2}\n", "{\"timeNano\":3}\n"]);
        let added = |event: Value, times: usize| {
            let mut past = PastEvents::default();
            (0..times).try_for_each(|_| past.add(&event)).map_err(|refusal| refusal.status)
        };
        assert_eq!(added(json!({}), MAX_PAST), Ok(()));
        assert_eq!(added(json!({}), MAX_PAST + 1), Err(hyper::StatusCode::BAD_REQUEST));
        assert_eq!(added(json!("x".repeat(1 << 20)), 16), Err(hyper::StatusCode::BAD_REQUEST));
    }
}
