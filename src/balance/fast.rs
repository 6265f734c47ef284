//! The loop that keeps the fast plane at the view: observe, plan, apply, at every change and at the slow tick.
//!
//! Knows containers only as namespaces with addresses, and nothing of what the programs do.

use super::maglev;
use super::plan::Family;
use super::table::{self, Planes};
use crate::datapath::fast::{Fast, Hook, Ingress, Ready, Side, State, Step, Tables, cookie};
use crate::datapath::{Sandbox, Sandboxes as _};
use crate::model::{NodeId, NodeView, Protocol, Revision};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use skep_ebpf::{Member, words};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pauses after failures: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Pause before a namespace whose interfaces are not there yet is entered again, and how often at that pace: an engine
/// moves them in some 50 ms after it has joined. (Engines of today also say when they have, before the process starts;
/// 20.10 does not.)
const ENTER: (Duration, u32) = (Duration::from_millis(25), 200);

/// The fast plane as this node has it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct FastStatus {
    /// Programs are loaded.
    pub up: bool,
    /// Why not, or what went wrong last.
    pub reason: String,
    /// Hooks that cannot be had, and why.
    pub lacking: BTreeMap<Hook, String>,
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
    /// Entries and programs that were not as they had been left, and were mended.
    pub mended: u64,
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
    /// How many since the fast plane was loaded first.
    pub connections: u64,
}

/// What the loop stands on.
pub struct FastEnds {
    /// What the node shall be.
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Containers' namespaces.
    pub sandboxes: watch::Receiver<Vec<Sandbox>>,
    /// MTU of the tunnel.
    pub mtu: watch::Receiver<u32>,
    /// Which view new connections follow.
    pub applied: watch::Sender<Revision>,
    /// Where virtual addresses work.
    pub ready: watch::Sender<Ready>,
    /// For people.
    pub status: watch::Sender<FastStatus>,
}

/// Keeps the fast plane at the view until `shutdown`. Nothing is taken down at the end: it outlives the daemon.
pub async fn run(mut ends: FastEnds, me: NodeId, fast: Arc<Fast>, tick: Duration, shutdown: CancellationToken) {
    let mut keeper = Keeper::new(me, fast, tick);
    let mut backoff = BACKOFF.0;
    let (mut views_end, mut sandboxes_end) = (false, false);
    loop {
        let view = ends.view.borrow_and_update().clone();
        let sandboxes = ends.sandboxes.borrow_and_update().clone();
        let mut wait = tick;
        if let Some(view) = view {
            let ingress = ingress(&view, *ends.mtu.borrow());
            keeper.fast.set_ingress(ingress.clone());
            if keeper.enter(&sandboxes, ingress.as_ref()).await {
                wait = wait.min(ENTER.0);
            }
            let (status, ready) = match keeper.reconcile(&view, &sandboxes).await {
                Ok((status, ready)) => {
                    backoff = BACKOFF.0;
                    ends.applied.send_if_modified(|last| std::mem::replace(last, view.revision) != view.revision);
                    (status, Some(ready))
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::warn!(revision = ?view.revision, error = reason, retry_in = ?backoff, "fast plane not as it shall be");
                    wait = backoff;
                    backoff = (backoff * 2).min(BACKOFF.1);
                    (FastStatus { reason, ..ends.status.borrow().clone() }, None)
                }
            };
            if let Some(ready) = ready {
                ends.ready.send_if_modified(|before| {
                    let changed = *before != ready;
                    *before = ready;
                    changed
                });
            }
            ends.status.send_replace(status);
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
fn ingress(view: &NodeView, tunnel_mtu: u32) -> Option<Ingress> {
    let network = view.networks.by_id.values().find(|network| network.ingress)?;
    let mut datagrams: BTreeMap<Ipv4Addr, BTreeSet<u16>> = BTreeMap::new();
    for port in view.cluster.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
        for member in network.members.iter().filter(|member| member.service_id == port.service_id) {
            datagrams.entry(member.address).or_default().insert(port.target);
        }
    }
    // Room for an IPv6 header before the packet.
    Some(Ingress { subnet: network.subnet.trunc(), mtu: tunnel_mtu.saturating_sub(40), mesh: view.cluster.mesh, datagrams })
}

/// A namespace as it was entered: with which published UDP ports.
type Entered = (Sandbox, BTreeSet<u16>);

struct Keeper {
    me: NodeId,
    fast: Arc<Fast>,
    cookies: Cookies,
    /// Namespaces that were entered: `None`, or how often it failed so far.
    entered: BTreeMap<Entered, Option<u32>>,
    /// Hooks that cannot be had, and why, at the last look.
    lacking: BTreeMap<Hook, String>,
    /// What was there when all was well last.
    settled: Option<table::Desired>,
    /// The maps as they were left, while they need not be read: a change of the view costs what changes, not what there is.
    known: Option<Tables>,
    /// When they were read last, how long that took, and what was counted then.
    read: Instant,
    cost: Duration,
    counts: Counts,
    /// The maps are read anew after this time.
    tick: Duration,
    built: maglev::Built,
    mended: u64,
}

/// What the programs counted: by name, by port, by virtual address.
type Counts = (BTreeMap<&'static str, u64>, BTreeMap<skep_ebpf::Port, u64>, BTreeMap<Ipv4Addr, u64>);

impl Keeper {
    fn new(me: NodeId, fast: Arc<Fast>, tick: Duration) -> Self {
        Self {
            me,
            fast,
            cookies: Cookies::default(),
            entered: BTreeMap::new(),
            lacking: BTreeMap::new(),
            settled: None,
            known: None,
            read: Instant::now(),
            cost: Duration::ZERO,
            counts: Counts::default(),
            tick,
            built: maglev::Built::default(),
            mended: 0,
        }
    }

    /// Prepares namespaces that are new. Says whether one is to be tried again soon.
    async fn enter(&mut self, sandboxes: &[Sandbox], ingress: Option<&Ingress>) -> bool {
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
            let now = match self.fast.enter(sandbox).await {
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

    async fn reconcile(&mut self, view: &NodeView, sandboxes: &[Sandbox]) -> anyhow::Result<(FastStatus, Ready)> {
        let members = self.cookies.members(sandboxes);
        let namespaces: BTreeSet<Member> = members.iter().map(|(_, member)| *member).collect();
        let mut actual = self.look().await?;
        if actual.surroundings.host_end.is_none() || actual.surroundings.mesh_end.is_none() {
            if self.settled.take().is_some() {
                self.mended += 1;
                tracing::warn!(step = %Step::Pair, "fast plane was not as it had been left, mended");
            }
            self.fast.apply(&[Step::Pair]).await?;
            self.known = Some(actual.tables);
            actual = self.look().await?;
        }
        self.lacking = self.fast.lacking().clone();
        self.lacking.extend(actual.refused.clone());
        let (around, lacking) = (&actual.surroundings, &self.lacking);
        let desired = table::desired(&mut self.built, view, &self.me, around, &namespaces, lacking);
        let steps = table::plan(&desired, &actual);
        if self.settled.as_ref() == Some(&desired) && !steps.is_empty() {
            self.mended += steps.len() as u64;
            for step in &steps {
                tracing::warn!(%step, "fast plane was not as it had been left, mended");
            }
        }
        self.settled = None;
        self.fast.apply(&steps).await?;
        for step in &steps {
            actual.tables.carry_out(step);
        }
        let ready = Ready {
            askers: if self.calls() { members.iter().map(|(address, _)| *address).collect() } else { BTreeSet::new() },
            vips: desired.vips.keys().copied().map(words::to_v4).collect(),
        };
        let status = FastStatus { changed: steps.len(), ..self.status(view, &desired, actual.tables.room) };
        self.settled = Some(desired);
        self.known = Some(actual.tables);
        Ok((status, ready))
    }

    /// The maps are read at the slow tick and after whatever went wrong; devices and programs always.
    async fn look(&mut self) -> anyhow::Result<State> {
        // Thousands of services take seconds to read: never more than a twentieth of the time.
        let pause = self.tick.max(self.cost * 20);
        let known = self.known.take().filter(|_| self.read.elapsed() < pause);
        let anew = known.is_none();
        let begin = Instant::now();
        if anew {
            let (ports, vips) = self.fast.connections()?;
            self.counts = (self.fast.counters()?, ports, vips);
        }
        let state = self.fast.observe_around(known).await.context("the fast plane cannot be read")?;
        if anew {
            (self.read, self.cost) = (begin, begin.elapsed());
        }
        Ok(state)
    }

    /// Whether every socket call is translated: half of them would show a process addresses that it did not ask for.
    fn calls(&self) -> bool {
        !self.lacking.keys().any(|hook| hook.side() == Side::Cgroup)
    }

    fn status(&self, view: &NodeView, desired: &table::Desired, room: u32) -> FastStatus {
        let lacking = &self.lacking;
        let (counters, ports, vips) = &self.counts;
        let mut status = FastStatus {
            up: true,
            lacking: lacking.clone(),
            vips: desired.vips.len(),
            members: desired.members.len(),
            links: desired.links.len(),
            mended: self.mended,
            counters: counters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
            ..FastStatus::default()
        };
        let tables: BTreeSet<&[skep_ebpf::V4]> = desired.ports.values().map(|(.., slots)| &slots[..]).collect();
        let full = tables.iter().map(|slots| slots.len()).sum::<usize>() > room as usize;
        for service in view.networks.by_id.values().flat_map(|network| &network.services) {
            let connections = vips.get(&service.vip).copied().unwrap_or_default();
            let (service, frontend) = (service.name.clone(), service.vip.to_string());
            status.connections.push(Connections { service, frontend, connections });
        }
        let planes = Planes::of(view, lacking);
        for port in &view.cluster.ports {
            for family in Family::ALL {
                let six = if family == Family::V6 { "6" } else { "" };
                let name = format!("{}/{}{six}", port.published, port.protocol.as_str());
                if let Some(connections) = ports.get(&table::port_key(port, family)) {
                    let (service, frontend) = (port.service_name.clone(), name.clone());
                    status.connections.push(Connections { service, frontend, connections: *connections });
                }
                match planes.serves(port, family) {
                    Ok(()) if full => drop(status.left.insert(name, "the tables of all services have no room".to_owned())),
                    Ok(()) => drop(status.ports.insert(name)),
                    Err(why) => drop(status.left.insert(name, why)),
                }
            }
        }
        status.connections.sort();
        status
    }
}

/// Cookies of namespaces, asked once each.
#[derive(Default)]
struct Cookies(BTreeMap<PathBuf, (u64, u64)>);

impl Cookies {
    /// Containers' addresses with their namespaces, as far as these can be seen.
    fn members(&mut self, sandboxes: &[Sandbox]) -> Vec<(Ipv4Addr, Member)> {
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
                members.push((sandbox.address, Member { cookie, network: words::v4(sandbox.subnet.network()), zero: 0 }));
            }
        }
        members
    }
}
