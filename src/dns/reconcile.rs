//! The loop: rebuilds the records and opens or closes gateway servers at every change of the node's view.

use super::counts::DnsCounts;
use super::records::Records;
use super::server::{GatewayServer, ServerContext};
use super::{DnsSettings, PORT};
use crate::datapath::{Sockets, ebpf::VipReadiness, sockets::HereSockets};
use crate::model::{NodeId, NodeView, Revision};
use crate::sync::{panic_of, replace_if_changed};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// A change of the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DnsStep {
    /// Start the server at this gateway address.
    Open(Ipv4Addr),
    /// Stop the server at this gateway address.
    Close(Ipv4Addr),
}

/// The steps from the gateway addresses that have a server to those that should have one. Closes first.
#[must_use]
pub fn plan(desired: &BTreeSet<Ipv4Addr>, actual: &BTreeSet<Ipv4Addr>) -> Vec<DnsStep> {
    let close = actual.difference(desired).copied().map(DnsStep::Close);
    let open = desired.difference(actual).copied().map(DnsStep::Open);
    close.chain(open).collect()
}

/// What the loop reads and reports.
pub struct DnsChannels {
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// The containers in which virtual addresses work.
    pub ready: watch::Receiver<VipReadiness>,
    /// Receives the revision of the view that answers follow, once every gateway has a server.
    pub applied: watch::Sender<Revision>,
    pub counts: Arc<DnsCounts>,
}

/// Serves names until `shutdown`, or until it is dropped. `sockets` makes the servers' sockets (in the mesh namespace); sockets to the
/// host's resolvers are made in the namespace of this process.
///
/// The servers have a thread of their own: among the threads of the daemon each question wakes two of them, one to answer it and one to
/// look for more work, which costs as much again as the answer.
pub async fn run(
    me: NodeId,
    channels: DnsChannels,
    sockets: Arc<dyn Sockets>,
    settings: DnsSettings,
    shutdown: CancellationToken,
) {
    let stop = shutdown.child_token();
    let _dropped = stop.clone().drop_guard();
    let thread = tokio::task::spawn_blocking(move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(serve(me, channels, sockets, settings, stop)),
        Err(error) => warn!(%error, "the name servers have no thread"),
    });
    if let Err(error) = thread.await
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

async fn serve(me: NodeId, channels: DnsChannels, sockets: Arc<dyn Sockets>, settings: DnsSettings, shutdown: CancellationToken) {
    let DnsChannels { mut view, mut ready, applied, counts } = channels;
    let (records, reader) = watch::channel(Arc::new(Records::default()));
    let context = Arc::new(ServerContext::new(reader, Arc::new(HereSockets), counts, settings.clone()));
    let mut servers = GatewayServers { sockets, context, open: BTreeMap::new(), errors: BTreeMap::new() };
    let mut built_view: Option<Arc<NodeView>> = None;
    let mut built_ready = ready.borrow_and_update().clone();
    let mut ready_closed = false;
    loop {
        // Without a view (not joined yet, or left) there are no networks: no gateway answers.
        let current = view.borrow_and_update().clone();
        let current_ready = ready.borrow_and_update().clone();
        if current_ready != built_ready || !same_names(built_view.as_deref(), current.as_deref()) {
            // On another thread: this one answers meanwhile.
            let (me, view, ready) = (me.clone(), current.clone(), current_ready.clone());
            let build = move || view.map_or_else(Records::default, |view| Records::build(&me, &view, &ready));
            match tokio::task::spawn_blocking(build).await {
                Ok(built) => drop(records.send_replace(Arc::new(built))),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
            built_ready = current_ready;
        }
        let gateways = current.iter().flat_map(|view| view.networks.by_id.values()).map(|network| network.gateway);
        let all_open = servers.reconcile(&gateways.collect()).await;
        if let Some(current) = &current
            && all_open
        {
            replace_if_changed(&applied, current.revision);
        }
        built_view = current;
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = view.changed() => if changed.is_err() {
                // The sender is dropped: the last view stays in force.
                shutdown.cancelled().await;
                break;
            },
            changed = ready.changed(), if !ready_closed => ready_closed = changed.is_err(),
            () = tokio::time::sleep(settings.retry), if !all_open => {}
            () = panic_of(servers.open.values_mut().map(GatewayServer::loops).collect()) => {}
        }
    }
    servers.close().await;
}

/// The servers that are open, and those that could not be opened.
struct GatewayServers {
    sockets: Arc<dyn Sockets>,
    context: Arc<ServerContext>,
    open: BTreeMap<Ipv4Addr, GatewayServer>,
    /// The last error of each gateway without a server, as logged.
    errors: BTreeMap<Ipv4Addr, String>,
}

impl GatewayServers {
    /// Opens and closes servers. Returns whether every desired gateway has one.
    async fn reconcile(&mut self, desired: &BTreeSet<Ipv4Addr>) -> bool {
        self.errors.retain(|gateway, _| desired.contains(gateway));
        let mut all_open = true;
        for step in plan(desired, &self.open.keys().copied().collect()) {
            match step {
                DnsStep::Close(gateway) => {
                    if let Some(server) = self.open.remove(&gateway) {
                        server.close().await;
                        info!(%gateway, "name server closed");
                    }
                }
                DnsStep::Open(gateway) => match GatewayServer::open(gateway, self.sockets.as_ref(), &self.context) {
                    Ok(server) => {
                        self.open.insert(gateway, server);
                        self.errors.remove(&gateway);
                        info!(%gateway, "name server open");
                    }
                    Err(error) => {
                        all_open = false;
                        self.log_error(gateway, &error);
                    }
                },
            }
        }
        all_open
    }

    /// Logs an error once, and again when it is another one. A new network's gateway has no address at first.
    fn log_error(&mut self, gateway: Ipv4Addr, error: &std::io::Error) {
        let text = error.to_string();
        if self.errors.get(&gateway) == Some(&text) {
            return;
        }
        if error.kind() == std::io::ErrorKind::AddrNotAvailable {
            debug!(%gateway, "the overlay has not added the gateway address yet, the name server waits for it");
        } else {
            warn!(%gateway, port = PORT, %error, "name server cannot listen, tries again");
        }
        self.errors.insert(gateway, text);
    }

    async fn close(self) {
        for server in self.open.into_values() {
            server.close().await;
        }
    }
}

/// Whether two views have equal names. An unchanged part of a view is the same allocation (see `NodeView`).
fn same_names(one: Option<&NodeView>, other: Option<&NodeView>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(&one.networks, &other.networks) && Arc::ptr_eq(&one.tasks, &other.tasks),
        (one, other) => one.is_none() && other.is_none(),
    }
}
