//! What the admin socket shows of the node: its status, and a dump of its whole state.

use super::daemon::Daemon;
use super::key_change::KeyChangeState;
use super::lifecycle::MembershipState;
use super::member::Member;
use super::refusals;
use super::renewal::RenewalState;
use super::trace;
use super::troubles::Troubles;
use crate::admin::{DropLine, StatusSource, TraceQuery, TraceReport};
use crate::api::control::LOCKED;
use crate::datapath::TunnelPeerState;
use crate::datapath::ebpf::HookSide;
use crate::datapath::host_routes;
use crate::manager::allocator::overlap;
use crate::manager::root_rotation;
use crate::model::secret::hiding;
use crate::model::view::Peer;
use crate::model::{ClusterSpec, Node, Timestamp};
use crate::overlay::{PathMtus, key_in_use};
use crate::rpc::SessionState;
use crate::status::{CertificateSummary, DatapathSummary, ManagerSummary, NodeSummary, RaftSummary, Status};
use crate::store::Store;
use crate::trust::{Remaining, Validity};
use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

#[async_trait]
impl StatusSource for Daemon {
    async fn status(&self) -> Status {
        status(self).await
    }

    fn blockers(&self) -> BTreeMap<String, String> {
        self.env.blockers.now()
    }

    async fn dump(&self) -> Value {
        let mut document = json!({ "settings": self.env.settings, "status": status(self).await });
        if let MembershipState::Active(member) = self.lifecycle.state() {
            document["view"] = hiding(|| json!(member.view()));
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

    fn state_copy(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(Daemon::state_copy(self)?)?)
    }

    fn write_backup(&self) -> anyhow::Result<crate::admin::WrittenBackup> {
        Daemon::write_backup(self)
    }

    fn recover_certificates(&self, time: Duration) -> anyhow::Result<()> {
        let MembershipState::Active(member) = self.lifecycle.state() else {
            anyhow::bail!("this node is not part of a swarm");
        };
        anyhow::ensure!(member.store().is_some(), "this node is not a manager: run this on one");
        member.recovery.open(time)?;
        tracing::warn!(seconds = time.as_secs(), "an operator allows members to renew certificates that have expired");
        Ok(())
    }

    async fn rotate_key(&self) -> anyhow::Result<Value> {
        let MembershipState::Active(member) = self.lifecycle.state() else {
            anyhow::bail!("this node is not part of a swarm");
        };
        Ok(json!({ "key": member.keys.begin().await? }))
    }

    fn key_change(&self) -> anyhow::Result<Value> {
        let MembershipState::Active(member) = self.lifecycle.state() else {
            anyhow::bail!("this node is not part of a swarm");
        };
        let state = member.keys.state.borrow().clone();
        Ok(json!(state.context("the keys of this node are being read")?))
    }

    async fn watch_drops(&self, left: bool) -> Result<BoxStream<'static, DropLine>, String> {
        let MembershipState::Active(member) = self.lifecycle.state() else {
            return Err("this node is not in a swarm: it has no eBPF datapath".to_owned());
        };
        let ebpf = member.network.ebpf.as_ref().map_err(|why| format!("this node has no eBPF datapath: {why}"))?;
        refusals::watch(ebpf, member.network.view.subscribe(), left).map_err(|e| format!("{e:#}"))
    }

    async fn trace(&self, query: TraceQuery) -> anyhow::Result<TraceReport> {
        let MembershipState::Active(member) = self.lifecycle.state() else {
            anyhow::bail!("this node is not in a swarm: it has no eBPF datapath");
        };
        let view = member.view().context("this node has not received its view of the swarm yet")?;
        trace::trace(&member.network.ebpf, &view, &member.membership.node_id, &query).await
    }
}

async fn status(daemon: &Daemon) -> Status {
    let blockers = daemon.env.blockers.now();
    let base = Status { version: env!("CARGO_PKG_VERSION").to_owned(), blockers, ..Status::default() };
    match daemon.lifecycle.state() {
        MembershipState::Inactive => Status { state: "inactive".to_owned(), ..base },
        MembershipState::Pending { error, .. } => {
            Status { state: if error.is_empty() { "pending" } else { "error" }.to_owned(), error, ..base }
        }
        MembershipState::Locked(_) => {
            Status { state: "locked".to_owned(), error: LOCKED.to_owned(), warnings: vec![LOCKED_GOES_ON.to_owned()], ..base }
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
    let mtus = daemon.env.mtus.paths.borrow().clone();
    let mut warnings = mtu_warnings(daemon.env.settings.path_mtu(), &mtus, nodes.clone());
    if let (Some(view), Ok(routes)) = (&view, host_routes::ipv4_routes().await) {
        warnings.extend(overlap_warnings(&view.cluster.subnets, &routes));
    }
    let store = member.store().map(|handle| handle.read());
    warnings.extend(store.as_deref().into_iter().flat_map(root_warnings));
    warnings.extend(store.as_deref().and_then(Store::cluster).and_then(|cluster| heartbeat_warning(&cluster.spec)));
    warnings.extend(member.keys.state.borrow().as_ref().and_then(key_warning));
    let lines = nodes.map(|node| {
        let path = mtus.nodes.get(&node.node_id).and_then(|path| path.path);
        let feature_levels = store.as_ref().and_then(|s| s.node(&node.node_id)).map(|n| n.description.feature_levels());
        NodeSummary { feature_levels, ..node_line(node, *me == node.node_id, tunnel.peers.get(&key_in_use(node, &tunnel)), path) }
    });
    let node_down = Duration::from_millis(daemon.env.settings.timeouts.node_down_ms);
    let stale_since = stale_since(&session, daemon.env.clock.now(), node_down);
    Status {
        state: if member.removed().is_some() { "error" } else { "active" }.to_owned(),
        error,
        node: Some(me.clone()),
        role: Some(member.role()),
        leader,
        session: session_text(daemon, session.leader, session.since, session.last_error),
        view_revision: view.as_ref().map(|v| v.revision).unwrap_or_default(),
        applied: member.applied.by_name(),
        troubles: troubles(&member.troubles.borrow(), &base.blockers),
        stale_since,
        manager: store.as_deref().map(|store| manager_summary(store, member)),
        datapaths: DatapathSummary {
            tunnel: tunnel.implementation.clone(),
            tunnel_port: tunnel.port,
            mtu: tunnel.mtu,
            ports: ports_text(&ebpf),
        },
        certificate: Some(certificate(member.identity.borrow().validity(), &member.renewal.borrow(), daemon.env.clock.now())),
        nodes: lines.collect(),
        warnings,
        ports: member.ports.borrow().clone(),
        ebpf,
        http: member.http.borrow().clone(),
        names: member.names.status(),
        ..base
    }
}

/// How far a change of this node's WireGuard key is.
fn key_warning(state: &KeyChangeState) -> Option<String> {
    let why = if state.error.is_empty() { String::new() } else { format!(": {}", state.error) };
    (!state.step.is_empty()).then(|| format!("this node changes its WireGuard key: {}{why}", state.step))
}

/// A real swarm's manager has stopped everything by then.
const LOCKED_GOES_ON: &str = "this manager is locked: its containers, names and published ports go on meanwhile, as they were";

/// A heartbeat period that is taken, as in a real swarm, and shown, and followed within bounds only.
fn heartbeat_warning(spec: &ClusterSpec) -> Option<String> {
    let period = spec.dispatcher.heartbeat_period?.duration();
    let followed = ClusterSpec::default().dispatcher.heartbeat_period?.duration().mul_f64(spec.patience());
    (period.abs_diff(followed) > Duration::from_millis(1)).then(|| {
        format!("the swarm's heartbeat period is set to {period:?}, and nodes are judged as with {followed:?}: see docker swarm update --dispatcher-heartbeat")
    })
}

/// The nodes that a change of the root CA waits for, and those that it left out.
fn root_warnings(store: &Store) -> Vec<String> {
    let names = |nodes: Vec<&Node>| nodes.iter().map(|node| node.description.hostname.as_str()).collect::<Vec<_>>().join(", ");
    let (silent, waiting): (Vec<&Node>, Vec<&Node>) =
        root_rotation::waiting_for(store).partition(|node| root_rotation::is_silent(node));
    let left_out: Vec<&Node> = root_rotation::left_out(store).collect();
    let mut warnings = Vec::new();
    if !silent.is_empty() {
        let who = names(silent);
        warnings.push(format!("the root CA is being replaced, and an earlier skep does not say whether it has a certificate of the new one: install this version on {who}, or remove it (docker node rm --force)"));
    }
    if !waiting.is_empty() {
        warnings
            .push(format!("the root CA is being replaced: a certificate of the new one is still to come for {}", names(waiting)));
    }
    if !left_out.is_empty() {
        let who = names(left_out);
        warnings.push(format!("the root CA was replaced while nodes were down: {who}; they renew when they are back, or remove them (docker node rm)"));
    }
    warnings
}

/// What is not among the blockers already.
fn troubles(all: &Troubles, blockers: &BTreeMap<String, String>) -> Troubles {
    all.iter().filter(|(name, _)| !blockers.contains_key(*name)).map(|(name, reason)| (name.clone(), reason.clone())).collect()
}

/// The node's certificate, with a warning long before it ends.
fn certificate(validity: Validity, renewal: &RenewalState, now: Timestamp) -> CertificateSummary {
    let seconds_left = validity.not_after.since(now).as_secs();
    let state = match validity.remaining(now) {
        Remaining::Enough if renewal.error.is_none() => None,
        Remaining::Enough => Some("its renewal fails".to_owned()),
        Remaining::Little => Some(format!("less than a fifth of its life is left ({seconds_left} s)")),
        Remaining::Expired => Some("it has expired".to_owned()),
    };
    let why = renewal.error.as_deref().map_or_else(String::new, |error| format!(": {error}"));
    let warning = state.map_or_else(String::new, |state| state + &why);
    CertificateSummary { expires: validity.not_after, seconds_left, failures: renewal.failures, warning }
}

/// A node as this one sees it; `peer` is its state in the tunnel, `path_mtu` what the host's
/// routes say.
fn node_line(node: &Peer, here: bool, peer: Option<&TunnelPeerState>, path_mtu: Option<u32>) -> NodeSummary {
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
        containers: node.attached_tasks.map_or(node.containers.len(), |tasks| tasks as usize),
        feature_levels: None,
        path_mtu,
    }
}

fn manager_summary(store: &Store, member: &Member) -> ManagerSummary {
    let (health, raft) = (member.leader_health.borrow(), member.raft_status().unwrap_or_default());
    ManagerSummary {
        feature_level: store.feature_level(),
        loop_restarts: health.restarts,
        left_out: health.left_out.clone(),
        refused_connections: member.refused.read(),
        raft: RaftSummary {
            leads: raft.is_leader,
            term: raft.term,
            applied: raft.applied,
            ignored: raft.ignored,
            problem: raft.problem.unwrap_or_default(),
        },
    }
}

/// Networks of the swarm that are networks of this host too: clients there are left to the userspace datapath, and containers
/// cannot reach them.
fn overlap_warnings(subnets: &[Ipv4Net], routes: &[Ipv4Net]) -> Vec<String> {
    let pairs = subnets.iter().flat_map(|subnet| routes.iter().map(move |route| (subnet, route)));
    let text = |(subnet, route)| {
        format!(
            "the swarm's network {subnet} overlaps {route}, to which this host has a route: its clients there keep no address of \
             their own, containers cannot reach it; give the network another subnet (docker network create --subnet)"
        )
    };
    pairs.filter(|(subnet, route)| overlap(subnet, route)).map(text).collect()
}

/// What does not fit together: paths that are smaller or larger than the setting, and paths too small for the tunnel.
fn mtu_warnings<'a>(set: Option<u32>, mtus: &PathMtus, nodes: impl Iterator<Item = &'a Peer>) -> Vec<String> {
    let warning = |node: &Peer| {
        let path = mtus.nodes.get(&node.node_id)?.path?;
        let name = &node.hostname;
        match set {
            Some(set) if path < set => Some(format!(
                "path_mtu is set to {set}, but the route to {name} has {path}: full packets leave in fragments; set path_mtu = 0 to follow the routes"
            )),
            Some(set) if path > set => {
                Some(format!("path_mtu is set to {set}, the route to {name} has {path}: packets are smaller than they could be"))
            }
            None if path < 1280 + crate::model::mesh::TUNNEL_OVERHEAD => {
                Some(format!("the route to {name} has MTU {path}: full packets leave in fragments, the tunnel needs 1360"))
            }
            _ => None,
        }
    };
    nodes.filter_map(warning).collect()
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

/// Since when no manager has confirmed the node's view; `None` while there is a session, or it was lost less than `node_down` ago:
/// until then the managers have not replaced the node's tasks.
fn stale_since(session: &SessionState, now: Timestamp, node_down: Duration) -> Option<String> {
    let lost = session.leader.is_none() && now.since(session.since) > node_down;
    lost.then(|| session.since.to_rfc3339())
}

fn session_text(daemon: &Daemon, leader: Option<SocketAddr>, since: Timestamp, last_error: Option<String>) -> String {
    let seconds = daemon.env.clock.now().since(since).as_secs();
    match (leader, last_error) {
        (Some(leader), _) => format!("with {leader} for {seconds} s"),
        (None, Some(error)) => format!("none for {seconds} s: {error}"),
        (None, None) => "none yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Nanos, fixture};

    #[test]
    fn a_node_has_as_many_containers_as_tasks_whatever_the_number_of_their_networks() {
        let addresses = [[10, 0, 1, 7], [172, 16, 0, 7], [192, 168, 4, 7]].map(std::net::Ipv4Addr::from).to_vec();
        let node = |attached_tasks| Peer { containers: addresses.clone(), attached_tasks, ..fixture::peer(1) };
        assert_eq!(node_line(&node(Some(1)), true, None, None).containers, 1);
        assert_eq!(node_line(&node(None), true, None, None).containers, 3, "an older manager says no more than the addresses");
    }

    #[test]
    fn a_heartbeat_period_that_is_not_followed_is_named() {
        let warning = |nanos: Option<i64>| {
            let mut spec = ClusterSpec::default();
            spec.dispatcher.heartbeat_period = nanos.map(Nanos);
            heartbeat_warning(&spec)
        };
        for followed in [None, Some(5_000_000_000), Some(10_000_000_000), Some(300_000_000_000)] {
            assert_eq!(warning(followed), None);
        }
        let short = warning(Some(1)).unwrap();
        assert!(short.contains("set to 1ns") && short.contains("as with 5s"), "{short}");
        let long = warning(Some(3_600_000_000_000)).unwrap();
        assert!(long.contains("set to 3600s") && long.contains("as with 300s"), "{long}");
    }

    #[test]
    fn a_view_is_stale_from_the_end_of_the_session_on_once_the_node_is_down() {
        let (ended, node_down) = (Timestamp(1_795_000_000_000_000_000), Duration::from_secs(2));
        let session = |leader| SessionState { leader, since: ended, ..SessionState::default() };
        let stale = |leader: Option<SocketAddr>, after: Duration| stale_since(&session(leader), ended.plus(after), node_down);
        for after in [Duration::ZERO, node_down] {
            assert_eq!(stale(None, after), None, "{after:?}: it may be opened again");
        }
        let just_later = node_down + Duration::from_nanos(1);
        for after in [just_later, Duration::from_hours(24)] {
            assert_eq!(stale(None, after), Some("2026-11-18T11:06:40Z".to_owned()), "{after:?}");
        }
        let leader = Some("[fd00::1]:2377".parse().unwrap());
        assert_eq!(stale(leader, Duration::from_hours(24)), None, "a session");
        let set_back = stale_since(&session(None), Timestamp(0), node_down);
        assert_eq!(set_back, None, "a clock that was set back");
    }

    #[test]
    fn a_certificate_warns_when_its_renewal_fails_when_little_is_left_and_when_it_has_expired() {
        let day = Duration::from_hours(24);
        let start = Timestamp(1_795_000_000_000_000_000);
        let validity = Validity { not_before: start, not_after: start.plus(100 * day) };
        let fails = RenewalState { failures: 3, error: Some("no manager is known".to_owned()) };
        let warning = |days: u32, renewal: &RenewalState| certificate(validity, renewal, start.plus(days * day)).warning;
        assert_eq!(warning(50, &RenewalState::default()), "");
        assert_eq!(warning(60, &fails), "its renewal fails: no manager is known");
        assert!(warning(81, &RenewalState::default()).contains("less than a fifth"));
        assert_eq!(warning(101, &fails), "it has expired: no manager is known");
        assert_eq!(certificate(validity, &fails, start.plus(101 * day)).seconds_left, 0);
    }
}
