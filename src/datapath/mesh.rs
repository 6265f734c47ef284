//! The mesh namespace: a network namespace for skep alone, pinned by a bind mount, that contains the tunnel device and the
//! mesh ends of all containers' veths. This file creates or adopts it, observes its contents and applies steps; `overlay`
//! decides on the contents.

use anyhow::Context;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard, Notify};

use super::netlink::{Netlink, ignore_existing, ignore_missing};
use super::{Sockets, netns, sockets, sysctl};
use crate::model::mesh::DEFAULT_PORT;

pub mod base;
mod known;
mod state;
pub(super) mod wire;

use known::KnownState;
pub use state::{
    LINK_LOCAL, LOCAL, MAIN, MeshLink, MeshRoute, MeshRule, MeshState, MeshStep, RouteTarget, RuleAction, TUNNEL, address_of,
    container_end, mesh_end, table_of,
};

/// The open mesh namespace.
pub struct Mesh {
    pin: PathBuf,
    namespace: OwnedFd,
    /// Namespace of the container's ends of new veths: the one that [`Mesh::open`] was called in.
    pub(super) host: OwnedFd,
    pub(super) netlink: Netlink,
    /// A socket in the host's namespace.
    pub(super) host_netlink: Netlink,
    known: KnownState,
    lock: Mutex<()>,
    changed: Notify,
}

impl Mesh {
    /// Creates the namespace and pins it, or adopts the one that is pinned; then sysctls, `lo`, base rules. Traffic of an
    /// adopted one is not interrupted.
    ///
    /// # Errors
    /// Not root, the folder cannot be written, or the kernel refuses a step, which the error names.
    pub async fn open(pin: &Path) -> anyhow::Result<Arc<Self>> {
        let host = netns::current().context("cannot open the own network namespace")?;
        let host_netlink = Netlink::open().context("cannot open a netlink socket")?;
        let (namespace, adopted) = netns::make_or_adopt(pin)?;
        let runtime = tokio::runtime::Handle::current();
        let netlink = netns::run(namespace.as_fd(), || {
            let _context = runtime.enter();
            Netlink::open()
        })
        .and_then(|opened| opened)
        .with_context(|| format!("cannot open a netlink socket in the mesh namespace {}", pin.display()))?;
        let mesh = Self {
            pin: pin.to_owned(),
            namespace,
            host,
            netlink,
            host_netlink,
            known: KnownState::default(),
            lock: Mutex::new(()),
            changed: Notify::new(),
        };
        let steps = base::steps(&mesh.observe().await?);
        tracing::info!(pin = %pin.display(), adopted, steps = steps.len(), "mesh namespace open");
        mesh.apply(&steps).await?;
        Ok(Arc::new(mesh))
    }

    /// Runs `f` on a new thread in the mesh namespace and blocks until it returns; for work that takes microseconds.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `f` panicked.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        netns::run(self.fd(), f).with_context(|| format!("cannot run in the mesh namespace {}", self.pin.display()))
    }

    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Path of the bind mount.
    #[must_use]
    pub fn pin(&self) -> &Path {
        &self.pin
    }

    /// Locks links and rules: held while they are changed, and from an observation until the plan made of it is applied, so
    /// that one change does not undo the other.
    pub async fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().await
    }

    /// Returns when a veth was attached or detached since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub(super) fn notify_changed(&self) {
        self.changed.notify_one();
    }

    /// The current contents.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn observe(&self) -> anyhow::Result<MeshState> {
        let read = self.dump().await;
        let state = read.with_context(|| format!("cannot read the contents of the mesh namespace {}", self.pin.display()))?;
        self.known.set(state.clone());
        Ok(state)
    }

    /// The contents as read at most `age` ago, with all changes that were made through this value since then. Reading takes
    /// the longer the more containers and networks there are.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn recent(&self, age: Duration) -> anyhow::Result<MeshState> {
        if let Some(state) = self.known.recent(age)
            // The tunnel's device is made and removed by another process.
            && self.link(TUNNEL).await.ok().as_ref() == state.links.get(TUNNEL)
        {
            return Ok(state);
        }
        self.observe().await
    }

    /// How many times the contents were read.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.known.reads()
    }

    async fn dump(&self) -> anyhow::Result<MeshState> {
        let mut state = MeshState::default();
        let mut names = BTreeMap::new();
        for message in self.netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await.context("links")? {
            if let RouteNetlinkMessage::NewLink(message) = message
                && let Some((name, link)) = wire::read_link(&message)
            {
                names.insert(link.index, name.clone());
                state.links.insert(name, link);
            }
        }
        for message in self.netlink.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default())).await.context("addresses")? {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some((index, address)) = wire::read_address(&message)
                && let Some(name) = names.get(&index)
            {
                state.addresses.insert((name.clone(), address));
            }
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.dump_routing(family, &names, &mut state).await?;
        }
        let keys: Vec<String> = base::SYSCTLS
            .iter()
            .map(|(key, _)| (*key).to_owned())
            .chain(state.links.keys().filter(|l| address_of(l).is_some()).map(|l| ipv6_switch(l)))
            .collect();
        let read = netns::briefly(self.fd(), || {
            keys.into_iter().map(|key| Ok((sysctl::read(&key)?, key))).collect::<io::Result<Vec<_>>>()
        });
        state.sysctls = read.context("sysctls")?.into_iter().filter_map(|(value, key)| Some((key, value?))).collect();
        Ok(state)
    }

    /// Adds the rules and routes of a family to `state`; `names` maps interface indices to devices.
    async fn dump_routing(
        &self,
        family: AddressFamily,
        names: &BTreeMap<u32, String>,
        state: &mut MeshState,
    ) -> anyhow::Result<()> {
        let mut request = RuleMessage::default();
        request.header.family = family;
        for message in self.netlink.dump(RouteNetlinkMessage::GetRule(request)).await.context("rules")? {
            if let RouteNetlinkMessage::NewRule(message) = message {
                state.rules.extend(wire::read_rule(&message));
            }
        }
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        for message in self.netlink.dump(RouteNetlinkMessage::GetRoute(request)).await.context("routes")? {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                state.routes.extend(wire::read_route(&message, names));
            }
        }
        Ok(())
    }

    /// Applies the steps in order and logs each one. Continues after a failed step.
    ///
    /// # Errors
    /// All steps that failed, and why.
    pub async fn apply(&self, steps: &[MeshStep]) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for step in steps {
            match self.apply_step(step).await {
                Ok(()) => {
                    self.known.change(|state| state.carry_out(step));
                    tracing::info!(%step, "mesh");
                }
                Err(error) => {
                    self.known.forget();
                    tracing::warn!(%step, %error, "mesh step failed");
                    failed.push(format!("{step}: {error}"));
                }
            }
        }
        anyhow::ensure!(failed.is_empty(), "in the mesh namespace {}: {}", self.pin.display(), failed.join("; "));
        Ok(())
    }

    async fn apply_step(&self, step: &MeshStep) -> io::Result<()> {
        use RouteNetlinkMessage as Message;
        let netlink = &self.netlink;
        match step {
            MeshStep::Sysctl(key, value) => netns::briefly(self.fd(), || sysctl::write(key, value)),
            MeshStep::Mtu(link, mtu) => netlink.change(Message::SetLink(wire::link_mtu(link, *mtu)), 0).await.map(drop),
            MeshStep::Up(link) => netlink.change(Message::SetLink(wire::link_up(link)), 0).await.map(drop),
            MeshStep::AddAddress(link, address) => {
                let index = self.index(link).await?;
                let message = Message::NewAddress(wire::address(index, *address));
                ignore_existing(netlink.change(message, NLM_F_CREATE | NLM_F_EXCL).await)
            }
            MeshStep::RemoveAddress(link, address) => match self.index(link).await {
                Ok(index) => ignore_missing(netlink.change(Message::DelAddress(wire::address(index, *address)), 0).await),
                missing => ignore_missing(missing),
            },
            MeshStep::SetRoute(route) => {
                let index = match &route.target {
                    RouteTarget::Local => self.index("lo").await?,
                    RouteTarget::Device(device) => self.index(device).await?,
                    RouteTarget::Other(what) => {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidInput,
                            format!("skep does not create such a route: {what}"),
                        ));
                    }
                };
                let message = Message::NewRoute(wire::route(route, index));
                netlink.change(message, NLM_F_CREATE | NLM_F_REPLACE).await.map(drop)
            }
            MeshStep::RemoveRoute(route) => {
                let index = match &route.target {
                    RouteTarget::Device(device) => self.index(device).await.ok(),
                    RouteTarget::Local | RouteTarget::Other(_) => None,
                };
                ignore_missing(netlink.change(Message::DelRoute(wire::no_route(route, index)), 0).await)
            }
            MeshStep::AddRule(rule) => {
                ignore_existing(netlink.change(Message::NewRule(wire::rule(rule)), NLM_F_CREATE | NLM_F_EXCL).await)
            }
            MeshStep::RemoveRule(rule) => ignore_missing(netlink.change(Message::DelRule(wire::rule(rule)), 0).await),
        }
    }

    /// The interface index of the device with this name.
    async fn index(&self, link: &str) -> io::Result<u32> {
        Ok(self.link(link).await?.index)
    }

    /// The device with this name.
    async fn link(&self, name: &str) -> io::Result<MeshLink> {
        let replies = self.netlink.change(RouteNetlinkMessage::GetLink(wire::link_named(name)), 0).await?;
        let found = replies.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(message) => wire::read_link(&message),
            _ => None,
        });
        found.map(|(_, link)| link).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// A container's veth was made, or made again.
    pub(super) async fn note_veth(&self, end: &str, ipv6: bool) {
        match self.link(end).await {
            Ok(link) => self.known.change(|state| {
                state.remove_link(end);
                state.links.insert(end.to_owned(), link);
                state.sysctls.insert(ipv6_switch(end), ipv6_disabled(ipv6).to_owned());
            }),
            Err(_) => self.known.forget(),
        }
    }

    /// A container's veth was removed.
    pub(super) fn note_no_veth(&self, end: &str) {
        self.known.change(|state| {
            state.remove_link(end);
            state.sysctls.remove(&ipv6_switch(end));
        });
    }

    /// Removes the namespace: its devices (containers lose their ends at once, also if an open socket keeps the namespace
    /// alive), the mount, the file.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn remove(self: Arc<Self>) -> anyhow::Result<()> {
        let emptied = self.run(|| -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let netlink = Netlink::open()?;
                for message in netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await? {
                    if let RouteNetlinkMessage::NewLink(message) = message
                        && let Some((name, _)) = wire::read_link(&message)
                        && name != "lo"
                    {
                        ignore_missing(netlink.change(RouteNetlinkMessage::DelLink(wire::link_named(&name)), 0).await)?;
                    }
                }
                Ok(())
            })
        });
        if let Err(error) = emptied.and_then(|inner| inner) {
            tracing::warn!(pin = %self.pin.display(), %error, "devices of the mesh namespace left to the kernel");
        }
        netns::unpin(&self.pin).with_context(|| format!("cannot remove the pin {} of the mesh namespace", self.pin.display()))?;
        tracing::info!(pin = %self.pin.display(), "mesh namespace removed");
        Ok(())
    }

    /// Whether the node at the mesh address `to` answers a connection from `from` through the tunnel within `patience`; a
    /// refused connection is an answer.
    pub async fn answers(&self, from: Ipv6Addr, to: Ipv6Addr, patience: Duration) -> bool {
        let Ok(socket) = self.stream(SocketAddr::new(from.into(), 0)) else { return false };
        match tokio::time::timeout(patience, socket.connect(SocketAddr::new(to.into(), DEFAULT_PORT))).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
            Err(_) => false,
        }
    }
}

impl Sockets for Mesh {
    fn udp(&self, address: SocketAddr) -> io::Result<std::net::UdpSocket> {
        require_specific(address)?;
        netns::briefly(self.fd(), || sockets::udp(address))
    }
    fn listen(&self, address: SocketAddr) -> io::Result<std::net::TcpListener> {
        require_specific(address)?;
        netns::briefly(self.fd(), || sockets::listen(address))
    }
    fn stream(&self, source: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        netns::briefly(self.fd(), || sockets::stream(source))
    }
}

/// Servers in the mesh bind one address. The rules isolate the networks from each other, but a wildcard socket would also
/// receive what a container sends to 255.255.255.255 and 224.0.0.1, which the kernel delivers without a rule lookup.
fn require_specific(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() && address.port() != 0 {
        let reason = format!("a server in the mesh namespace binds one address, not {address}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    Ok(())
}

/// Value of [`ipv6_switch`] for the mesh end of a veth.
#[must_use]
pub fn ipv6_disabled(ipv6: bool) -> &'static str {
    if ipv6 { "0" } else { "1" }
}

/// Key of the sysctl that disables IPv6 on a device.
#[must_use]
pub fn ipv6_switch(link: &str) -> String {
    format!("ipv6/conf/{link}/disable_ipv6")
}

/// Moves the calling process into the mesh namespace pinned at `pin`, for `skep netns CMD…`. Call it before any thread is
/// started: a namespace is an attribute of a thread.
///
/// # Errors
/// No namespace is pinned at `pin` (the daemon never ran, or the machine was rebooted since), or not root.
pub fn enter(pin: &Path) -> anyhow::Result<()> {
    let namespace = netns::pinned(pin)
        .with_context(|| format!("cannot read {}", pin.display()))?
        .with_context(|| format!("no mesh namespace is pinned at {}: is the daemon running here?", pin.display()))?;
    netns::enter(namespace.as_fd()).context("cannot enter the mesh namespace (root is needed)")
}
