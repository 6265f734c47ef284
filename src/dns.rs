//! Names: a name server at each network's gateway address. `records` turns the node's view into answers (pure),
//! `message` speaks the wire format, `server` owns the sockets, `forward` asks the world for names that are not ours.
//! This file is the loop that keeps sockets and records at the view.
//!
//! Knows nothing of containers beyond their addresses: who asks is told by the source address, which the mesh
//! namespace guarantees.

pub mod forward;
pub mod message;
pub mod quota;
pub mod records;
pub mod resolv;
pub mod server;

use crate::datapath::{Sockets, ebpf::VipReadiness, sockets::HereSockets};
use crate::model::{NodeId, NodeView, Revision};
use records::Records;
use server::{Gateway, Shared};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// What can be set about the name server.
#[derive(Clone, Debug)]
pub struct DnsSettings {
    /// Where the host's resolvers are listed; read again when it changes.
    pub resolv_conf: PathBuf,
    /// How long one upstream resolver may take. Three of them fit into the 5 s after which stub resolvers ask again.
    pub timeout: Duration,
    /// Foreign questions under way at one time; further ones are answered SERVFAIL at once.
    pub max_in_flight: usize,
    /// The same for one container, so that none can take all of them.
    pub max_per_asker: usize,
    /// TCP connections open at one time.
    pub max_connections: usize,
    /// How long a TCP connection may be silent.
    pub idle: Duration,
    /// Life of our own answers, in seconds. Swarm says 600, which makes clients hold on to tasks that are gone. A task is
    /// stopped as soon as no name server answers it any more, so an answer may not be kept at all: asking again costs a
    /// question to this very host.
    pub ttl: u32,
    /// Pause before a gateway address that could not be bound is tried again: it is there once the overlay has put it.
    pub retry: Duration,
}

impl Default for DnsSettings {
    fn default() -> Self {
        Self {
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            timeout: Duration::from_millis(1500),
            max_in_flight: 1024,
            max_per_asker: 128,
            max_connections: 256,
            idle: Duration::from_secs(10),
            ttl: 0,
            retry: Duration::from_millis(100),
        }
    }
}

/// Port that names are asked at.
pub const PORT: u16 = 53;

/// A change of the sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Answer at this gateway address.
    Open(Ipv4Addr),
    /// Answer there no longer.
    Close(Ipv4Addr),
}

/// What leads from the gateways that are answered to those that should be. Closes first.
#[must_use]
pub fn plan(desired: &BTreeSet<Ipv4Addr>, actual: &BTreeSet<Ipv4Addr>) -> Vec<Step> {
    let close = actual.difference(desired).copied().map(Step::Close);
    let open = desired.difference(actual).copied().map(Step::Open);
    close.chain(open).collect()
}

/// Serves names until `shutdown`. `sockets` makes the servers' sockets (in the mesh namespace); sockets toward foreign
/// resolvers are made where this runs. `ready` says where virtual addresses work. `applied` says which view the answers
/// follow, once every gateway answers.
pub async fn run(
    me: NodeId,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    sockets: Arc<dyn Sockets>,
    mut ready: watch::Receiver<VipReadiness>,
    applied: watch::Sender<Revision>,
    settings: DnsSettings,
    shutdown: CancellationToken,
) {
    let (records, reader) = watch::channel(Arc::new(Records::default()));
    let shared = Arc::new(Shared::new(reader, Arc::new(HereSockets), settings.clone()));
    let mut open: BTreeMap<Ipv4Addr, Gateway> = BTreeMap::new();
    let mut failing: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    let mut seen: Option<Arc<NodeView>> = None;
    let mut virtuals = ready.borrow_and_update().clone();
    let mut readies_end = false;
    loop {
        // No view (any more) is a view without networks: whoever leaves the cluster answers nobody.
        let current = view.borrow_and_update().clone();
        let now = ready.borrow_and_update().clone();
        if now != virtuals || !same_names(seen.as_deref(), current.as_deref()) {
            let built = current.as_ref().map_or_else(Records::default, |view| Records::build(&me, view, &now));
            records.send_replace(Arc::new(built));
            virtuals = now;
        }
        let desired: BTreeSet<Ipv4Addr> =
            current.iter().flat_map(|view| view.networks.by_id.values()).map(|network| network.gateway).collect();
        failing.retain(|gateway, _| desired.contains(gateway));
        let mut retry = false;
        for step in plan(&desired, &open.keys().copied().collect()) {
            match step {
                Step::Close(gateway) => {
                    if let Some(gone) = open.remove(&gateway) {
                        gone.close().await;
                        info!(%gateway, "name server closed");
                    }
                }
                Step::Open(gateway) => match Gateway::open(gateway, sockets.as_ref(), &shared) {
                    Ok(opened) => {
                        open.insert(gateway, opened);
                        failing.remove(&gateway);
                        info!(%gateway, "name server open");
                    }
                    Err(error) => {
                        retry = true;
                        report(&mut failing, gateway, &error);
                    }
                },
            }
        }
        if let Some(current) = &current
            && !retry
        {
            applied.send_if_modified(|revision| std::mem::replace(revision, current.revision) != current.revision);
        }
        seen = current;
        tokio::select! {
            () = shutdown.cancelled() => break,
            changed = view.changed() => if changed.is_err() {
                // No view will come any more; what is there keeps being answered.
                shutdown.cancelled().await;
                break;
            },
            changed = ready.changed(), if !readies_end => readies_end = changed.is_err(),
            () = tokio::time::sleep(settings.retry), if retry => {}
        }
    }
    for gateway in std::mem::take(&mut open).into_values() {
        gateway.close().await;
    }
}

/// Whether two views answer alike. An unchanged part is the same allocation (see `NodeView`).
fn same_names(one: Option<&NodeView>, other: Option<&NodeView>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(&one.networks, &other.networks) && Arc::ptr_eq(&one.tasks, &other.tasks),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Says once what is wrong, and again when it is something else. A missing address is how every network begins.
fn report(failing: &mut BTreeMap<Ipv4Addr, String>, gateway: Ipv4Addr, error: &std::io::Error) {
    let text = error.to_string();
    if failing.get(&gateway) == Some(&text) {
        return;
    }
    if error.kind() == std::io::ErrorKind::AddrNotAvailable {
        debug!(%gateway, "gateway address is not there yet, name server waits for it");
    } else {
        warn!(%gateway, port = PORT, %error, "name server cannot listen, tries again");
    }
    failing.insert(gateway, text);
}
