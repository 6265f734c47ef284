//! This manager's connections to the other managers: raft's transport, and the way of proposals to the leader. This manager's store,
//! or its node's view, says where a raft id is.

use crate::manager::known_managers::{is_manager_at, may_speak_for, with_raft_id};
use crate::manager::new_cluster::absent;
use crate::manager::{ApplyOutcome, Forward};
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::view::Peer;
use crate::model::{NodeId, NodeView};
use crate::raft::{Raft, Transport, is_snapshot};
use crate::rpc::{ManagerLink, ManagerLinkConfig};
use crate::store::StoreHandle;
use crate::sync::lock;
use anyhow::Context as _;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::watch;

/// Time for the other managers to say of which incarnation they are, before this one takes part in raft.
const GREETING: Duration = Duration::from_millis(1500);

/// How often nodes are greeted that may be managers of another incarnation. A conflict with one is named for three times as long.
const ABSENT: Duration = Duration::from_secs(10);

/// What the links need of a node that runs.
struct Connected {
    config: Arc<ManagerLinkConfig>,
    peers: watch::Receiver<Option<Arc<NodeView>>>,
    store: StoreHandle,
    raft: Raft<ApplyOutcome>,
}

/// The links. Raft starts before the network: until [`ManagerLinks::connect`], and until the other managers have said of which incarnation
/// of the cluster they are, everything that raft sends is dropped.
#[derive(Default)]
pub(super) struct ManagerLinks {
    connected: OnceLock<Connected>,
    greeted: AtomicBool,
    /// By raft id, which stays with one node and its mesh address.
    links: Mutex<BTreeMap<u64, Arc<ManagerLink>>>,
}

impl ManagerLinks {
    pub(super) fn connect(
        &self,
        config: ManagerLinkConfig,
        peers: watch::Receiver<Option<Arc<NodeView>>>,
        store: StoreHandle,
        raft: Raft<ApplyOutcome>,
    ) {
        let _ = self.connected.set(Connected { config: Arc::new(config), peers, store, raft });
    }

    /// Greets the other managers, then lets raft send.
    pub(super) async fn run(self: Arc<Self>) {
        let Some(connected) = self.connected.get() else { return };
        let me = connected.raft.status().borrow().id;
        let known: Vec<u64> = connected.store.read().nodes().filter_map(|node| Some(node.manager.as_ref()?.raft_id)).collect();
        let others: Vec<_> = known.into_iter().filter(|id| *id != me).filter_map(|id| self.link(id)).collect();
        let greetings = futures_util::future::join_all(others.iter().map(|link| link.greet()));
        let _ = tokio::time::timeout(GREETING, greetings).await;
        self.greeted.store(true, Ordering::SeqCst);
        tokio::select! {
            () = self.end_former(connected) => {}
            () = connected.greet_absent() => {}
        }
    }

    /// Ends the links of managers that are members of raft no more, until raft has stopped.
    async fn end_former(&self, connected: &Connected) {
        let mut status = connected.raft.status();
        let mut members = Vec::new();
        loop {
            let now: Vec<u64> = status.borrow_and_update().members().collect();
            if now != members {
                lock(&self.links).retain(|id, _| now.contains(id) || !members.contains(id));
                members = now;
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// The link to a manager; `None` while it is not known where that is.
    fn link(&self, raft_id: u64) -> Option<Arc<ManagerLink>> {
        let connected = self.connected.get()?;
        let mut links = lock(&self.links);
        if let Some(link) = links.get(&raft_id).filter(|link| !link.has_ended()) {
            return Some(link.clone());
        }
        let manager = connected.manager(raft_id)?;
        let (node, address) = (&manager.node_id, mesh_address(&manager));
        let raft = connected.raft.clone();
        let ended = Arc::new(move || raft.report_ended(raft_id));
        let link = Arc::new(ManagerLink::start(&connected.config, address, node, ended));
        links.insert(raft_id, link.clone());
        Some(link)
    }

    /// The manager with a raft id.
    pub(super) fn manager(&self, raft_id: u64) -> Option<Peer> {
        self.connected.get()?.manager(raft_id)
    }

    /// Whether the node is a manager with this mesh address, as far as this one knows.
    pub(super) fn is_manager(&self, node: &NodeId, address: IpAddr) -> bool {
        let Some(connected) = self.connected.get() else { return false };
        is_manager_at(&connected.store.read(), connected.peers.borrow().as_deref(), node, address)
    }

    /// Whether raft's messages with this id may be the node's.
    pub(super) fn may_speak_for(&self, node: &NodeId, raft_id: u64) -> bool {
        let Some(connected) = self.connected.get() else { return false };
        may_speak_for(&connected.store.read(), connected.peers.borrow().as_deref(), node, raft_id)
    }
}

impl Connected {
    /// Of two managers on each of which a cluster was made of the old one, neither has the other among its managers: without this they would
    /// never hear of each other.
    async fn greet_absent(&self) {
        let mut last: Option<NodeId> = None;
        loop {
            let nodes: Vec<_> = {
                let store = self.store.read();
                let absent = absent(&store, last.as_ref());
                last = absent.last().cloned();
                absent.into_iter().filter_map(|id| Some((node_address(store.node(&id)?.mesh.subnet), id))).collect()
            };
            let ended = Arc::new(|| ());
            let links: Vec<_> = nodes
                .into_iter()
                .map(|(address, id)| {
                    ManagerLink::start(&self.config, SocketAddr::new(IpAddr::V6(address), DEFAULT_PORT), &id, ended.clone())
                })
                .collect();
            let greetings = futures_util::future::join_all(links.iter().map(ManagerLink::greet));
            let _ = tokio::time::timeout(GREETING, greetings).await;
            drop(links);
            tokio::time::sleep(ABSENT).await;
        }
    }

    fn manager(&self, raft_id: u64) -> Option<Peer> {
        with_raft_id(&self.store.read(), self.peers.borrow().as_deref(), raft_id)
    }
}

/// Where a manager serves members.
pub(super) fn mesh_address(manager: &Peer) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(manager.address()), DEFAULT_PORT)
}

impl Transport for ManagerLinks {
    fn send(&self, to: u64, message: Vec<u8>) {
        if self.greeted.load(Ordering::SeqCst)
            && let Some(link) = self.link(to)
        {
            if is_snapshot(&message) {
                link.snapshot(message);
            } else {
                link.raft(message);
            }
        }
    }
}

#[async_trait]
impl Forward for ManagerLinks {
    async fn forward(&self, leader: u64, document: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        let link = self.link(leader).context("it is not known where the leader is")?;
        link.propose(document).await
    }
}
