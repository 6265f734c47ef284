//! The loop that keeps the eBPF datapath at the view: observe, plan, apply, at every change and at the slow tick.
//!
//! Knows containers only as namespaces with addresses, and nothing of what the programs do.

pub mod maglev;
pub mod table;

use crate::datapath::ebpf::{
    EbpfDatapath, EbpfState, EbpfStep, Hook, HookSide, IngressNetwork, SCTP, Tables, VipReadiness, cookie, port_name,
};
use crate::datapath::{Sandbox, Sandboxes as _, places};
use crate::model::view::{PublishedPort, TaskEndpoint};
use crate::model::{IpFamily, NodeId, NodeView, Protocol, Revision, ServiceId};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skep_ebpf::{NetnsMembership, convert, packet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use table::{Changed, DesiredState, Dirty, Inputs, Planes, SlotAllocator};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pauses after failures: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pause before a namespace whose interfaces are not there yet is entered again, and how often at that pace: an engine
/// moves them in some 50 ms after it has joined. (Engines of today also say when they have, before the process starts;
/// 20.10 does not.)
const ENTER: (Duration, u32) = (Duration::from_millis(25), 200);

/// How long answers of a task that left its virtual address may still be on their way to those who asked.
const LINGER: Duration = Duration::from_secs(1);

/// The eBPF datapath as this node has it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct EbpfStatus {
    /// Programs are loaded.
    pub up: bool,
    /// Why not, or what went wrong last.
    pub reason: String,
    /// Hooks that cannot be had, and why.
    pub unavailable: BTreeMap<Hook, String>,
    /// Published ports that it serves, as `8080/tcp`; for IPv6 clients `8080/tcp6`.
    pub ports: BTreeSet<String>,
    /// Published ports that are left to user space, and why.
    pub left: BTreeMap<String, String>,
    /// New connections that it gave a backend.
    #[serde(default)]
    pub connections: Vec<Connections>,
    /// Virtual addresses that it carries.
    pub vips: usize,
    /// Containers that virtual addresses work in.
    pub members: usize,
    /// Programs at their places.
    pub links: usize,
    /// Entries and programs that were not as they had been left, and were repaired.
    pub repaired: u64,
    /// Changes that the last look found necessary, and made. 0: all is as it shall be.
    #[serde(default)]
    pub changed: usize,
    /// What the programs counted.
    pub counters: BTreeMap<String, u64>,
}

/// New connections of a service by one of its frontends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct Connections {
    /// Name of the service.
    pub service: String,
    /// A published port as `8080/tcp` (`8080/tcp6` for IPv6 clients), or a virtual address.
    pub frontend: String,
    /// How many since the eBPF datapath was loaded first.
    pub connections: u64,
}

/// What the loop stands on.
pub struct EbpfChannels {
    /// What the node shall be.
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Containers' namespaces.
    pub sandboxes: watch::Receiver<Vec<Sandbox>>,
    /// MTU of the tunnel.
    pub mtu: watch::Receiver<u32>,
    /// Which view new connections follow.
    pub applied: watch::Sender<Revision>,
    /// Where virtual addresses work.
    pub ready: watch::Sender<VipReadiness>,
    /// For people.
    pub status: watch::Sender<EbpfStatus>,
}

/// Keeps the eBPF datapath at the view until `shutdown`. Nothing is taken down at the end: it outlives the daemon.
pub async fn run(mut ends: EbpfChannels, me: NodeId, ebpf: Arc<EbpfDatapath>, tick: Duration, shutdown: CancellationToken) {
    let mut keeper = Reconciler::new(me, ebpf, tick);
    let mut backoff = BACKOFF.0;
    let (mut views_end, mut sandboxes_end) = (false, false);
    loop {
        let view = ends.view.borrow_and_update().clone();
        let sandboxes = ends.sandboxes.borrow_and_update().clone();
        let mut wait = tick;
        if let Some(view) = view {
            let ingress = ingress(&view, *ends.mtu.borrow());
            keeper.ebpf.set_ingress(ingress.clone());
            if keeper.enter(&sandboxes, ingress.as_ref()).await {
                wait = wait.min(ENTER.0);
            }
            match keeper.reconcile(&view, &sandboxes, &ends.status).await {
                Ok(ready) => {
                    backoff = BACKOFF.0;
                    ends.applied.send_if_modified(|last| std::mem::replace(last, view.revision) != view.revision);
                    if let Some(ready) = ready {
                        ends.ready.send_if_modified(|before| {
                            let changed = *before != ready;
                            *before = ready;
                            changed
                        });
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(revision = ?view.revision, error = reason, retry_in = ?backoff, "eBPF datapath not as it shall be");
                    wait = backoff;
                    backoff = (backoff * 2).min(BACKOFF.1);
                    ends.status.send_modify(|status| status.reason = reason);
                }
            }
            keeper.end_left(&sandboxes);
            if let Some((due, _)) = keeper.left.front() {
                wait = wait.min(due.saturating_duration_since(Instant::now()));
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = ends.view.changed(), if !views_end => views_end = changed.is_err(),
            changed = ends.sandboxes.changed(), if !sandboxes_end => sandboxes_end = changed.is_err(),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What containers' namespaces need to know of the network of published ports.
fn ingress(view: &NodeView, tunnel_mtu: u32) -> Option<IngressNetwork> {
    let network = view.networks.by_id.values().find(|network| network.ingress)?;
    let mut targets: BTreeMap<&ServiceId, BTreeSet<u16>> = BTreeMap::new();
    for port in view.cluster.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        targets.entry(&port.service_id).or_default().insert(port.target);
    }
    let mut datagrams = BTreeMap::new();
    if !targets.is_empty() {
        let of = |member: &Arc<TaskEndpoint>| Some((member.address, targets.get(&member.service_id)?.clone()));
        datagrams.extend(network.members.iter().filter_map(of));
    }
    // Room for an IPv6 header before the packet.
    Some(IngressNetwork {
        subnet: network.subnet.trunc(),
        mtu: tunnel_mtu.saturating_sub(40),
        mesh: view.cluster.mesh,
        datagrams,
    })
}

/// A namespace as it was entered: with which published UDP ports.
type Entered = (Sandbox, BTreeSet<u16>);

struct Reconciler {
    me: NodeId,
    ebpf: Arc<EbpfDatapath>,
    cookies: Cookies,
    /// Namespaces that were entered: `None`, or how often it failed so far.
    entered: BTreeMap<Entered, Option<u32>>,
    /// Hooks that cannot be had, and why, at the last look.
    unavailable: BTreeMap<Hook, String>,
    /// What shall be there.
    followed: DesiredState,
    /// All was well when it was looked at last.
    settled: bool,
    /// The maps as they were left, while they need not be read: a change of the view costs what changes, not what there is.
    known: Option<(Tables, SlotAllocator)>,
    /// Containers that virtual addresses work in.
    askers: BTreeSet<Ipv4Addr>,
    /// Containers that virtual addresses led to, and when who still talks to them is told.
    left: VecDeque<(Instant, BTreeSet<Ipv4Addr>)>,
    /// When they were read last, how long that took, and what was counted then.
    read: Instant,
    cost: Duration,
    counts: Counts,
    /// The maps are read anew after this time.
    tick: Duration,
    repaired: u64,
}

/// What the programs counted: by name, by port, by virtual address.
type Counts = (BTreeMap<&'static str, u64>, BTreeMap<skep_ebpf::Port, u64>, BTreeMap<Ipv4Addr, u64>);

impl Reconciler {
    fn new(me: NodeId, ebpf: Arc<EbpfDatapath>, tick: Duration) -> Self {
        Self {
            me,
            ebpf,
            cookies: Cookies::default(),
            entered: BTreeMap::new(),
            unavailable: BTreeMap::new(),
            followed: DesiredState::default(),
            settled: false,
            known: None,
            askers: BTreeSet::new(),
            left: VecDeque::new(),
            read: Instant::now(),
            cost: Duration::ZERO,
            counts: Counts::default(),
            tick,
            repaired: 0,
        }
    }

    /// Prepares namespaces that are new. Says whether one is to be tried again soon.
    async fn enter(&mut self, sandboxes: &[Sandbox], ingress: Option<&IngressNetwork>) -> bool {
        let ports = |sandbox: &Sandbox| {
            let on = ingress.filter(|ingress| ingress.subnet == sandbox.subnet.trunc());
            on.and_then(|ingress| ingress.datagrams.get(&sandbox.address)).cloned().unwrap_or_default()
        };
        let wanted: BTreeSet<Entered> = sandboxes.iter().map(|sandbox| (sandbox.clone(), ports(sandbox))).collect();
        self.entered.retain(|known, _| wanted.contains(known));
        let mut soon = false;
        for entered in wanted {
            let sandbox = &entered.0;
            let tries = *self.entered.entry(entered.clone()).or_insert(Some(0));
            let Some(tries) = tries else { continue };
            let now = match self.ebpf.enter(sandbox).await {
                Ok(()) => None,
                Err(error) => {
                    soon |= tries < ENTER.1;
                    if tries == ENTER.1 {
                        tracing::warn!(address = %sandbox.address, error = format!("{error:#}"), "the container's namespace stays as the engine made it");
                    }
                    Some(tries.saturating_add(1))
                }
            };
            self.entered.insert(entered, now);
        }
        soon
    }

    /// Makes it so, and tells `status`. Where virtual addresses work now, if that may be another than before.
    async fn reconcile(
        &mut self,
        view: &NodeView,
        sandboxes: &[Sandbox],
        status: &watch::Sender<EbpfStatus>,
    ) -> anyhow::Result<Option<VipReadiness>> {
        let members = self.cookies.members(sandboxes);
        let namespaces: BTreeSet<NetnsMembership> = members.iter().map(|(_, member)| *member).collect();
        let settled = std::mem::take(&mut self.settled);
        let (mut actual, mut space) = self.look().await?;
        if actual.host_devices.host_end.is_none() || actual.host_devices.mesh_end.is_none() {
            if settled {
                self.repaired += 1;
                tracing::warn!(step = %EbpfStep::Pair, "eBPF datapath was not as it had been left, repaired");
            }
            self.ebpf.apply(&[EbpfStep::Pair]).await?;
            self.known = space.map(|space| (actual.tables, space));
            (actual, space) = self.look().await?;
        }
        self.unavailable = self.ebpf.unavailable().clone();
        self.unavailable.extend(actual.blocked.clone());
        let given = Inputs { me: &self.me, around: &actual.host_devices, members: &namespaces, unavailable: &self.unavailable };
        let (mut space, changed, same) = match space {
            // The maps were read: everything is looked at.
            None => {
                let same = self.followed.whole(view, &given);
                (SlotAllocator::of(&actual.tables), Changed::All, same)
            }
            Some(space) => {
                let changed = self.followed.follow(view, &given);
                let same = changed == Changed::Only(Dirty::default());
                (space, changed, same)
            }
        };
        let desired = self.followed.desired();
        let steps = table::plan(desired, &actual, &mut space, &changed);
        if settled && same && !steps.is_empty() {
            self.repaired += steps.len() as u64;
            for step in &steps {
                tracing::warn!(%step, "eBPF datapath was not as it had been left, repaired");
            }
        }
        let left = table::left(desired, &actual.tables, &steps);
        let applied = self.ebpf.apply(&steps).await;
        // Steps go on past one that failed.
        if !left.is_empty() {
            self.left.push_back((Instant::now() + LINGER, left));
        }
        applied?;
        for step in &steps {
            actual.tables.carry_out(step);
        }
        // What found no room is tried again with what this plan has freed.
        let short = space.was_short();
        if short {
            self.followed.forget();
        }
        self.settled = !short;
        let tables = &actual.tables;
        if changed == Changed::All {
            let mut next = status.borrow().clone();
            self.tell(&mut next, view, &changed, steps.len(), tables);
            status.send_replace(next);
        } else {
            status.send_modify(|status| self.tell(status, view, &changed, steps.len(), tables));
        }
        let askers = if self.calls() { members.iter().map(|(address, _)| *address).collect() } else { BTreeSet::new() };
        let ready = (changed == Changed::All || askers != self.askers).then(|| VipReadiness {
            containers: askers.clone(),
            vips: tables.vips.keys().copied().map(convert::to_v4).collect(),
        });
        self.askers = askers;
        self.known = Some((actual.tables, space));
        Ok(ready)
    }

    /// Ends connected UDP sockets toward containers whose time is over: nothing else would tell their processes. (TCP has
    /// an end of its own.)
    fn end_left(&mut self, sandboxes: &[Sandbox]) {
        let now = Instant::now();
        while let Some((_, left)) = self.left.pop_front_if(|(due, _)| *due <= now) {
            let backends = &self.followed.desired().backends;
            let back = |address: &Ipv4Addr| backends.get(&convert::v4(*address)).is_some_and(|backend| backend.serving != 0);
            let left: BTreeSet<Ipv4Addr> = left.into_iter().filter(|address| !back(address)).collect();
            let places = places(sandboxes, &left);
            let ebpf = Arc::clone(&self.ebpf);
            tokio::task::spawn_blocking(move || {
                for (place, left) in places {
                    match ebpf.destroy_datagram_sockets(&place, &left) {
                        Ok(0) => {}
                        Ok(ended) => tracing::debug!(ended, namespace = %place.display(), "ended sockets of tasks that left"),
                        Err(error) => tracing::debug!(%error, namespace = %place.display(), "sockets of tasks that left stay"),
                    }
                }
            });
        }
    }

    /// The maps are read at the slow tick and after whatever went wrong; devices and programs always. With the space that
    /// is known; none, if the maps were read.
    async fn look(&mut self) -> anyhow::Result<(EbpfState, Option<SlotAllocator>)> {
        // Thousands of services take long to read: never more than a twentieth of the time.
        let pause = self.tick.max(self.cost * 20);
        let (known, space) = self.known.take().filter(|_| self.read.elapsed() < pause).unzip();
        let anew = known.is_none();
        let begin = Instant::now();
        if anew {
            let (ports, vips) = self.ebpf.connections()?;
            self.counts = (self.ebpf.counters()?, ports, vips);
        }
        let state = self.ebpf.observe_around(known).await.context("the eBPF datapath cannot be read")?;
        if anew {
            (self.read, self.cost) = (begin, begin.elapsed());
        }
        Ok((state, space))
    }

    /// Whether every socket call is translated: half of them would show a process addresses that it did not ask for.
    fn calls(&self) -> bool {
        !self.unavailable.keys().any(|hook| hook.side() == HookSide::Cgroup)
    }

    /// Brings the status to what is there now; of the ports only those that changed.
    fn tell(&self, status: &mut EbpfStatus, view: &NodeView, changed: &Changed, steps: usize, tables: &Tables) {
        let desired = self.followed.desired();
        status.up = true;
        status.reason.clear();
        status.unavailable.clone_from(&self.unavailable);
        status.vips = desired.vips.len();
        status.members = desired.members.len();
        status.links = desired.links.len();
        status.repaired = self.repaired;
        status.changed = steps;
        status.counters = self.counts.0.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let planes = Planes::of(view, &self.unavailable);
        match changed {
            Changed::Only(touched) => {
                for key in &touched.ports {
                    let name = port_name(key);
                    status.ports.remove(&name);
                    status.left.remove(&name);
                    if let Some((port, family)) = published(view, *key) {
                        tell_plane(status, &planes, port, family, tables);
                    }
                }
            }
            Changed::All => {
                status.ports.clear();
                status.left.clear();
                for port in &view.cluster.ports {
                    for family in IpFamily::ALL {
                        tell_plane(status, &planes, port, family, tables);
                    }
                }
                status.connections = self.connections(view);
            }
        }
    }

    fn connections(&self, view: &NodeView) -> Vec<Connections> {
        let (_, ports, vips) = &self.counts;
        let mut all = Vec::new();
        for service in view.networks.by_id.values().flat_map(|network| &network.services) {
            let connections = vips.get(&service.vip).copied().unwrap_or_default();
            all.push(Connections { service: service.name.clone(), frontend: service.vip.to_string(), connections });
        }
        for port in view.cluster.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
            for key in IpFamily::ALL.map(|family| table::port_key(port, family)) {
                if let Some(connections) = ports.get(&key) {
                    let service = port.service_name.clone();
                    all.push(Connections { service, frontend: port_name(&key), connections: *connections });
                }
            }
        }
        all.sort();
        all
    }
}

/// Says which plane serves a port for clients of a family.
fn tell_plane(status: &mut EbpfStatus, planes: &Planes, port: &PublishedPort, family: IpFamily, tables: &Tables) {
    let key = table::port_key(port, family);
    let name = port_name(&key);
    match planes.serves(port, family) {
        Ok(()) if tables.ports.contains_key(&key) => drop(status.ports.insert(name)),
        Ok(()) => drop(status.left.insert(name, "the tables of all services have no room".to_owned())),
        Err(why) => drop(status.left.insert(name, why)),
    }
}

/// The published port that the maps name so.
fn published(view: &NodeView, key: skep_ebpf::Port) -> Option<(&PublishedPort, IpFamily)> {
    let family = if key.family == 4 { IpFamily::V4 } else { IpFamily::V6 };
    let protocol = match key.protocol {
        packet::UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let (all, wanted) = (&view.cluster.ports, (protocol, convert::to_port(key.port)));
    let at = all.binary_search_by_key(&wanted, |port| (port.protocol, port.published)).ok()?;
    Some((&all[at], family))
}

/// Cookies of namespaces, asked once each.
#[derive(Default)]
struct Cookies(BTreeMap<PathBuf, (u64, u64)>);

impl Cookies {
    /// Containers' addresses with their namespaces, as far as these can be seen.
    fn members(&mut self, sandboxes: &[Sandbox]) -> Vec<(Ipv4Addr, NetnsMembership)> {
        self.0.retain(|path, _| sandboxes.iter().any(|sandbox| sandbox.path == *path));
        let cookie_of = |all: &mut BTreeMap<PathBuf, (u64, u64)>, path: &PathBuf| {
            let inode = std::fs::metadata(path).ok()?.ino();
            if let Some((_, cookie)) = all.get(path).filter(|(known, _)| *known == inode) {
                return Some(*cookie);
            }
            let cookie = cookie(path).ok()?;
            all.insert(path.clone(), (inode, cookie));
            Some(cookie)
        };
        let mut members = Vec::new();
        for sandbox in sandboxes {
            if let Some(cookie) = cookie_of(&mut self.0, &sandbox.path) {
                members
                    .push((sandbox.address, NetnsMembership { cookie, network: convert::v4(sandbox.subnet.network()), zero: 0 }));
            }
        }
        members
    }
}
