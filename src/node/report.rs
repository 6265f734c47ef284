//! What the admin socket shows of the node: its status, and a dump of its whole state.

use super::daemon::Daemon;
use super::lifecycle::MembershipState;
use super::member::Member;
use crate::admin::StatusSource;
use crate::datapath::TunnelPeerState;
use crate::datapath::ebpf::HookSide;
use crate::model::view::Peer;
use crate::status::{DatapathSummary, NodeSummary, Status};
use async_trait::async_trait;
use serde_json::{Value, json};
use std::net::SocketAddr;

#[async_trait]
impl StatusSource for Daemon {
    async fn status(&self) -> Status {
        status(self).await
    }

    async fn dump(&self) -> Value {
        let mut document = json!({ "settings": self.env.settings, "status": status(self).await });
        if let MembershipState::Active(member) = self.lifecycle.state() {
            document["view"] = json!(member.view());
            let validity = member.identity.borrow().validity();
            document["certificate"] = json!({
                "not_before": validity.not_before.to_rfc3339(),
                "not_after": validity.not_after.to_rfc3339(),
            });
            let tunnel = member.network.tunnel.observe().await;
            document["tunnel"] = tunnel.map_or_else(|e| json!({ "error": format!("{e:#}") }), |t| json!(t));
            let mesh = member.network.mesh.observe().await;
            document["mesh"] = mesh.map_or_else(|e| json!({ "error": format!("{e:#}") }), |m| json!(m));
            document["ebpf"] = match &member.network.ebpf {
                Ok(ebpf) => ebpf.dump().await.map_or_else(|e| json!({ "error": format!("{e:#}") }), |f| json!(f)),
                Err(why) => json!({ "error": why }),
            };
        }
        document
    }
}

async fn status(daemon: &Daemon) -> Status {
    let base = Status { version: env!("CARGO_PKG_VERSION").to_owned(), ..Status::default() };
    match daemon.lifecycle.state() {
        MembershipState::Inactive => Status { state: "inactive".to_owned(), ..base },
        MembershipState::Pending { error, .. } => {
            Status { state: if error.is_empty() { "pending" } else { "error" }.to_owned(), error, ..base }
        }
        MembershipState::Active(member) => active(daemon, &member, base).await,
    }
}

async fn active(daemon: &Daemon, member: &Member, base: Status) -> Status {
    let view = member.view();
    let session = member.session.state.borrow().clone();
    let tunnel = member.network.tunnel.observe().await;
    let mut error = member.removed().unwrap_or_default();
    if let Err(e) = &tunnel {
        error = format!("{e:#}");
    }
    let tunnel = tunnel.unwrap_or_default();
    let ebpf = member.ebpf.borrow().clone();
    let me = &member.membership.node_id;
    let nodes = view.iter().flat_map(|v| v.cluster.nodes.iter());
    let leader = nodes.clone().find(|n| session.leader.is_some_and(|l| l.ip() == n.address())).map(|n| n.hostname.clone());
    let lines = nodes.map(|node| node_line(node, *me == node.node_id, tunnel.peers.get(&node.key)));
    Status {
        state: "active".to_owned(),
        error,
        node: Some(me.clone()),
        role: Some(member.role()),
        leader,
        session: session_text(daemon, session.leader, session.since, session.last_error),
        view_revision: view.as_ref().map(|v| v.revision).unwrap_or_default(),
        applied: member.applied.by_name(),
        datapaths: DatapathSummary {
            tunnel: tunnel.implementation.clone(),
            tunnel_port: tunnel.port,
            mtu: tunnel.mtu,
            ports: ports_text(&ebpf),
        },
        nodes: lines.collect(),
        ports: member.ports.borrow().clone(),
        ebpf,
        names: member.names.status(),
        ..base
    }
}

/// A node as this one sees it; `peer` is its state in the tunnel.
fn node_line(node: &Peer, here: bool, peer: Option<&TunnelPeerState>) -> NodeSummary {
    let handshake = peer.and_then(|p| p.handshake_age);
    let path = match handshake {
        _ if here => "self",
        Some(_) => "direct",
        None => "none",
    };
    NodeSummary {
        id: node.node_id.clone(),
        hostname: node.hostname.clone(),
        manager: node.manager,
        here,
        mesh: node.address().to_string(),
        path: path.to_owned(),
        endpoint: peer.and_then(|p| p.peer.endpoint).or_else(|| node.endpoints.first().copied().filter(|_| here)),
        handshake_seconds: handshake.map(|age| age.as_secs()),
        rx_bytes: peer.map_or(0, |p| p.rx_bytes),
        tx_bytes: peer.map_or(0, |p| p.tx_bytes),
        containers: node.containers.len(),
    }
}

/// Which datapath serves published ports, and why not the eBPF datapath.
fn ports_text(ebpf: &crate::ingress::ebpf::EbpfStatus) -> String {
    let cgroup_hook = ebpf.unavailable.iter().find(|(hook, _)| hook.side() == HookSide::Cgroup);
    match (ebpf.up, cgroup_hook) {
        (false, _) if ebpf.reason.is_empty() => "userspace datapath (the eBPF datapath is starting)".to_owned(),
        (false, _) => format!("userspace datapath (no eBPF datapath: {})", ebpf.reason),
        (true, None) => "eBPF datapath; userspace datapath for the node's own processes".to_owned(),
        (true, Some((hook, why))) => format!("eBPF datapath; no virtual addresses: {} cannot run: {why}", hook.program()),
    }
}

fn session_text(
    daemon: &Daemon,
    leader: Option<SocketAddr>,
    since: crate::model::Timestamp,
    last_error: Option<String>,
) -> String {
    let seconds = daemon.env.clock.now().since(since).as_secs();
    match (leader, last_error) {
        (Some(leader), _) => format!("with {leader} for {seconds} s"),
        (None, Some(error)) => format!("none for {seconds} s: {error}"),
        (None, None) => "none yet".to_owned(),
    }
}
