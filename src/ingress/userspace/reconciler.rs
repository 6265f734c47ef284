//! The loop that keeps the listeners as the view requires.

use super::datagrams::{OwnEndpoints, UdpShared};
use super::flows::FlowLimits;
use super::listener::{ListenError, NodeContext, PortListener};
use super::plan::{ActualPorts, PortKey, PortStep, plan};
use super::room::ConnectionRoom;
use super::{UserspaceChannels, UserspaceSettings, UserspaceSockets};
use crate::datapath::{Sockets, interfaces};
use crate::ingress::{HeldPorts, PortState, PortStatus};
use crate::model::view::{ClusterPart, Peer, PublishedPort};
use crate::model::{NodeId, NodeView, Protocol};
use crate::sync::{panic_of, read, replace_if_changed, write};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Serves published ports until `shutdown`; then closes the listeners and resets the open connections.
pub async fn run(
    mut channels: UserspaceChannels,
    me: NodeId,
    sockets: UserspaceSockets,
    settings: UserspaceSettings,
    shutdown: CancellationToken,
) {
    let limits = FlowLimits {
        total: settings.max_flows,
        per_port: settings.max_flows_per_port,
        per_source: settings.max_flows_per_source,
        idle: settings.flow_idle,
    };
    let context = NodeContext {
        mesh: sockets.mesh,
        connections: ConnectionRoom::new(settings.max_connections, settings.max_connections_per_port),
        udp: UdpShared::new(limits),
        own_addresses: Arc::default(),
        waiting: Arc::clone(&channels.waiting),
        settings: Arc::new(settings),
        shutdown,
    };
    let mut reconciler = PortReconciler { me, host: sockets.host, context, ports: BTreeMap::new() };
    let mut view_closed = false;
    loop {
        let view = channels.view.borrow_and_update().clone();
        reconciler.reconcile(view.as_deref(), &channels).await;
        tokio::select! {
            () = reconciler.context.shutdown.cancelled() => break,
            changed = channels.view.changed(), if !view_closed => view_closed = changed.is_err(),
            () = tokio::time::sleep(reconciler.context.settings.tick) => {}
            () = panic_of(reconciler.ports.values_mut().map(PortListener::loops).collect()) => {}
        }
    }
    for port in reconciler.ports.into_values() {
        port.close().await;
    }
}

struct PortReconciler {
    me: NodeId,
    host: Arc<dyn Sockets>,
    context: NodeContext,
    ports: BTreeMap<PortKey, PortListener>,
}

impl PortReconciler {
    /// One pass. No view is treated as a view without ports: a node that leaves the cluster closes its ports.
    async fn reconcile(&mut self, view: Option<&NodeView>, channels: &UserspaceChannels) {
        let desired = view.map_or(&[][..], |view| &view.cluster.ports);
        let source = view.and_then(|view| view.cluster.node(&self.me)).map(|node| node.ingress_addr);
        self.context.udp.set_own_endpoints(view.map(|view| own_endpoints(&view.cluster)).unwrap_or_default());
        if desired.iter().any(|port| !port.allow.is_empty()) {
            self.read_own_addresses().await;
        }
        let actual: ActualPorts = self.ports.iter().filter_map(|(key, port)| Some((*key, port.actual()?))).collect();
        for step in plan(desired, &actual) {
            self.execute(step, source).await;
        }
        for port in self.ports.values() {
            port.set_source(source);
        }
        if let Some(view) = view {
            replace_if_changed(&channels.held, Some(Arc::new(self.held())));
            replace_if_changed(&channels.applied, view.revision);
        }
        self.context.udp.expire();
        replace_if_changed(&channels.status, self.status(desired));
    }

    /// Reads the node's own addresses, from which every port may be used. If that fails the last ones stay.
    async fn read_own_addresses(&self) {
        match interfaces::host_addresses().await {
            Ok(all) => {
                let addresses: BTreeSet<IpAddr> = all.into_iter().map(|a| a.address).collect();
                if *read(&self.context.own_addresses) != addresses {
                    *write(&self.context.own_addresses) = addresses;
                    self.ports.values().for_each(PortListener::refresh_allow);
                }
            }
            Err(error) => warn!(
                error = format!("{error:#}"),
                "cannot read the node's own addresses, from which every published port may be used"
            ),
        }
    }

    /// Executes one step. Infallible: an error of the kernel is kept with the port, and the next plan tries again.
    async fn execute(&mut self, step: PortStep, source: Option<Ipv4Addr>) {
        let name = |(protocol, port): PortKey| format!("{port}/{}", protocol.as_str());
        match step {
            PortStep::Close(key) => {
                if let Some(port) = self.ports.remove(&key) {
                    port.close().await;
                }
                info!(port = name(key), "published port closed");
            }
            PortStep::Route(wanted) => {
                let key = (wanted.protocol, wanted.published);
                let port = self.ports.entry(key).or_insert_with(|| PortListener::new(key, &self.context));
                port.set_source(source);
                port.set_route(&wanted, &mut rand::rng());
            }
            PortStep::Refuse(key) | PortStep::Serve(key) => {
                let Some(port) = self.ports.get_mut(&key) else { return };
                let refuse = matches!(step, PortStep::Refuse(_));
                if let Err(error) = port.set_refusing(refuse) {
                    warn!(port = name(key), refuse, %error, "cannot change whether the kernel refuses clients of the port");
                }
            }
            PortStep::Listen(key, family) => {
                let Some(port) = self.ports.get_mut(&key) else { return };
                match port.listen(family, self.host.as_ref()) {
                    Ok(()) => info!(port = name(key), ?family, "published port open"),
                    Err(ListenError::New(reason)) => {
                        warn!(port = name(key), %reason, "cannot open the published port, tries again; see `ss -lntup`");
                    }
                    Err(ListenError::Unchanged) => {}
                }
            }
        }
    }

    fn held(&self) -> HeldPorts {
        let families =
            self.ports.iter().flat_map(|((protocol, port), listener)| listener.open_families().map(|f| (*protocol, *port, f)));
        families.collect()
    }

    fn status(&self, desired: &[Arc<PublishedPort>]) -> Vec<PortStatus> {
        let status = |wanted: &Arc<PublishedPort>| {
            let port = self.ports.get(&(wanted.protocol, wanted.published));
            PortStatus {
                protocol: wanted.protocol,
                port: wanted.published,
                service: wanted.service_name.clone(),
                state: port.map_or(PortState::Unsupported, PortListener::state),
                backends: wanted.backends.len(),
                connections: port.map_or(0, PortListener::open_connections),
                errors: port.map_or(0, PortListener::errors),
                refused: port.map_or(0, PortListener::refused),
                over_share: port.map_or(0, PortListener::over_share),
            }
        };
        desired.iter().map(status).collect()
    }
}

/// The addresses and ports that this swarm's published UDP ports send from.
fn own_endpoints(cluster: &ClusterPart) -> OwnEndpoints {
    let udp = cluster.ports.iter().filter(|p| p.protocol == Protocol::Udp);
    OwnEndpoints {
        nodes: cluster.nodes.iter().flat_map(Peer::known_addresses).collect(),
        ports: udp.map(|p| p.published).collect(),
    }
}
