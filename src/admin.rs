//! The admin socket: `/healthz`, `/status`, `/metrics` (Prometheus), `/dump` (sorted JSON, no secrets), and as the one order
//! that it takes `/recover-certificates`. Renders what a
//! [`StatusSource`] returns; knows nothing of how the node collects it.

pub mod metrics;

use crate::status::Status;
use async_trait::async_trait;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What the admin socket reads from.
#[async_trait]
pub trait StatusSource: Send + Sync {
    /// The node's current status.
    async fn status(&self) -> Status;
    /// Settings, status, view, peers and kernel state, as one document.
    async fn dump(&self) -> serde_json::Value;
    /// Lets this manager renew certificates that have expired, for this long from now.
    ///
    /// # Errors
    /// The node is not a manager, or the time is too long or none.
    fn recover_certificates(&self, time: Duration) -> anyhow::Result<()>;
}

type SharedSource = State<Arc<dyn StatusSource>>;

/// The admin socket's routes.
pub fn router(source: Arc<dyn StatusSource>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/status", get(async |State(source): SharedSource| axum::Json(source.status().await)))
        .route("/metrics", get(exposition))
        .route("/dump", get(dump))
        .route("/recover-certificates", post(recover_certificates))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "the paths are /healthz, /status, /metrics, /dump and /recover-certificates\n")
        })
        .with_state(source)
}

async fn exposition(State(source): SharedSource) -> impl IntoResponse {
    ([("content-type", metrics::CONTENT_TYPE)], metrics::render(&source.status().await))
}

/// The time is `seconds` in the query.
async fn recover_certificates(
    State(source): SharedSource,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<(), (StatusCode, axum::Json<serde_json::Value>)> {
    let refused = |why: String| (StatusCode::BAD_REQUEST, axum::Json(serde_json::json!({ "message": why })));
    let seconds = query.get("seconds").and_then(|text| text.parse().ok());
    let seconds = seconds.ok_or_else(|| refused("`seconds` is not a number".to_owned()))?;
    source.recover_certificates(Duration::from_secs(seconds)).map_err(|e| refused(format!("{e:#}")))
}

async fn dump(State(source): SharedSource) -> impl IntoResponse {
    ([("content-type", "application/json")], format!("{:#}\n", source.dump().await))
}
