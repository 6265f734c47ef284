//! The admin socket: `/healthz`, `/status`, `/metrics` (Prometheus) and `/dump` (sorted JSON, no secrets). Renders what a
//! [`StatusSource`] returns; knows nothing of how the node collects it.

pub mod metrics;

use crate::status::Status;
use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use std::sync::Arc;

/// What the admin socket reads from.
#[async_trait]
pub trait StatusSource: Send + Sync {
    /// The node's current status.
    async fn status(&self) -> Status;
    /// Settings, status, view, peers and kernel state, as one document.
    async fn dump(&self) -> serde_json::Value;
}

type SharedSource = State<Arc<dyn StatusSource>>;

/// The admin socket's routes.
pub fn router(source: Arc<dyn StatusSource>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/status", get(async |State(source): SharedSource| axum::Json(source.status().await)))
        .route("/metrics", get(exposition))
        .route("/dump", get(dump))
        .fallback(async || (StatusCode::NOT_FOUND, "the paths are /healthz, /status, /metrics and /dump\n"))
        .with_state(source)
}

async fn exposition(State(source): SharedSource) -> impl IntoResponse {
    ([("content-type", metrics::CONTENT_TYPE)], metrics::render(&source.status().await))
}

async fn dump(State(source): SharedSource) -> impl IntoResponse {
    ([("content-type", "application/json")], format!("{:#}\n", source.dump().await))
}
