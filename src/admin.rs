//! The admin socket: `/healthz`, `/status`, `/metrics` (Prometheus) and `/dump` (sorted JSON, no secrets). Shows what a
//! [`Source`] says; knows nothing of where it comes from.

use crate::model::Role;
use crate::status::{NodeLine, Status};
use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use std::fmt::Write as _;
use std::sync::Arc;

/// What is shown.
#[async_trait]
pub trait Source: Send + Sync {
    /// The node's picture, now.
    async fn status(&self) -> Status;
    /// Everything: settings, view, plan, peers, kernel state.
    async fn dump(&self) -> serde_json::Value;
}

/// The admin socket's routes.
pub fn router(source: Arc<dyn Source>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/status", get(async |State(source): State<Arc<dyn Source>>| axum::Json(source.status().await)))
        .route("/metrics", get(async |State(source): State<Arc<dyn Source>>| metrics(&source.status().await)))
        .route("/dump", get(dump))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /healthz, /status, /metrics and /dump\n"))
        .with_state(source)
}

async fn dump(State(source): State<Arc<dyn Source>>) -> impl IntoResponse {
    ([("content-type", "application/json")], format!("{:#}\n", source.dump().await))
}

/// Prometheus text.
fn metrics(status: &Status) -> impl IntoResponse + use<> {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, lines: Vec<(String, f64)>| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in lines {
            let _ = writeln!(out, "{name}{labels} {value}");
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floats")]
    let float = |n: u64| n as f64;
    gauge("skep_member", "1 while this node is in a swarm", vec![(String::new(), f64::from(u8::from(status.node.is_some())))]);
    gauge(
        "skep_manager",
        "1 while this node is a manager",
        vec![(String::new(), f64::from(u8::from(status.role == Some(Role::Manager))))],
    );
    gauge(
        "skep_session",
        "1 while a leader answers this node",
        vec![(String::new(), f64::from(u8::from(status.leader.is_some())))],
    );
    gauge("skep_revision_told", "revision that the node was told", vec![(String::new(), float(status.told.index))]);
    let applied = status.applied.iter().map(|(name, r)| (format!("{{loop=\"{name}\"}}"), float(r.index))).collect();
    gauge("skep_revision_applied", "revision that each loop has applied", applied);
    let peers = || status.nodes.iter().filter(|n| !n.here);
    let per_peer =
        |value: fn(&NodeLine) -> u64| peers().map(|n| (format!("{{node=\"{}\"}}", n.hostname), float(value(n)))).collect();
    gauge("skep_peer_received_bytes", "bytes received from a peer through the tunnel", per_peer(|n| n.rx_bytes));
    gauge("skep_peer_sent_bytes", "bytes sent to a peer through the tunnel", per_peer(|n| n.tx_bytes));
    let ages = peers().filter_map(|n| Some((format!("{{node=\"{}\"}}", n.hostname), float(n.handshake_seconds?)))).collect();
    gauge("skep_peer_handshake_age_seconds", "seconds since the last handshake", ages);
    let port = |p: &crate::ingress::PortStatus| {
        format!("{{port=\"{}\",protocol=\"{}\",service=\"{}\"}}", p.port, p.protocol.as_str(), p.service)
    };
    gauge(
        "skep_port_backends",
        "tasks behind a published port",
        status.ports.iter().map(|p| (port(p), float(p.backends as u64))).collect(),
    );
    gauge(
        "skep_port_connections",
        "open connections of a published port",
        status.ports.iter().map(|p| (port(p), float(p.connections as u64))).collect(),
    );
    gauge(
        "skep_port_errors",
        "connections that no backend took",
        status.ports.iter().map(|p| (port(p), float(p.errors))).collect(),
    );
    gauge(
        "skep_port_refused",
        "connections and datagrams of sources that may not use the port",
        status.ports.iter().map(|p| (port(p), float(p.refused))).collect(),
    );
    let ebpf = &status.ebpf;
    gauge("skep_ebpf_up", "1 while the eBPF datapath is loaded", vec![(String::new(), f64::from(u8::from(ebpf.up)))]);
    gauge(
        "skep_ebpf_ports",
        "published ports that the eBPF datapath serves",
        vec![(String::new(), float(ebpf.ports.len() as u64))],
    );
    gauge("skep_ebpf_vips", "virtual addresses that the eBPF datapath carries", vec![(String::new(), float(ebpf.vips as u64))]);
    gauge("skep_ebpf_links", "programs at their places", vec![(String::new(), float(ebpf.links as u64))]);
    gauge(
        "skep_ebpf_repairs_total",
        "entries and programs found wrong and repaired",
        vec![(String::new(), float(ebpf.repaired))],
    );
    let connections = ebpf.connections.iter().map(|c| {
        let labels = format!("{{plane=\"kernel\",service=\"{}\",frontend=\"{}\"}}", c.service, c.frontend);
        (labels, float(c.connections))
    });
    gauge(
        "skep_ebpf_connections",
        "new connections given a backend, by published port or virtual address",
        connections.collect(),
    );
    let counts = ebpf.counters.iter().map(|(name, n)| (format!("{{what=\"{name}\"}}"), float(*n))).collect();
    gauge("skep_ebpf_count", "what the eBPF datapath's programs counted", counts);
    ([("content-type", "text/plain; version=0.0.4")], out)
}
