//! What the admin socket shows of the node: `/healthz`, `/status`, `/metrics`, `/dump`.

use super::member::Member;
use super::{Daemon, State};
use crate::model::Role;
use crate::status::{NodeLine, Planes, Status};
use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::json;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

/// The admin socket's routes.
pub(super) fn router(daemon: Arc<Daemon>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/status", get(async |Shared(daemon): Shared<Arc<Daemon>>| axum::Json(status(&daemon).await)))
        .route("/metrics", get(async |Shared(daemon): Shared<Arc<Daemon>>| metrics(&status(&daemon).await)))
        .route("/dump", get(dump))
        .fallback(async || (StatusCode::NOT_FOUND, "there are /healthz, /status, /metrics and /dump\n"))
        .with_state(daemon)
}

/// The node's picture, now.
pub(super) async fn status(daemon: &Daemon) -> Status {
    let base = Status { version: env!("CARGO_PKG_VERSION").to_owned(), ..Status::default() };
    match daemon.state() {
        State::Inactive => Status { state: "inactive".to_owned(), ..base },
        State::Pending { error, .. } => {
            Status { state: if error.is_empty() { "pending" } else { "error" }.to_owned(), error, ..base }
        }
        State::Active(member) => active(daemon, &member, base).await,
    }
}

async fn active(daemon: &Daemon, member: &Member, base: Status) -> Status {
    let view = member.view();
    let session = member.session.borrow().clone();
    let tunnel = member.network.tunnel.observe().await;
    let mut error = member.removed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone().unwrap_or_default();
    if let Err(e) = &tunnel {
        error = format!("{e:#}");
    }
    let tunnel = tunnel.unwrap_or_default();
    let me = &member.record.node_id;
    let nodes = view.iter().flat_map(|v| v.cluster.nodes.iter());
    let leader = nodes.clone().find(|n| session.leader.is_some_and(|l| l.ip() == n.address())).map(|n| n.hostname.clone());
    let lines = nodes.map(|node| {
        let peer = tunnel.peers.get(&node.key);
        let here = node.node_id == *me;
        let heard = peer.and_then(|p| p.handshake_age);
        NodeLine {
            id: node.node_id.clone(),
            hostname: node.hostname.clone(),
            manager: node.manager,
            here,
            mesh: node.address().to_string(),
            path: if here {
                "self"
            } else if heard.is_some() {
                "direct"
            } else {
                "none"
            }
            .to_owned(),
            endpoint: peer.and_then(|p| p.peer.endpoint).or_else(|| node.endpoints.first().copied().filter(|_| here)),
            handshake_seconds: heard.map(|age| age.as_secs()),
            rx_bytes: peer.map_or(0, |p| p.rx_bytes),
            tx_bytes: peer.map_or(0, |p| p.tx_bytes),
            containers: node.containers.len(),
        }
    });
    Status {
        state: "active".to_owned(),
        error,
        node: Some(me.clone()),
        role: Some(member.record.role),
        leader,
        session: session_text(daemon, session.leader, session.since, session.last_error),
        told: view.as_ref().map(|v| v.revision).unwrap_or_default(),
        applied: member.applied.iter().map(|(name, r)| ((*name).to_owned(), *r.borrow())).collect(),
        planes: Planes {
            tunnel: tunnel.plane.clone(),
            tunnel_port: tunnel.port,
            mtu: tunnel.mtu,
            ports: "user space (base plane: the fast plane is not built yet)".to_owned(),
        },
        nodes: lines.collect(),
        ports: member.ports.borrow().clone(),
        ..base
    }
}

fn session_text(
    daemon: &Daemon,
    leader: Option<SocketAddr>,
    since: crate::model::Timestamp,
    last_error: Option<String>,
) -> String {
    let seconds = daemon.clock.now().since(since).as_secs();
    match (leader, last_error) {
        (Some(leader), _) => format!("with {leader} for {seconds} s"),
        (None, Some(error)) => format!("none for {seconds} s: {error}"),
        (None, None) => "none yet".to_owned(),
    }
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
    let port = |p: &crate::balance::PortStatus| {
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
    ([("content-type", "text/plain; version=0.0.4")], out)
}

/// Everything, sorted, for people who look for the reason of something. Secrets are not in it.
async fn dump(Shared(daemon): Shared<Arc<Daemon>>) -> impl IntoResponse {
    let mut document = json!({ "settings": daemon.settings, "status": status(&daemon).await });
    if let State::Active(member) = daemon.state() {
        document["view"] = json!(member.view());
        let tunnel = member.network.tunnel.observe().await;
        document["tunnel"] = tunnel.map_or_else(|e| json!({ "error": format!("{e:#}") }), |t| json!(t));
        let mesh = member.network.mesh.observe().await;
        document["mesh"] = mesh.map_or_else(|e| json!({ "error": format!("{e:#}") }), |m| json!(format!("{m:?}")));
    }
    ([("content-type", "application/json")], format!("{document:#}\n"))
}
