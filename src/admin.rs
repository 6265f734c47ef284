//! The admin socket: `/healthz`, `/status`, `/metrics` (Prometheus), `/dump` (sorted JSON, without secrets and the values of tasks' variables), `/drops` (JSON lines,
//! live), `/trace` (what the programs would do with a packet), `/state-copy` (what this manager's copy of the cluster's state
//! has), and the orders that it takes: `/backup` (write one below the run directory), `/key-change` and `/recover-certificates`. Renders what a
//! [`StatusSource`] returns; knows nothing of how the node collects it.

mod drops;
pub mod metrics;
mod trace;

pub use drops::{DropEvent, DropFilter, DropLine, LostEvents};
pub use trace::{
    TraceOutcome, TraceQuery, TraceReport, TraceResult, TracedBackend, TracedCounter, TracedEntry, TracedHook, TracedTable,
};

use crate::ingress::ebpf::refusal_reasons;
use crate::status::Status;
use async_trait::async_trait;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream::BoxStream;
use metrics::MetricsFormat;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The content of a backup, not encrypted.
#[derive(Debug, serde::Serialize)]
pub struct WrittenBackup {
    /// The file, below the run directory.
    pub path: std::path::PathBuf,
    /// Why it may not have all.
    pub warning: Option<&'static str>,
}

/// What the admin socket reads from.
#[async_trait]
pub trait StatusSource: Send + Sync {
    /// The node's current status.
    async fn status(&self) -> Status;
    /// What of the daemon does not run, by name, with the reason.
    fn blockers(&self) -> BTreeMap<String, String>;
    /// Settings, status, view, peers and kernel state, as one document, in which secrets and the values of tasks' variables are hidden.
    async fn dump(&self) -> serde_json::Value;
    /// What this manager's copy of the cluster's state has, as one document without secrets.
    ///
    /// # Errors
    /// The node is not a manager, or its copy is not served.
    fn state_copy(&self) -> anyhow::Result<serde_json::Value>;
    /// Writes the content of a backup to a file that only root may read.
    ///
    /// # Errors
    /// The node is no manager that serves its store, or the disk is full.
    fn write_backup(&self) -> anyhow::Result<WrittenBackup>;
    /// Lets this manager renew certificates that have expired, for this long from now.
    ///
    /// # Errors
    /// The node is not a manager, or the time is too long or none.
    fn recover_certificates(&self, time: Duration) -> anyhow::Result<()>;
    /// Begins a change of this node's WireGuard key, or goes on with one; the field `key` of the answer is the key that it is to have.
    ///
    /// # Errors
    /// The node is in no swarm, or a manager refuses it.
    async fn rotate_key(&self) -> anyhow::Result<serde_json::Value>;
    /// How far that is: `key` is the one of the tunnel, `step` what is being done, empty if nothing is, `error` why it failed last.
    ///
    /// # Errors
    /// The node is in no swarm.
    fn key_change(&self) -> anyhow::Result<serde_json::Value>;
    /// What the eBPF datapath drops or refuses, from now on; with `left` also what it leaves to the host.
    ///
    /// # Errors
    /// Why there is nothing to watch.
    async fn watch_drops(&self, left: bool) -> Result<BoxStream<'static, DropLine>, String>;
    /// What the eBPF hooks of this node would do with a packet. Changes nothing.
    ///
    /// # Errors
    /// What is wrong with the query, or why there is nothing to trace.
    async fn trace(&self, query: TraceQuery) -> anyhow::Result<TraceReport>;
}

type SharedSource = State<Arc<dyn StatusSource>>;

/// The admin socket's routes.
pub fn router(source: Arc<dyn StatusSource>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/status", get(async |State(source): SharedSource| axum::Json(source.status().await)))
        .route("/metrics", get(exposition))
        .route("/dump", get(dump))
        .route("/recover-certificates", post(recover_certificates))
        .route("/state-copy", get(state_copy))
        .route("/backup", post(write_backup))
        .route("/key-change", get(key_change).post(rotate_key))
        .route("/drops", get(drops))
        .route("/trace", get(trace_packet))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "the paths are /healthz, /status, /metrics, /dump, /drops, /trace, /state-copy, /backup, /key-change and /recover-certificates\n",
            )
        })
        .with_state(source)
}

/// `ok`, or 503 with what of the daemon does not run: a line `NAME: REASON` each.
async fn healthz(State(source): SharedSource) -> (StatusCode, String) {
    let lines: Vec<String> = source.blockers().iter().map(|(name, reason)| format!("{name}: {reason}\n")).collect();
    if lines.is_empty() { (StatusCode::OK, "ok\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, lines.concat()) }
}

async fn exposition(State(source): SharedSource, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",");
    let format = MetricsFormat::accepted(&accept);
    ([("content-type", format.content_type())], metrics::render(&source.status().await, format))
}

/// The time is `seconds` in the query.
async fn recover_certificates(
    State(source): SharedSource,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<(), (StatusCode, axum::Json<serde_json::Value>)> {
    let seconds = query.get("seconds").and_then(|text| text.parse().ok());
    let seconds = seconds.ok_or_else(|| refused("`seconds` is not a number"))?;
    source.recover_certificates(Duration::from_secs(seconds)).map_err(|e| refused(format!("{e:#}")))
}

/// The content itself does not pass this socket, which others than root may have.
async fn write_backup(
    State(source): SharedSource,
) -> Result<axum::Json<serde_json::Value>, (StatusCode, axum::Json<serde_json::Value>)> {
    let written = tokio::task::spawn_blocking(move || source.write_backup()).await.map_err(anyhow::Error::from).flatten();
    written.map(|written| axum::Json(serde_json::json!(written))).map_err(|e| refused(format!("{e:#}")))
}

async fn state_copy(
    State(source): SharedSource,
) -> Result<axum::Json<serde_json::Value>, (StatusCode, axum::Json<serde_json::Value>)> {
    source.state_copy().map(axum::Json).map_err(|e| refused(format!("{e:#}")))
}

async fn rotate_key(
    State(source): SharedSource,
) -> Result<axum::Json<serde_json::Value>, (StatusCode, axum::Json<serde_json::Value>)> {
    source.rotate_key().await.map(axum::Json).map_err(|e| refused(format!("{e:#}")))
}

async fn key_change(
    State(source): SharedSource,
) -> Result<axum::Json<serde_json::Value>, (StatusCode, axum::Json<serde_json::Value>)> {
    source.key_change().map(axum::Json).map_err(|e| refused(format!("{e:#}")))
}

fn refused(why: impl std::fmt::Display) -> (StatusCode, axum::Json<serde_json::Value>) {
    (StatusCode::BAD_REQUEST, axum::Json(serde_json::json!({ "message": why.to_string() })))
}

async fn trace_packet(
    State(source): SharedSource,
    Query(query): Query<TraceQuery>,
) -> Result<axum::Json<TraceReport>, (StatusCode, axum::Json<serde_json::Value>)> {
    source.trace(query).await.map(axum::Json).map_err(|e| refused(format!("{e:#}")))
}

async fn dump(State(source): SharedSource) -> impl IntoResponse {
    ([("content-type", "application/json")], format!("{:#}\n", source.dump().await))
}

async fn drops(State(source): SharedSource, Query(filter): Query<DropFilter>) -> Response {
    if let Some(reason) = &filter.reason
        && !refusal_reasons().any(|known| known == reason)
    {
        let known: Vec<&str> = refusal_reasons().collect();
        let text = format!("there is no reason {reason:?}; the reasons are {}\n", known.join(", "));
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    match source.watch_drops(filter.left).await {
        Ok(lines) => ([("content-type", "application/x-ndjson")], drops::body(lines, filter)).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}
