//! An engine that answers by a function and records what it was asked.

use super::fixture::{ApiFixture, FakeNode, SocketDir};
use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use skep::http::{bind_unix, serve_unix};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

type Respond = dyn Fn(&str) -> Option<(u16, Value)> + Send + Sync;

/// What it was asked, as `METHOD target`, with the body.
pub type Recorded = Arc<Mutex<Vec<(String, Value)>>>;

/// The API of a node in front of such an engine.
pub struct RecordingEngine {
    pub api: ApiFixture,
    requests: Recorded,
    /// True while it keeps its replies to POST requests to itself.
    pub holds: watch::Sender<bool>,
    _dir: SocketDir,
    _shutdown: DropGuard,
}

impl RecordingEngine {
    /// `respond` gets `METHOD target`; what it has no answer to is a 404.
    pub fn serve(node: Arc<FakeNode>, respond: impl Fn(&str) -> Option<(u16, Value)> + Send + Sync + 'static) -> Self {
        let (dir, requests, shutdown) = (SocketDir::new(), Recorded::default(), CancellationToken::new());
        let socket = dir.path("engine.sock");
        let (holds, held) = watch::channel(false);
        let state: EngineState = (requests.clone(), Arc::new(respond), held);
        let router = Router::new().fallback(record).with_state(state);
        tokio::spawn(serve_unix(bind_unix(&socket).unwrap(), router, shutdown.clone()));
        Self { api: ApiFixture::serve(node, Some(&socket)), requests, holds, _dir: dir, _shutdown: shutdown.drop_guard() }
    }

    /// The requests so far whose line begins so.
    pub fn asked(&self, line: &str) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().iter().filter(|(asked, _)| asked.starts_with(line)).cloned().collect()
    }

    /// Sends a request to skep; status and body, or the text of an error.
    pub async fn send(&self, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
        let reply = self.api.client.request(method, target, body).await.unwrap();
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::String(text));
        (reply.status.as_u16(), if body["message"].is_string() { body["message"].clone() } else { body })
    }
}

type EngineState = (Recorded, Arc<Respond>, watch::Receiver<bool>);

async fn record(State((requests, respond, mut held)): State<EngineState>, request: Request) -> Response {
    let target = request.uri().path_and_query().map_or_else(String::new, ToString::to_string);
    let line = format!("{} {target}", request.method());
    let is_post = request.method() == "POST";
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap_or_default();
    let (status, reply) = respond(&line).unwrap_or_else(|| (404, json!({ "message": "page not found" })));
    requests.lock().unwrap().push((line, serde_json::from_slice(&body).unwrap_or_default()));
    if is_post {
        let _ = held.wait_for(|held| !held).await;
    }
    (hyper::StatusCode::from_u16(status).unwrap(), axum::Json(reply)).into_response()
}
