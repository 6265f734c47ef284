//! `/events`: the engine's stream, without those of hidden networks, merged with the swarm's events on a manager.

use super::request::ApiRequest;
use crate::api::error::Result;
use crate::api::events::{EventFilter, SwarmEvent};
use crate::http::ReplyLines;
use crate::model::docker::DRIVER;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::unfold;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use tokio::sync::broadcast;

/// How long a replay waits for older events of the engine.
const REPLAY_WAIT: Duration = Duration::from_millis(200);

/// GET /events
pub async fn stream(request: &ApiRequest) -> Result<Response> {
    let filter = EventFilter::of(&request.query);
    let Ok(engine) = request.api.engine.lines(&request.lifted_target()).await else {
        // Its error, in its words.
        return request.forward().await;
    };
    let (kept, live) = request.api.events.subscribe();
    let replay = kept.into_iter().filter(|event| filter.replays(event)).collect();
    let events = MergedEvents { engine, replay, live, filter, ready: VecDeque::new() };
    let body = unfold(events, async |mut events| events.next().await.map(|line| (Ok::<_, Infallible>(line), events)));
    Ok(([("content-type", "application/json")], Body::from_stream(body)).into_response())
}

/// The state of a stream.
struct MergedEvents {
    engine: ReplyLines,
    /// Kept events that are not sent yet, the oldest first.
    replay: VecDeque<SwarmEvent>,
    live: broadcast::Receiver<SwarmEvent>,
    filter: EventFilter,
    /// Lines to send next.
    ready: VecDeque<String>,
}

impl MergedEvents {
    /// The next line, with its end; `None` when the engine's stream has ended and all is sent.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(Bytes::from(line + "\n"));
            }
            tokio::select! {
                biased;
                line = self.engine.next() => match line {
                    Ok(Some(line)) => self.engine_line(line),
                    Ok(None) | Err(_) => return self.last_line(),
                },
                event = self.live.recv(), if !self.live_is_over() => if let Ok(event) = event { self.live_event(&event) },
                () = tokio::time::sleep(REPLAY_WAIT), if !self.replay.is_empty() => self.replay_up_to(i64::MAX),
            }
        }
    }

    fn live_is_over(&self) -> bool {
        self.live.is_closed()
    }

    fn engine_line(&mut self, line: String) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        self.replay_up_to(event["timeNano"].as_i64().unwrap_or(i64::MAX));
        // The engine's part of a swarm network is hidden everywhere.
        let is_hidden = event["Type"] == "network" && event["Actor"]["Attributes"]["type"] == DRIVER;
        if !is_hidden && !line.trim().is_empty() {
            self.ready.push_back(line);
        }
    }

    fn live_event(&mut self, event: &SwarmEvent) {
        self.replay_up_to(i64::MAX);
        if self.filter.passes(event) {
            self.ready.push_back(event.to_json().to_string());
        }
    }

    /// Makes kept events ready that are not newer than this time, in nanoseconds.
    fn replay_up_to(&mut self, nanos: i64) {
        while let Some(event) = self.replay.pop_front_if(|event| event.at.0 <= nanos) {
            self.ready.push_back(event.to_json().to_string());
        }
    }

    /// What is left when the engine's stream has ended: at the time `until`, or with the engine.
    fn last_line(&mut self) -> Option<Bytes> {
        self.replay_up_to(i64::MAX);
        while let Ok(event) = self.live.try_recv() {
            self.live_event(&event);
        }
        self.ready.pop_front().map(|line| Bytes::from(line + "\n"))
    }
}
