//! One published port of this node: its listeners and what they share. Closing it closes the listeners; the connections
//! hold what they need and go on.

use super::allow;
use super::datagrams::{self, Door};
use super::plan::{Actual, PortKey};
use super::proxy;
use super::rotation::Rotation;
use super::{PortState, UserspaceSettings};
use crate::datapath::{Sockets, udp::UdpPort};
use crate::model::IpFamily;
use crate::model::{Protocol, view::PublishedPort};
use ipnet::IpNet;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

/// Pause after the kernel refused to accept (out of descriptors or memory).
const BACK_OFF: Duration = Duration::from_millis(50);

/// Numbers of a port.
#[derive(Default, Debug)]
pub struct Counters {
    /// Carried now.
    pub connections: AtomicUsize,
    /// Found no backend.
    pub errors: AtomicU64,
    /// Of sources that may not use the port.
    pub refused: AtomicU64,
}

/// What the connections of a port share.
pub(super) struct Shared {
    pub mesh: Arc<dyn Sockets>,
    pub settings: Arc<UserspaceSettings>,
    pub counters: Counters,
    pub shutdown: CancellationToken,
    route: Mutex<Route>,
    node: OwnAddresses,
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// The node's own addresses.
pub(super) type OwnAddresses = Arc<RwLock<BTreeSet<IpAddr>>>;

/// Where new connections go, and whose.
#[derive(Default)]
struct Route {
    allow: Vec<IpNet>,
    affinity: bool,
    target: u16,
    source: Option<Ipv4Addr>,
    rotation: Rotation,
}

impl Shared {
    fn route(&self) -> std::sync::MutexGuard<'_, Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// The next backend to try and the address to come from. Asked anew for each attempt, so that a backend that was
    /// taken out a moment ago is not tried any more.
    pub fn next(&self, client: IpAddr, tried: &[Ipv4Addr]) -> Option<(SocketAddr, SocketAddr)> {
        let mut route = self.route();
        let source = route.source?;
        let backend = if route.affinity {
            route.rotation.of(client, tried, Instant::now())?
        } else {
            route.rotation.next(tried, Instant::now(), &mut rand::rng())?
        };
        Some(((source, 0).into(), (backend, route.target).into()))
    }
    /// Whether this source may use the port. Who may not is counted.
    pub fn admits(&self, source: IpAddr) -> bool {
        let route = self.route();
        let own = self.node.read().unwrap_or_else(PoisonError::into_inner);
        let admitted = allow::admits(&route.allow, &own, source);
        if !admitted {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
    pub fn failed(&self, backend: Ipv4Addr) {
        self.route().rotation.failed(backend, super::rotation::suspect_until(Instant::now(), self.settings.suspect_for));
    }
    pub fn accepted(&self, backend: Ipv4Addr) {
        self.route().rotation.accepted(backend);
    }
}

/// What all ports of this node have in common.
pub(super) struct Common {
    pub mesh: Arc<dyn Sockets>,
    pub settings: Arc<UserspaceSettings>,
    pub connections: Arc<Semaphore>,
    pub datagrams: Arc<datagrams::Node>,
    pub own: OwnAddresses,
    pub shutdown: CancellationToken,
}

/// A published port.
pub(super) struct Port {
    key: PortKey,
    datagrams: Arc<datagrams::Node>,
    doors: Vec<Arc<Door>>,
    shared: Arc<Shared>,
    route: Option<Arc<PublishedPort>>,
    open: BTreeSet<IpFamily>,
    /// The accept loops; they own the listeners.
    loops: JoinSet<()>,
    taken: BTreeMap<IpFamily, String>,
}

impl Port {
    pub fn new(key: PortKey, common: &Common) -> Self {
        let shared = Shared {
            mesh: Arc::clone(&common.mesh),
            settings: Arc::clone(&common.settings),
            counters: Counters::default(),
            shutdown: common.shutdown.clone(),
            route: Mutex::default(),
            node: Arc::clone(&common.own),
            all: Arc::clone(&common.connections),
            own: Arc::new(Semaphore::new(common.settings.max_connections_per_port)),
        };
        Self {
            key,
            datagrams: Arc::clone(&common.datagrams),
            doors: Vec::new(),
            shared: Arc::new(shared),
            route: None,
            open: BTreeSet::new(),
            loops: JoinSet::new(),
            taken: BTreeMap::new(),
        }
    }

    /// Sends new connections there.
    pub fn route(&mut self, wanted: &Arc<PublishedPort>, rng: &mut impl Rng) {
        let mut route = self.shared.route();
        let backends: Vec<Ipv4Addr> = wanted.backends.iter().map(|b| b.address).collect();
        let elsewhere = std::mem::replace(&mut route.target, wanted.target) != wanted.target;
        route.rotation.set(backends.iter().copied(), rng);
        route.allow.clone_from(&wanted.allow);
        route.affinity = wanted.affinity;
        drop(route);
        if self.key.0 == Protocol::Udp {
            self.datagrams.keep(self.key.1, if elsewhere { &[] } else { &backends });
        }
        self.route = Some(Arc::clone(wanted));
    }

    /// The address that containers see.
    pub fn set_source(&self, source: Option<Ipv4Addr>) {
        self.shared.route().source = source;
    }

    pub fn actual(&self) -> Option<Actual> {
        let route = self.route.clone()?;
        Some(Actual { route, v4: self.open.contains(&IpFamily::V4), v6: self.open.contains(&IpFamily::V6) })
    }

    pub fn state(&self) -> PortState {
        if self.taken.is_empty() {
            return PortState::Listening;
        }
        PortState::Taken(self.taken.values().cloned().collect::<Vec<_>>().join("; "))
    }

    /// Connections or flows carried now.
    pub fn carried(&self) -> usize {
        match self.key.0 {
            Protocol::Udp => self.datagrams.len(self.key.1),
            _ => self.shared.counters.connections.load(Ordering::Relaxed),
        }
    }

    /// Connections and datagrams that found no backend.
    pub fn errors(&self) -> u64 {
        self.shared.counters.errors.load(Ordering::Relaxed)
    }

    /// Connections and datagrams of sources that may not use it.
    pub fn refused(&self) -> u64 {
        self.shared.counters.refused.load(Ordering::Relaxed)
    }

    /// Closes the listeners and waits until they are gone, so that the port can be bound again. Connections go on.
    pub async fn close(mut self) {
        self.loops.shutdown().await;
        for door in self.doors {
            door.close().await;
        }
    }

    /// Listens. On failure the reason, if it is another one than last time.
    pub fn listen(&mut self, family: IpFamily, host: &dyn Sockets) -> Result<(), Option<String>> {
        let (protocol, number) = self.key;
        let at = family.everywhere(number);
        let opened = match protocol {
            Protocol::Tcp => host.listen(at).and_then(TcpListener::from_std).map(|listener| {
                self.loops.spawn(accept(listener, Arc::clone(&self.shared)));
            }),
            Protocol::Udp => host.udp(at).and_then(UdpPort::new).map(|port| {
                let door = Door::new(number, port, Arc::clone(&self.datagrams), Arc::clone(&self.shared));
                self.loops.spawn(datagrams::serve(Arc::clone(&door)));
                self.doors.push(door);
            }),
            Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
        };
        match opened {
            Ok(()) => {
                self.taken.remove(&family);
                self.open.insert(family);
                Ok(())
            }
            Err(error) => {
                let reason = format!("{at}: {error}");
                let known = self.taken.insert(family, reason.clone()).is_some_and(|old| old == reason);
                Err((!known).then_some(reason))
            }
        }
    }
}

/// Runs until aborted. Its connections are spawned on their own and outlive it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                trace!(%peer, "accepted");
                if !shared.admits(peer.ip()) {
                    debug!(%peer, "may not use this port");
                    proxy::reset(&client);
                    continue;
                }
                // One client at most waits here, the others in the backlog.
                let permits = permits(&shared).await;
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
                    proxy::carry(client, peer, &shared).await;
                    shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(permits);
                });
            }
            Err(error) => {
                // A client that is gone already is its own affair; for lack of descriptors waiting helps.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }
}

/// Room for one connection, of the port and of all. `None` never comes: the semaphores are not closed.
async fn permits(shared: &Shared) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
    let own = Arc::clone(&shared.own).acquire_owned().await.ok()?;
    let all = Arc::clone(&shared.all).acquire_owned().await.ok()?;
    Some((own, all))
}
