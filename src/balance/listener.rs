//! One published port of this node: its listeners and what they share. Closing it closes the listeners; the connections
//! hold what they need and go on.

use super::plan::{Actual, Family};
use super::proxy;
use super::rotation::Rotation;
use super::{BalanceSettings, PortState};
use crate::datapath::Sockets;
use crate::model::view::PublishedPort;
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
}

/// What the connections of a port share.
pub(super) struct Shared {
    pub mesh: Arc<dyn Sockets>,
    pub settings: Arc<BalanceSettings>,
    pub counters: Counters,
    pub shutdown: CancellationToken,
    route: Mutex<Route>,
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
}

/// Where new connections go.
#[derive(Default)]
struct Route {
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
    pub fn next(&self, tried: &[Ipv4Addr]) -> Option<(SocketAddr, SocketAddr)> {
        let mut route = self.route();
        let source = route.source?;
        let backend = route.rotation.next(tried, Instant::now(), &mut rand::rng())?;
        Some(((source, 0).into(), (backend, route.target).into()))
    }
    pub fn failed(&self, backend: Ipv4Addr) {
        self.route().rotation.failed(backend, super::rotation::suspect_until(Instant::now(), self.settings.suspect_for));
    }
    pub fn accepted(&self, backend: Ipv4Addr) {
        self.route().rotation.accepted(backend);
    }
}

/// A published port.
pub(super) struct Port {
    shared: Arc<Shared>,
    route: Option<PublishedPort>,
    open: BTreeSet<Family>,
    /// The accept loops; they own the listeners.
    loops: JoinSet<()>,
    taken: BTreeMap<Family, String>,
}

impl Port {
    pub fn new(
        mesh: &Arc<dyn Sockets>,
        all: &Arc<Semaphore>,
        settings: &Arc<BalanceSettings>,
        shutdown: &CancellationToken,
    ) -> Self {
        let shared = Shared {
            mesh: Arc::clone(mesh),
            settings: Arc::clone(settings),
            counters: Counters::default(),
            shutdown: shutdown.clone(),
            route: Mutex::default(),
            all: Arc::clone(all),
            own: Arc::new(Semaphore::new(settings.max_connections_per_port)),
        };
        Self { shared: Arc::new(shared), route: None, open: BTreeSet::new(), loops: JoinSet::new(), taken: BTreeMap::new() }
    }

    /// Sends new connections there.
    pub fn route(&mut self, wanted: &PublishedPort, rng: &mut impl Rng) {
        let mut route = self.shared.route();
        route.target = wanted.target;
        route.rotation.set(wanted.backends.iter().map(|b| b.address), rng);
        drop(route);
        self.route = Some(wanted.clone());
    }

    /// The address that containers see.
    pub fn set_source(&self, source: Option<Ipv4Addr>) {
        self.shared.route().source = source;
    }

    pub fn actual(&self) -> Option<Actual> {
        let route = self.route.clone()?;
        Some(Actual { route, v4: self.open.contains(&Family::V4), v6: self.open.contains(&Family::V6) })
    }

    pub fn state(&self) -> PortState {
        if self.taken.is_empty() {
            return PortState::Listening;
        }
        PortState::Taken(self.taken.values().cloned().collect::<Vec<_>>().join("; "))
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Closes the listeners and waits until they are gone, so that the port can be bound again. Connections go on.
    pub async fn close(mut self) {
        self.loops.shutdown().await;
    }

    /// Listens. On failure the reason, if it is another one than last time.
    pub fn listen(&mut self, port: u16, family: Family, host: &dyn Sockets) -> Result<(), Option<String>> {
        let at = family.everywhere(port);
        match host.listen(at).and_then(TcpListener::from_std) {
            Ok(listener) => {
                self.taken.remove(&family);
                self.loops.spawn(accept(listener, Arc::clone(&self.shared)));
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
