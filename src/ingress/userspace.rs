//! Published ports in user space: a listener per port on every node, whatever runs where. `plan` says what changes
//! (pure), `allow` who may use a port (pure), `rotation` which backend is next (pure), `flows` which UDP client talks to
//! which one (pure), `listener` accepts, `proxy` carries one connection, `datagrams` the UDP flows, `listens` finds out which
//! containers listen. This file is the loop that keeps the listeners at the view.
//!
//! TCP and UDP; no SCTP. Knows nothing of services beyond the ports they publish.

pub mod allow;
mod datagrams;
pub mod flows;
mod listener;
pub mod plan;
mod proxy;
pub mod rotation;

use super::{PortState, PortStatus};
use crate::datapath::{Sockets, interfaces};
use crate::model::IpFamily;
use crate::model::{
    NodeId, NodeView, Protocol, Revision,
    view::{ClusterPart, PublishedPort},
};
use listener::{Common, Port};
use plan::{Actual, PortKey, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// What can be set about published ports.
#[derive(Clone, Debug)]
pub struct UserspaceSettings {
    /// How long a backend may take to accept before the next one is tried.
    pub connect_timeout: Duration,
    /// How long a backend that did not accept is asked last. Longer than it takes the managers to notice a dead node.
    pub suspect_for: Duration,
    /// Connections carried at one time, all ports together; further clients wait in the kernel's backlog.
    pub max_connections: usize,
    /// The same for one port, so that none can take all of them.
    pub max_connections_per_port: usize,
    /// UDP flows (a client's datagrams to one port), all ports together. When full the longest idle one makes room.
    pub max_flows: usize,
    /// The same for one port.
    pub max_flows_per_port: usize,
    /// A UDP flow without a datagram in either direction for so long is over.
    pub flow_idle: Duration,
    /// How long answers of a backend still come through after its flows moved to another one.
    pub flow_linger: Duration,
    /// Silence after which the kernel asks whether the other end still lives. Nothing idle is cut while both ends do.
    pub keepalive: Duration,
    /// The slow tick: ports that are taken are tried again, counters published.
    pub tick: Duration,
}

impl Default for UserspaceSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            suspect_for: Duration::from_secs(5),
            max_connections: 16_384,
            max_connections_per_port: 8_192,
            max_flows: 16_384,
            max_flows_per_port: 8_192,
            flow_idle: Duration::from_mins(1),
            flow_linger: Duration::from_secs(2),
            keepalive: Duration::from_mins(1),
            tick: Duration::from_secs(1),
        }
    }
}

impl std::fmt::Display for PortState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listening => f.write_str("listening"),
            Self::Taken(reason) => write!(f, "taken ({reason})"),
            Self::Unsupported => f.write_str("neither TCP nor UDP: not served"),
        }
    }
}

/// Serves published ports until `shutdown`. `host` makes the listeners, `mesh` the sockets toward the containers.
/// `applied` says which view new connections follow; a taken port does not hold it back, `status` names it.
#[expect(clippy::too_many_arguments, reason = "the loop's edges, all of them named by the composition root")]
pub async fn run(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    me: NodeId,
    host: Arc<dyn Sockets>,
    mesh: Arc<dyn Sockets>,
    applied: watch::Sender<Revision>,
    status: watch::Sender<Vec<PortStatus>>,
    settings: UserspaceSettings,
    shutdown: CancellationToken,
) {
    let limits = flows::Limits { all: settings.max_flows, per_port: settings.max_flows_per_port, idle: settings.flow_idle };
    let common = Common {
        mesh,
        connections: Arc::new(Semaphore::new(settings.max_connections)),
        datagrams: datagrams::Node::new(limits),
        own: Arc::default(),
        settings: Arc::new(settings),
        shutdown,
    };
    let mut ports: BTreeMap<PortKey, Port> = BTreeMap::new();
    let mut over = false;
    loop {
        // No view (any more) is a view without ports: whoever leaves the cluster gives its ports back.
        let current = view.borrow_and_update().clone();
        let desired = current.as_ref().map_or(&[][..], |view| &view.cluster.ports);
        let source = current.as_ref().and_then(|view| view.cluster.node(&me)).map(|node| node.ingress_addr);
        common.datagrams.set_own(current.as_ref().map(|view| own(&view.cluster)).unwrap_or_default());
        if desired.iter().any(|port| !port.allow.is_empty()) {
            own_addresses(&common).await;
        }
        let actual = ports.iter().filter_map(|(port, p)| Some((*port, p.actual()?))).collect();
        for step in plan::plan(desired, &actual) {
            execute(step, &mut ports, host.as_ref(), source, &common).await;
        }
        for port in ports.values() {
            port.set_source(source);
        }
        if let Some(current) = &current {
            applied.send_if_modified(|revision| std::mem::replace(revision, current.revision) != current.revision);
        }
        common.datagrams.expire();
        publish(&status, desired, &ports);
        tokio::select! {
            () = common.shutdown.cancelled() => break,
            changed = view.changed(), if !over => over = changed.is_err(),
            () = tokio::time::sleep(common.settings.tick) => {}
        }
    }
    for port in ports.into_values() {
        port.close().await;
    }
}

/// Where this swarm's own published ports speak from.
fn own(cluster: &ClusterPart) -> datagrams::Own {
    let udp = cluster.ports.iter().filter(|p| p.protocol == Protocol::Udp);
    datagrams::Own {
        nodes: cluster.nodes.iter().flat_map(|n| &n.endpoints).map(|e| e.ip().to_canonical()).collect(),
        ports: udp.map(|p| p.published).collect(),
    }
}

/// Finds out which addresses are the node's own; what was known stays if the kernel does not say.
async fn own_addresses(common: &Common) {
    match interfaces::host_addresses().await {
        Ok(all) => {
            let now: BTreeSet<IpAddr> = all.into_iter().map(|a| a.address).collect();
            *common.own.write().unwrap_or_else(std::sync::PoisonError::into_inner) = now;
        }
        Err(error) => warn!(error = format!("{error:#}"), "cannot read the node's own addresses, which may use every port"),
    }
}

/// Carries out one step. Infallible: what the kernel refuses is kept with the port and tried again at the next plan.
async fn execute(step: Step, ports: &mut BTreeMap<PortKey, Port>, host: &dyn Sockets, source: Option<Ipv4Addr>, common: &Common) {
    let name = |(protocol, port): PortKey| format!("{port}/{}", protocol.as_str());
    match step {
        Step::Close(published) => {
            if let Some(port) = ports.remove(&published) {
                port.close().await;
            }
            info!(port = name(published), "published port closed");
        }
        Step::Route(wanted) => {
            let key = (wanted.protocol, wanted.published);
            let port = ports.entry(key).or_insert_with(|| Port::new(key, common));
            port.set_source(source);
            port.route(&wanted, &mut rand::rng());
        }
        Step::Listen(published, family) => {
            let Some(port) = ports.get_mut(&published) else { return };
            match port.listen(family, host) {
                Ok(()) => info!(port = name(published), ?family, "published port open"),
                Err(Some(reason)) => {
                    warn!(port = name(published), %reason, "published port cannot be opened here, tries again; see `ss -lntup`");
                }
                // Said already.
                Err(None) => {}
            }
        }
    }
}

fn publish(status: &watch::Sender<Vec<PortStatus>>, desired: &[Arc<PublishedPort>], ports: &BTreeMap<PortKey, Port>) {
    let now: Vec<PortStatus> = desired
        .iter()
        .map(|wanted| {
            let port = ports.get(&(wanted.protocol, wanted.published));
            PortStatus {
                protocol: wanted.protocol,
                port: wanted.published,
                service: wanted.service_name.clone(),
                state: port.map_or(PortState::Unsupported, Port::state),
                backends: wanted.backends.len(),
                connections: port.map_or(0, Port::carried),
                errors: port.map_or(0, Port::errors),
                refused: port.map_or(0, Port::refused),
            }
        })
        .collect();
    status.send_if_modified(|old| {
        let changed = *old != now;
        *old = now;
        changed
    });
}

impl IpFamily {
    /// The address that answers on every interface.
    fn everywhere(self, port: u16) -> std::net::SocketAddr {
        match self {
            Self::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
            Self::V6 => (std::net::Ipv6Addr::UNSPECIFIED, port).into(),
        }
    }
}

/// What [`plan::plan`] compares with.
pub type ActualPorts = BTreeMap<PortKey, Actual>;
