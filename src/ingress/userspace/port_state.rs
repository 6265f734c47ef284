//! What the listeners, connections and flows of a published port share: where new ones go, who may open them, and counters.

use super::UserspaceSettings;
use super::allow::{AllowList, AllowReader, SharedAllowList};
use super::plan::PortKey;
use super::room::{ConnectionPermit, ConnectionRoom};
use super::rotation::Rotation;
use crate::datapath::Sockets;
use crate::ingress::WaitingRoom;
use crate::ingress::waiting::WaitingPlace;
use crate::model::ServiceId;
use crate::model::view::PublishedPort;
use crate::sync::{lock, read};
use rand::Rng;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The node's own addresses, shared by all ports.
pub(super) type OwnAddresses = Arc<RwLock<BTreeSet<IpAddr>>>;

#[derive(Default, Debug)]
pub(super) struct PortCounters {
    /// Open now.
    pub connections: AtomicUsize,
    /// Connections and datagrams that no backend accepted.
    pub errors: AtomicU64,
    /// Connections and datagrams from sources that are not in the allow list.
    pub refused: AtomicU64,
    /// Connections of clients that had their share of the room.
    pub over_share: AtomicU64,
}

pub(super) struct PortShared {
    pub key: PortKey,
    /// Makes sockets to containers.
    pub mesh: Arc<dyn Sockets>,
    pub settings: Arc<UserspaceSettings>,
    pub counters: PortCounters,
    pub shutdown: CancellationToken,
    pub own_addresses: OwnAddresses,
    /// Room for connections of all ports.
    pub room: Arc<ConnectionRoom>,
    /// From which sources connections and datagrams are accepted.
    pub allow: SharedAllowList,
    pub route: Mutex<PortRoute>,
    /// Where connections wait for a task.
    pub waiting: Arc<WaitingRoom>,
    /// `route` was changed.
    pub rerouted: Notify,
}

/// Where new connections go.
#[derive(Default)]
pub(super) struct PortRoute {
    affinity: bool,
    /// Port in the container.
    target: u16,
    /// The address that containers see, this node's on the network `ingress`. `None`: nothing can be forwarded yet.
    source: Option<Ipv4Addr>,
    rotation: Rotation,
    /// The service, if connections wait for a task of it.
    holds: Option<ServiceId>,
}

impl PortShared {
    /// Makes new connections follow `wanted`. Returns whether the target port changed.
    pub fn set_route(&self, wanted: &PublishedPort, rng: &mut impl Rng) -> bool {
        let mut route = lock(&self.route);
        let target_changed = std::mem::replace(&mut route.target, wanted.target) != wanted.target;
        route.rotation.set(wanted.backends.iter().map(|b| b.address), rng);
        route.affinity = wanted.affinity;
        route.holds = wanted.holds.then(|| wanted.service_id.clone());
        drop(route);
        self.rerouted.notify_waiters();
        target_changed
    }

    /// Accepts what `wanted` allows, and the node's own addresses as they are now.
    pub fn set_allow(&self, wanted: &PublishedPort) {
        self.allow.replace(AllowList::new(&wanted.allow, &read(&self.own_addresses)));
    }

    /// A place where a connection waits for a task. `None`: it does not, or there are too many.
    pub fn wait(&self) -> Option<WaitingPlace> {
        let service = lock(&self.route).holds.clone()?;
        self.waiting.enter(&service)
    }

    pub fn set_source(&self, source: Option<Ipv4Addr>) {
        lock(&self.route).source = source;
    }

    /// Selects the source address and the backend of the next attempt. Called for each attempt, so that a backend that was
    /// removed a moment ago is not tried any more.
    pub fn select_backend(&self, client: IpAddr, tried: &[Ipv4Addr]) -> Option<(SocketAddr, SocketAddr)> {
        let mut route = lock(&self.route);
        let source = route.source?;
        let backend = if route.affinity {
            route.rotation.for_client(client, tried, Instant::now())?
        } else {
            route.rotation.next(tried, Instant::now(), &mut rand::rng())?
        };
        Some(((source, 0).into(), (backend, route.target).into()))
    }

    /// Whether this source may use the port. Counts the refusals.
    pub fn admits(&self, reader: &mut AllowReader, source: IpAddr) -> bool {
        let admitted = reader.admits(&self.allow, source);
        if !admitted {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    /// Waits until this source may not use the port any more, which is counted as a refusal.
    pub async fn lost_right(&self, source: IpAddr) {
        self.allow.excludes(source).await;
        self.counters.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The backend did not accept: it is tried last for a while.
    pub fn failed(&self, backend: Ipv4Addr) {
        lock(&self.route).rotation.failed(backend, Instant::now() + self.settings.suspect_for);
    }

    pub fn accepted(&self, backend: Ipv4Addr) {
        lock(&self.route).rotation.accepted(backend);
    }

    /// Waits for room for one connection. `None`: this client has its share, which is counted.
    pub async fn permit(&self, client: IpAddr) -> Option<ConnectionPermit> {
        let permit = self.room.permit(self.key, client).await.ok();
        if permit.is_none() {
            self.counters.over_share.fetch_add(1, Ordering::Relaxed);
        }
        permit
    }
}
