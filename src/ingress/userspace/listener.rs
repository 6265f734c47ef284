//! One published port of this node: opens and closes its listeners. TCP connections that are open when the port is closed
//! continue; they hold what they need.

use super::UserspaceSettings;
use super::allow::{AllowReader, SharedAllowList};
use super::datagrams::{self, UdpListener, UdpShared};
use super::plan::{ActualPort, PortKey};
use super::port_state::{OwnAddresses, PortCounters, PortShared};
use super::proxy;
use super::room::ConnectionRoom;
use crate::datapath::sockets::set_refusing;
use crate::datapath::{Sockets, udp::UdpPort};
use crate::ingress::{PortState, WaitingRoom};
use crate::model::{IpFamily, Protocol, view::PublishedPort};
use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

/// Pause after the kernel could not accept a connection (out of descriptors or memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all ports of this node share.
pub(super) struct NodeContext {
    /// Makes sockets to containers.
    pub mesh: Arc<dyn Sockets>,
    pub settings: Arc<UserspaceSettings>,
    /// Room for connections of all ports.
    pub connections: Arc<ConnectionRoom>,
    pub udp: Arc<UdpShared>,
    pub own_addresses: OwnAddresses,
    pub waiting: Arc<WaitingRoom>,
    pub shutdown: CancellationToken,
}

/// Why a listener could not be opened.
pub(super) enum ListenError {
    /// Address and error, not reported before.
    New(String),
    /// As at the last attempt.
    Unchanged,
}

/// A published port with its listeners.
pub(super) struct PortListener {
    key: PortKey,
    udp: Arc<UdpShared>,
    shared: Arc<PortShared>,
    /// What new connections follow; `None` until [`Self::set_route`].
    route: Option<Arc<PublishedPort>>,
    open: BTreeSet<IpFamily>,
    /// Address and error of the families whose listener could not be opened.
    failed: BTreeMap<IpFamily, String>,
    /// The sockets refuse clients: no task could serve them.
    refuses: bool,
    /// The accept and receive loops.
    loops: JoinSet<()>,
    tcp_listeners: Vec<Arc<TcpListener>>,
    udp_listeners: Vec<Arc<UdpListener>>,
}

impl PortListener {
    pub fn new(key: PortKey, context: &NodeContext) -> Self {
        let shared = PortShared {
            key,
            mesh: Arc::clone(&context.mesh),
            settings: Arc::clone(&context.settings),
            counters: PortCounters::default(),
            shutdown: context.shutdown.clone(),
            own_addresses: Arc::clone(&context.own_addresses),
            room: Arc::clone(&context.connections),
            allow: SharedAllowList::default(),
            route: Mutex::default(),
            waiting: Arc::clone(&context.waiting),
            rerouted: Notify::new(),
        };
        Self {
            key,
            udp: Arc::clone(&context.udp),
            shared: Arc::new(shared),
            route: None,
            open: BTreeSet::new(),
            failed: BTreeMap::new(),
            refuses: false,
            loops: JoinSet::new(),
            tcp_listeners: Vec::new(),
            udp_listeners: Vec::new(),
        }
    }

    /// Makes new connections follow `wanted`; UDP flows to a backend or target port that is no longer wanted move.
    pub fn set_route(&mut self, wanted: &Arc<PublishedPort>, rng: &mut impl Rng) {
        if self.route.as_ref().is_none_or(|route| route.allow != wanted.allow) {
            self.shared.set_allow(wanted);
        }
        let target_changed = self.shared.set_route(wanted, rng);
        if self.key.0 == Protocol::Udp {
            let backends: Vec<Ipv4Addr> = wanted.backends.iter().map(|b| b.address).collect();
            self.udp.retain_flows(self.key.1, if target_changed { &[] } else { &backends });
        }
        self.route = Some(Arc::clone(wanted));
    }

    /// Sets the address that containers see.
    pub fn set_source(&self, source: Option<Ipv4Addr>) {
        self.shared.set_source(source);
    }

    /// Follows the node's own addresses, which may use the port whatever its allow list.
    pub fn refresh_allow(&self) {
        if let Some(route) = &self.route {
            self.shared.set_allow(route);
        }
    }

    pub fn actual(&self) -> Option<ActualPort> {
        let route = self.route.clone()?;
        Some(ActualPort {
            route,
            v4: self.open.contains(&IpFamily::V4),
            v6: self.open.contains(&IpFamily::V6),
            refuses: self.refuses,
        })
    }

    pub fn state(&self) -> PortState {
        if self.failed.is_empty() {
            return PortState::Listening;
        }
        PortState::Taken(self.failed.values().cloned().collect::<Vec<_>>().join("; "))
    }

    /// Families whose listener is open.
    pub fn open_families(&self) -> impl Iterator<Item = IpFamily> + '_ {
        self.open.iter().copied()
    }

    /// Number of open connections or flows.
    pub fn open_connections(&self) -> usize {
        match self.key.0 {
            Protocol::Udp => self.udp.flow_count(self.key.1),
            _ => self.shared.counters.connections.load(Ordering::Relaxed),
        }
    }

    pub fn errors(&self) -> u64 {
        self.shared.counters.errors.load(Ordering::Relaxed)
    }

    pub fn refused(&self) -> u64 {
        self.shared.counters.refused.load(Ordering::Relaxed)
    }

    pub fn over_share(&self) -> u64 {
        self.shared.counters.over_share.load(Ordering::Relaxed)
    }

    /// Makes the kernel refuse clients, with RST and "port unreachable", or serve them again. The port stays bound. A UDP
    /// port whose flows have not ended yet stays as it is: their last replies leave by its socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_refusing(&mut self, refuse: bool) -> io::Result<()> {
        if refuse && self.udp_listeners.iter().any(|listener| listener.has_flows()) {
            return Ok(());
        }
        self.refuses = refuse;
        self.tcp_listeners.iter().try_for_each(|listener| set_refusing(listener.as_ref(), refuse))?;
        self.udp_listeners.iter().try_for_each(|listener| listener.set_refusing(refuse))
    }

    /// For who looks after them.
    pub fn loops(&mut self) -> &mut JoinSet<()> {
        &mut self.loops
    }

    /// Closes the listeners and waits until that is done, so that the port can be bound again. Connections continue.
    pub async fn close(mut self) {
        self.loops.shutdown().await;
        for listener in self.udp_listeners {
            listener.close().await;
        }
    }

    /// Opens the listener of a family.
    pub fn listen(&mut self, family: IpFamily, host: &dyn Sockets) -> Result<(), ListenError> {
        let (protocol, number) = self.key;
        let address = unspecified_address(family, number);
        let opened = match protocol {
            Protocol::Tcp => self.listen_tcp(host, address),
            Protocol::Udp => self.listen_udp(host, address),
            Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
        };
        match opened {
            Ok(()) => {
                self.failed.remove(&family);
                self.open.insert(family);
                Ok(())
            }
            Err(error) => {
                let reason = format!("{address}: {error}");
                let before = self.failed.insert(family, reason.clone());
                Err(if before.as_ref() == Some(&reason) { ListenError::Unchanged } else { ListenError::New(reason) })
            }
        }
    }

    fn listen_tcp(&mut self, host: &dyn Sockets, address: SocketAddr) -> io::Result<()> {
        let listener = host.listen(address)?;
        if self.refuses {
            set_refusing(&listener, true)?;
        }
        let listener = Arc::new(TcpListener::from_std(listener)?);
        self.loops.spawn(accept(Arc::clone(&listener), Arc::clone(&self.shared)));
        self.tcp_listeners.push(listener);
        Ok(())
    }

    fn listen_udp(&mut self, host: &dyn Sockets, address: SocketAddr) -> io::Result<()> {
        let port = UdpPort::new(host.udp(address)?)?;
        let listener = UdpListener::new(self.key.1, port, Arc::clone(&self.udp), Arc::clone(&self.shared));
        if self.refuses {
            listener.set_refusing(true)?;
        }
        self.loops.spawn(datagrams::serve(Arc::clone(&listener)));
        self.udp_listeners.push(listener);
        Ok(())
    }
}

/// The address that a listener on every interface binds to.
fn unspecified_address(family: IpFamily, port: u16) -> SocketAddr {
    match family {
        IpFamily::V4 => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpFamily::V6 => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Runs until aborted. The connections are spawned separately and outlive it.
async fn accept(listener: Arc<TcpListener>, shared: Arc<PortShared>) {
    let mut allow = AllowReader::new(&shared.allow);
    loop {
        match listener.accept().await {
            Ok((client, peer)) => {
                trace!(%peer, "accepted");
                if !shared.admits(&mut allow, peer.ip()) {
                    debug!(%peer, "the source is not in the port's allow list");
                    proxy::reset_on_close(&client);
                    continue;
                }
                // At most one client waits here, further ones in the backlog.
                let Some(permit) = shared.permit(peer.ip()).await else {
                    debug!(%peer, "the client has its share of the connections");
                    proxy::reset_on_close(&client);
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    shared.counters.connections.fetch_add(1, Ordering::Relaxed);
                    proxy::carry(client, peer, &shared).await;
                    shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(permit);
                });
            }
            Err(error) => {
                // A client that closed before it was accepted needs no pause; a lack of descriptors does.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    debug!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}
