//! The eBPF datapath as the kernel has it: programs, hooks, maps. Loads the built object, says what is there, carries out
//! steps. The only place that knows aya. What should be there is `balance`'s to say; keys and values are those of
//! `skep_ebpf`.
//!
//! Everything is pinned below `<run-dir>/bpf`, so it outlives the daemon: a new one opens the same maps, puts its own
//! programs beside the old ones and takes those away then.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skep_ebpf::{Address, Backend, Config, Frontend, NetnsMembership, Port, Source, V4, Vip, convert, packet};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mesh::Mesh;
use super::{netns, sockdiag};

mod attachment;
mod dump;
mod filters;
mod hooks;
mod host_devices;
mod load;
mod return_routes;
mod sandbox;
mod slots;
mod tables;

pub use dump::Dump;
pub use host_devices::{HOST_END, HostDevices, MESH_END};
pub use load::object_is_current;
pub use sandbox::{Ingress, cookie};

/// A place in the kernel where a program of ours runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "named as the kernel and the design name them")]
pub enum Hook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
    FromUplink,
    FromHost,
    FromMesh,
    FromContainer,
    ToUplink,
    OutUplink,
}

/// Where a hook's devices are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// At the root of the cgroup tree.
    Cgroup,
    /// On a device of the host.
    Host,
    /// On a device in the mesh namespace.
    Mesh,
}

impl Hook {
    /// All of them. Those that take packets away from where they are stand last, so that their way on is ready.
    pub const ALL: [Self; 14] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::OutUplink,
        Self::ToUplink,
        Self::FromContainer,
        Self::FromMesh,
        Self::FromHost,
        Self::FromUplink,
    ];

    /// Name of its program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::FromUplink => "from_uplink",
            Self::FromHost => "from_host",
            Self::FromMesh => "from_mesh",
            Self::FromContainer => "from_container",
            Self::ToUplink => "to_uplink",
            Self::OutUplink => "out_uplink",
        }
    }

    /// Where its devices are.
    #[must_use]
    pub fn side(self) -> Side {
        match self {
            Self::FromUplink | Self::ToUplink | Self::OutUplink => Side::Host,
            Self::FromHost | Self::FromMesh | Self::FromContainer => Side::Mesh,
            _ => Side::Cgroup,
        }
    }

    /// Whether it sees what leaves by the device, not what comes in.
    #[must_use]
    pub fn egress(self) -> bool {
        self == Self::OutUplink
    }
}

/// The first hook on the way of published ports that cannot be had, and why. Half a way is none.
#[must_use]
pub fn ports_lack(unavailable: &BTreeMap<Hook, String>) -> Option<(Hook, &str)> {
    let mut way = Hook::ALL.into_iter().filter(|hook| hook.side() != Side::Cgroup);
    way.find_map(|hook| Some((hook, unavailable.get(&hook)?.as_str())))
}

/// A program at a place.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Link {
    /// Which program.
    pub hook: Hook,
    /// Name of the device; empty for the cgroup tree.
    pub device: String,
    /// Its number: a device made anew has another one.
    pub index: u32,
}

impl Link {
    /// Name of its pin. A bpf file system takes no dots, device names no colons.
    #[must_use]
    pub fn pin(&self) -> String {
        match self.hook.side() {
            Side::Cgroup => self.hook.program().to_owned(),
            Side::Host | Side::Mesh => format!("{}@{}@{}", self.hook.program(), self.device.replace('.', ":"), self.index),
        }
    }
}

/// Protocol number that no program takes.
pub const SCTP: u8 = 132;

/// A protocol for people.
fn protocol(number: u8) -> String {
    match number {
        packet::TCP => "tcp".to_owned(),
        packet::UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

/// A published port for people: `8080/tcp`, for IPv6 clients `8080/tcp6`.
#[must_use]
pub fn port_name(port: &Port) -> String {
    let six = if port.family == 6 { "6" } else { "" };
    format!("{}/{}{six}", convert::to_port(port.port), protocol(port.protocol))
}

/// First slot and number of slots.
pub type Range = (u32, u32);

/// Backends by slot. Shared, so that what did not change is told by where it lies.
pub type Slots = Arc<[V4]>;

/// Client addresses in a scope: length of the key, and the key.
pub type Sources = BTreeSet<(u32, Source)>;

/// What the maps hold.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tables {
    /// What this node is.
    pub config: Config,
    /// Virtual addresses.
    pub vips: BTreeMap<V4, Vip>,
    /// Namespaces on networks.
    pub members: BTreeSet<NetnsMembership>,
    /// Published ports.
    pub ports: BTreeMap<Port, Frontend>,
    /// Containers.
    pub backends: BTreeMap<V4, Backend>,
    /// The host's addresses on its uplinks.
    pub locals: BTreeSet<Address>,
    /// Who may use which port, and who is nobody's client.
    pub sources: Sources,
    /// Backends by slot, of every range that a virtual address or port names.
    pub slots: BTreeMap<Range, Slots>,
    /// Number of slots that there are.
    pub room: u32,
}

impl Tables {
    /// Ranges that virtual addresses and ports name.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        self.vips.values().map(|v| (v.base, v.size)).chain(self.ports.values().map(|p| (p.base, p.size)))
    }

    /// What a step leaves behind that was carried out. Ranges that nobody names any more stay listed until the maps are
    /// read again.
    pub fn carry_out(&mut self, step: &Step) {
        match step {
            Step::Config(config) => self.config = *config,
            Step::Slots(base, slots) => {
                if let Ok(size) = u32::try_from(slots.len()) {
                    self.slots.insert((*base, size), slots.clone());
                }
            }
            Step::SetVip(address, vip) => drop(self.vips.insert(*address, *vip)),
            Step::RemoveVip(address) => drop(self.vips.remove(address)),
            Step::SetPort(port, frontend) => drop(self.ports.insert(*port, *frontend)),
            Step::RemovePort(port) => drop(self.ports.remove(port)),
            Step::SetBackend(address, backend) => drop(self.backends.insert(*address, *backend)),
            Step::RemoveBackend(address) => drop(self.backends.remove(address)),
            Step::AddLocal(address) => drop(self.locals.insert(*address)),
            Step::RemoveLocal(address) => drop(self.locals.remove(address)),
            Step::AddSource(length, source) => drop(self.sources.insert((*length, *source))),
            Step::RemoveSource(length, source) => drop(self.sources.remove(&(*length, *source))),
            Step::AddMember(member) => drop(self.members.insert(*member)),
            Step::RemoveMember(member) => drop(self.members.remove(member)),
            Step::Pair | Step::Attach(_) | Step::Detach(_) | Step::Unpin(_) => {}
        }
    }
}

/// What is there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct State {
    /// Programs of this run at their places.
    pub links: BTreeSet<Link>,
    /// Pins of links that are not this run's: of an earlier daemon, or of a device that is gone.
    pub stale: BTreeSet<String>,
    /// Hooks that cannot be had for now, and why.
    pub refused: BTreeMap<Hook, String>,
    /// The maps.
    pub tables: Tables,
    /// Devices and addresses.
    pub host_devices: HostDevices,
}

/// Where virtual addresses work: who may be told them, and which there are.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Ready {
    /// Addresses of this node's containers whose socket calls are translated.
    pub askers: BTreeSet<Ipv4Addr>,
    /// Virtual addresses in the maps.
    pub vips: BTreeSet<Ipv4Addr>,
}

/// One change. Each may be repeated without harm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Says what this node is.
    Config(Config),
    /// Fills slots from the first on.
    Slots(u32, Slots),
    /// Adds or changes a virtual address.
    SetVip(V4, Vip),
    /// Removes it.
    RemoveVip(V4),
    /// Adds or changes a published port.
    SetPort(Port, Frontend),
    /// Removes it.
    RemovePort(Port),
    /// Adds or changes a container.
    SetBackend(V4, Backend),
    /// Removes it.
    RemoveBackend(V4),
    /// Adds an address of the host.
    AddLocal(Address),
    /// Removes it.
    RemoveLocal(Address),
    /// Adds client addresses to a scope.
    AddSource(u32, Source),
    /// Takes them out.
    RemoveSource(u32, Source),
    /// Puts a namespace on a network.
    AddMember(NetnsMembership),
    /// Takes it off.
    RemoveMember(NetnsMembership),
    /// Makes the pair between host and mesh anew. Its ends have other numbers then: look again.
    Pair,
    /// Puts a program at its place, in the place of an older one.
    Attach(Link),
    /// Takes it away.
    Detach(Link),
    /// Takes away what an earlier run left.
    Unpin(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |address: &V4| convert::to_v4(*address);
        let local = |address: &Address| convert::to_address(*address);
        match self {
            Self::Config(c) => write!(f, "config host end {} mesh end {} tunnel {}", c.host_end, c.mesh_end, c.tunnel),
            Self::Slots(first, slots) => write!(f, "slots {first} +{}", slots.len()),
            Self::SetVip(address, vip) => write!(f, "vip {} slots {} +{}", ip(address), vip.base, vip.size),
            Self::RemoveVip(address) => write!(f, "no vip {}", ip(address)),
            Self::SetPort(p, to) => write!(f, "port {} slots {} +{}", port_name(p), to.base, to.size),
            Self::RemovePort(p) => write!(f, "no port {}", port_name(p)),
            Self::SetBackend(address, to) if to.ifindex != 0 => write!(f, "backend {} device {}", ip(address), to.ifindex),
            Self::SetBackend(address, _) => write!(f, "backend {} remote", ip(address)),
            Self::RemoveBackend(address) => write!(f, "no backend {}", ip(address)),
            Self::AddLocal(address) => write!(f, "local {}", local(address)),
            Self::RemoveLocal(address) => write!(f, "no local {}", local(address)),
            Self::AddSource(length, s) => write!(f, "source {}/{} of {:x}", local(&s.address), length - 32, s.scope),
            Self::RemoveSource(length, s) => write!(f, "no source {}/{} of {:x}", local(&s.address), length - 32, s.scope),
            Self::AddMember(m) => write!(f, "member {} of {}", m.cookie, ip(&m.network)),
            Self::RemoveMember(m) => write!(f, "no member {} of {}", m.cookie, ip(&m.network)),
            Self::Pair => write!(f, "pair {HOST_END} {MESH_END}"),
            Self::Attach(link) => write!(f, "attach {}", link.pin()),
            Self::Detach(link) => write!(f, "detach {}", link.pin()),
            Self::Unpin(pin) => write!(f, "unpin {pin}"),
        }
    }
}

/// The loaded eBPF datapath.
pub struct EbpfDatapath {
    mesh: Arc<Mesh>,
    dir: PathBuf,
    unavailable: BTreeMap<Hook, String>,
    loaded: Mutex<load::Loaded>,
    /// Containers' namespaces need this network's routes; the loop says which one it is.
    ingress: Mutex<Option<Ingress>>,
}

impl EbpfDatapath {
    /// Loads the programs, adopts the maps that an earlier run left below `run_dir`, makes the pair between host and mesh.
    ///
    /// # Errors
    /// The kernel is too old or refuses; says what. Nothing of the userspace datapath is touched.
    pub async fn open(run_dir: &Path, mesh: Arc<Mesh>) -> anyhow::Result<Arc<Self>> {
        let dir = run_dir.join("bpf");
        let folder = dir.clone();
        let (loaded, unavailable) = tokio::task::spawn_blocking(move || load::load(&folder)).await??;
        let ingress = Mutex::new(None);
        let ebpf = Self { mesh, dir, unavailable, loaded: Mutex::new(loaded), ingress };
        ebpf.make_pair().await?;
        Ok(Arc::new(ebpf))
    }

    async fn make_pair(&self) -> anyhow::Result<()> {
        let owner = self.dir.display().to_string();
        host_devices::make_pair(&self.mesh, &owner).await.context("cannot make the veth pair between host and mesh")
    }

    /// Hooks that this kernel or this machine does not allow, and why.
    #[must_use]
    pub fn unavailable(&self) -> &BTreeMap<Hook, String> {
        &self.unavailable
    }

    /// Whether it carries published ports: every hook on their way is there.
    #[must_use]
    pub fn takes_ports(&self) -> bool {
        ports_lack(&self.unavailable).is_none()
    }

    fn loaded(&self) -> MutexGuard<'_, load::Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there now.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn observe(&self) -> anyhow::Result<State> {
        self.observe_around(None).await
    }

    /// What is there now, but for the maps if they are known: reading these takes longer the more services there are.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn observe_around(&self, known: Option<Tables>) -> anyhow::Result<State> {
        // Links first: a device that goes in between is not looked for, and its program not missed.
        let (links, stale) = self.look_at_links().await.context("cannot read the programs at their places")?;
        let host_devices = host_devices::look(&self.mesh).await.context("cannot read devices and addresses")?;
        let tables = match known {
            Some(tables) => tables,
            None => self.loaded().look_at_tables().context("cannot read the maps")?,
        };
        Ok(State { links, stale, refused: self.look_for_hermits(), tables, host_devices })
    }

    /// Carries the steps out, in order. Goes on past a failed step; the error names all that failed.
    ///
    /// # Errors
    /// What could not be done and why.
    pub async fn apply(&self, steps: &[Step]) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        for step in steps {
            let done = match step {
                Step::Pair => self.make_pair().await,
                Step::Attach(link) => self.attach(link).await,
                Step::Detach(link) => self.detach(link).await,
                Step::Unpin(pin) => self.unpin(pin).await,
                other => self.loaded().change(other),
            };
            match done {
                Ok(()) => tracing::debug!(%step, "eBPF datapath"),
                Err(error) => {
                    tracing::warn!(%step, error = format!("{error:#}"), "eBPF datapath step failed");
                    failed.push(format!("{step}: {error:#}"));
                }
            }
            tokio::task::consume_budget().await;
        }
        anyhow::ensure!(failed.is_empty(), "eBPF datapath: {}", failed.join("; "));
        Ok(())
    }

    /// Counters by name, summed over the processors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        self.loaded().counters()
    }

    /// New connections since the maps were made, by port and by virtual address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connections(&self) -> anyhow::Result<(BTreeMap<Port, u64>, BTreeMap<Ipv4Addr, u64>)> {
        let loaded = self.loaded();
        let vips = loaded.sums::<V4>("VIP_COUNTS")?;
        Ok((loaded.sums("PORT_COUNTS")?, vips.into_iter().map(|(vip, n)| (convert::to_v4(vip), n)).collect()))
    }

    /// Ends the connected UDP sockets of a namespace that asked a virtual address and were given one of these containers:
    /// their processes get an error, and the next `connect` gives them another. Says how many.
    ///
    /// # Errors
    /// The kernel's.
    pub fn end_datagrams(&self, namespace: &Path, gone: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
        let gone = gone.iter().copied().map(IpAddr::V4).collect();
        sockdiag::destroy_datagrams(netns::of_container(namespace)?.as_fd(), &gone, |cookie, to| match to {
            SocketAddr::V4(to) => self.loaded().asked_virtual(cookie, to),
            SocketAddr::V6(_) => false,
        })
    }

    /// Takes everything away: programs first, so that no packet meets an empty map.
    ///
    /// # Errors
    /// What stays behind and why.
    pub async fn remove(&self) -> anyhow::Result<()> {
        remove(&self.dir, &self.mesh).await?;
        host_devices::remove_pair(&self.mesh).await
    }
}

async fn remove(dir: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    let unpinned = hooks::unpin_all(&load::links_dir(dir), mesh).await;
    unpinned.and_then(|()| load::remove(dir)).with_context(|| format!("cannot take the eBPF datapath in {} down", dir.display()))
}

/// Takes away what an earlier run with a eBPF datapath left in a run directory, without loading anything, for a daemon that
/// runs without one.
///
/// # Errors
/// What stays behind and why.
pub async fn remove_left(run_dir: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    remove(&run_dir.join("bpf"), mesh).await
}
