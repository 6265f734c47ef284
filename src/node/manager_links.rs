//! This manager's connections to the other managers: raft's transport, and the way of proposals to the leader. The view, or
//! before there is one this manager's store, says where a raft id is.

use crate::manager::Forward;
use crate::model::mesh::{DEFAULT_PORT, node_address};
use crate::model::{NodeId, NodeView};
use crate::raft::Transport;
use crate::rpc::{ManagerLink, ManagerLinkConfig};
use crate::store::StoreHandle;
use crate::sync::lock;
use anyhow::Context as _;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::watch;

/// Where a manager is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct ManagerAddress {
    node: NodeId,
    address: SocketAddr,
}

/// What the links need of a node that runs.
struct Connected {
    config: Arc<ManagerLinkConfig>,
    peers: watch::Receiver<Option<Arc<NodeView>>>,
    store: StoreHandle,
}

/// The links. Raft starts before the network: until [`ManagerLinks::connect`] everything is dropped.
#[derive(Default)]
pub(super) struct ManagerLinks {
    connected: OnceLock<Connected>,
    links: Mutex<BTreeMap<u64, (ManagerAddress, Arc<ManagerLink>)>>,
}

impl ManagerLinks {
    pub(super) fn connect(&self, config: ManagerLinkConfig, peers: watch::Receiver<Option<Arc<NodeView>>>, store: StoreHandle) {
        let _ = self.connected.set(Connected { config: Arc::new(config), peers, store });
    }

    /// The link to a manager; `None` while it is not known where that is.
    fn link(&self, raft_id: u64) -> Option<Arc<ManagerLink>> {
        let connected = self.connected.get()?;
        let address = connected.address_of(raft_id)?;
        let mut links = lock(&self.links);
        if let Some((known, link)) = links.get(&raft_id)
            && *known == address
        {
            return Some(link.clone());
        }
        let link = Arc::new(ManagerLink::start(connected.config.clone(), address.address, address.node.clone()));
        links.insert(raft_id, (address, link.clone()));
        Some(link)
    }

    /// Whether the node is a manager, as far as this one knows.
    pub(super) fn is_manager(&self, node: &NodeId) -> bool {
        let Some(connected) = self.connected.get() else { return false };
        if let Some(stored) = connected.store.read().node(node) {
            return stored.manager.is_some();
        }
        // A manager that has just joined has an empty store.
        connected.peers.borrow().as_ref().and_then(|view| Some(view.cluster.node(node)?.manager)).unwrap_or(false)
    }
}

impl Connected {
    fn address_of(&self, raft_id: u64) -> Option<ManagerAddress> {
        let at = |node: &NodeId, subnet| ManagerAddress {
            node: node.clone(),
            address: SocketAddr::new(IpAddr::V6(node_address(subnet)), DEFAULT_PORT),
        };
        let store = self.store.read();
        let stored = store.nodes().find(|node| node.manager.as_ref().is_some_and(|m| m.raft_id == raft_id));
        stored.map(|node| at(&node.id, node.mesh.subnet)).or_else(|| {
            let view = self.peers.borrow();
            let peer = view.as_ref()?.cluster.nodes.iter().find(|peer| peer.raft_id == Some(raft_id))?;
            Some(at(&peer.node_id, peer.subnet))
        })
    }
}

impl Transport for ManagerLinks {
    fn send(&self, to: u64, message: Vec<u8>) {
        if let Some(link) = self.link(to) {
            link.raft(message);
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
