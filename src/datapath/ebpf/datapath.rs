//! The loaded eBPF datapath: observes it, carries out steps, removes it.

use super::aging::Aging;
use super::clock::monotonic;
use super::demand::TableNeeds;
use super::device_changes::DeviceChanges;
use super::hook::{Hook, HookSide, ProgramLink, has_socket_hooks, ports_unavailable};
use super::host_devices::{self, HostDevices};
use super::ingress_network::IngressNetwork;
use super::load::{self, Loaded};
use super::occupancy::{self, Occupancy};
use super::programs::{self, Programs};
use super::sizes::{Bounds, Rooms};
use super::state::EbpfState;
use super::step::{EbpfStep, StepFailure};
use super::tables::Tables;
use super::takeover::Takeover;
use super::watch::{RefusalWatch, Watchers};
use crate::datapath::mesh::Mesh;
use crate::datapath::{netns, sockdiag};
use crate::sync::lock;
use anyhow::Context as _;
use aya::Ebpf;
use skep_ebpf::{Backend, Counter, Port, RefusalKey, V4, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The loaded eBPF datapath.
pub struct EbpfDatapath {
    dir: PathBuf,
    programs: Programs,
    unavailable: BTreeMap<Hook, String>,
    /// Set by the loop of `ingress::ebpf`; the namespaces of containers on this network need its routes.
    ingress: Mutex<Option<IngressNetwork>>,
    watchers: Arc<Watchers>,
    aging: Mutex<Aging>,
    bounds: Bounds,
    /// Locked during a trace.
    tracing: Arc<tokio::sync::Mutex<()>>,
}

impl EbpfDatapath {
    /// Loads the programs, adopts the maps that an earlier run pinned below `run_dir`, creates the veth pair between host and
    /// mesh. `tcp_flows`: room for established TCP connections at most; 0: by the machine's memory.
    ///
    /// # Errors
    /// The kernel is too old, or refuses. The userspace datapath is not affected.
    pub async fn open(run_dir: &Path, mesh: Arc<Mesh>, tcp_flows: u32) -> anyhow::Result<Arc<Self>> {
        let dir = bpf_dir(run_dir);
        let bounds = Bounds::of_machine(tcp_flows);
        let (loaded, unavailable) = load_in(&dir, &bounds, None).await?;
        let programs = Programs::new(load::links_dir(&dir), mesh, loaded);
        let (ingress, watchers, aging, tracing) = (Mutex::default(), Arc::default(), Mutex::default(), Arc::default());
        let ebpf = Self { dir, programs, unavailable, ingress, watchers, aging, bounds, tracing };
        ebpf.make_pair().await?;
        Ok(Arc::new(ebpf))
    }

    async fn make_pair(&self) -> anyhow::Result<()> {
        let owner = self.dir.display().to_string();
        let made = host_devices::make_pair(self.programs.mesh(), &owner).await;
        made.context("cannot create the veth pair between host and mesh")
    }

    /// Hooks that this kernel or this machine does not allow, and why.
    #[must_use]
    pub fn unavailable(&self) -> &BTreeMap<Hook, String> {
        &self.unavailable
    }

    /// Whether it carries published ports: every hook on their path is available.
    #[must_use]
    pub fn carries_ports(&self) -> bool {
        ports_unavailable(&self.unavailable).is_none()
    }

    /// Whether the programs at socket calls can run now: this kernel has them, and no other program occupies their hooks.
    #[must_use]
    pub fn translates_calls(&self) -> bool {
        has_socket_hooks(&self.unavailable) && self.programs.blocked_hooks().is_empty()
    }

    pub(super) fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.programs.loaded()
    }

    /// Folder of the pinned maps.
    pub(super) fn maps_dir(&self) -> PathBuf {
        load::maps_dir(&self.dir)
    }

    /// Folder of the bpf file system.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn mesh(&self) -> &Mesh {
        self.programs.mesh()
    }

    /// The network namespace of the hooks of a side.
    pub(super) fn namespace(&self, side: HookSide) -> BorrowedFd<'_> {
        self.programs.namespace(side)
    }

    /// Held during a trace: one runs at a time.
    pub(super) async fn tracing(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.tracing).lock_owned().await
    }

    /// Reads the devices that programs are attached to.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn host_devices(&self) -> anyhow::Result<HostDevices> {
        host_devices::read(self.programs.mesh()).await
    }

    /// Watches what the programs drop or refuse, from now on; with `left` also what they leave to the host.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch_refusals(&self, left: bool) -> anyhow::Result<RefusalWatch> {
        self.watchers.add(&self.maps_dir(), left)
    }

    /// Sets the network that published ports use.
    pub fn set_ingress(&self, ingress: Option<IngressNetwork>) {
        *lock(&self.ingress) = ingress;
    }

    pub(super) fn ingress(&self) -> Option<IngressNetwork> {
        lock(&self.ingress).clone()
    }

    /// Notifications of changes of the host's devices and addresses. Must be called in the context of a tokio runtime.
    #[must_use]
    pub fn device_changes(&self) -> DeviceChanges {
        DeviceChanges::subscribe(self.programs.mesh().host.as_fd()).unwrap_or_else(|error| {
            tracing::warn!(%error, "no notifications of new devices and addresses: they are served after the next tick");
            DeviceChanges::none()
        })
    }

    /// Reads the whole state.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn observe(&self) -> anyhow::Result<EbpfState> {
        self.observe_around(None).await
    }

    /// Reads the state; without the maps if their contents are known, because reading these takes longer the more services
    /// there are.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn observe_around(&self, known: Option<Tables>) -> anyhow::Result<EbpfState> {
        // Links first: a device that is removed in between is not in the desired state then, and its program not missed.
        let (links, stale) = self.programs.read_links().await.context("cannot read the attached programs")?;
        let host_devices = host_devices::read(self.programs.mesh()).await.context("cannot read devices and addresses")?;
        let (tables, repaired_marks) = if let Some(tables) = known {
            (tables, 0)
        } else {
            let mut loaded = self.loaded();
            let marks = loaded.mark_members().context("cannot mark the namespaces of containers")?;
            (loaded.read_tables().context("cannot read the maps")?, marks)
        };
        Ok(EbpfState { links, stale, blocked: self.programs.blocked_hooks(), tables, repaired_marks, host_devices })
    }

    /// Carries the steps out, in order. Continues past a failed step; the error names all that failed.
    ///
    /// # Errors
    /// Each failed step, and why.
    pub async fn apply(&self, steps: &[EbpfStep]) -> anyhow::Result<()> {
        let failed: Vec<String> = self.apply_each(steps).await.iter().map(StepFailure::to_string).collect();
        anyhow::ensure!(failed.is_empty(), "eBPF datapath: {}", failed.join("; "));
        Ok(())
    }

    /// Carries the steps out, in order. Continues past a failed step; returns those that failed.
    pub async fn apply_each(&self, steps: &[EbpfStep]) -> Vec<StepFailure> {
        let mut failed = Vec::new();
        for step in steps {
            let done = match step {
                EbpfStep::Pair => self.make_pair().await,
                EbpfStep::Attach(link) => self.attach(link).await,
                EbpfStep::Detach(link) => self.programs.detach(link).await,
                EbpfStep::Unpin(pin) => self.programs.unpin(pin).await,
                map_step => self.loaded().change(map_step),
            };
            match done {
                Ok(()) => tracing::debug!(%step, "eBPF datapath"),
                Err(error) => {
                    tracing::warn!(%step, error = format!("{error:#}"), "eBPF datapath step failed");
                    failed.push(StepFailure { step: step.clone(), reason: format!("{error:#}") });
                }
            }
            tokio::task::consume_budget().await;
        }
        if let Err(error) = self.end_takeover().await {
            tracing::warn!(error = format!("{error:#}"), "the takeover of flows is not complete");
        }
        failed
    }

    async fn attach(&self, link: &ProgramLink) -> anyhow::Result<()> {
        if link.hook.side() != HookSide::Cgroup {
            self.take_over(Takeover::before_attach);
        }
        let attached = self.programs.attach(link).await;
        self.take_over(Takeover::after_attach);
        attached
    }

    fn take_over(&self, step: fn(&mut Takeover, &mut Ebpf)) {
        let Loaded { ebpf, takeover, .. } = &mut *self.loaded();
        if let Some(takeover) = takeover {
            step(takeover, ebpf);
        }
    }

    /// Ends the takeover of an earlier run's flows once its programs are gone.
    async fn end_takeover(&self) -> anyhow::Result<()> {
        let Some(overdue) = self.loaded().takeover.as_ref().map(Takeover::is_overdue) else { return Ok(()) };
        if !overdue && !self.programs.are_alone().await? {
            return Ok(());
        }
        let Loaded { ebpf, takeover, .. } = &mut *self.loaded();
        takeover.take().map_or(Ok(()), |takeover| takeover.end(ebpf))
    }

    /// Counters by name, summed over the processors.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> anyhow::Result<BTreeMap<&'static str, u64>> {
        self.loaded().counters()
    }

    /// What was dropped, refused or left to the host since the maps were created.
    ///
    /// # Errors
    /// The kernel's.
    pub fn refusals(&self) -> anyhow::Result<BTreeMap<RefusalKey, u64>> {
        self.loaded().sums("REFUSALS")
    }

    /// How full the maps are, by name.
    ///
    /// # Errors
    /// The kernel's.
    pub fn occupancy(&self) -> anyhow::Result<BTreeMap<String, Occupancy>> {
        occupancy::read(&self.maps_dir())
    }

    /// Gives the maps more room if they are short of it for what the daemon will write, and for what the programs have written:
    /// loads larger maps and programs that use them. `flows`: after how long a UDP flow ends; `None`: what the programs have
    /// written is not looked at. Returns whether it did: then nothing is attached, the state must be observed again, and the
    /// programs that the next steps replace run on until then.
    ///
    /// # Errors
    /// The kernel's. What is loaded and attached stays.
    pub async fn make_room(&self, needs: TableNeeds, flows: Option<Duration>) -> anyhow::Result<bool> {
        let mut used = needs.by_group();
        let (rooms, taking_over) = {
            let loaded = self.loaded();
            if let Some(udp_idle) = flows {
                let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
                let groups = self.bounds.growable(&loaded.rooms).map(|(group, _)| group);
                used.extend(loaded.used(groups, seconds(monotonic()), seconds(udp_idle))?);
            }
            (loaded.rooms.clone(), loaded.takeover.is_some())
        };
        // One at a time: the flows of the one before are still on their way.
        let Some(grown) = self.bounds.grown(&rooms, &used).filter(|_| !taking_over) else { return Ok(false) };
        let began = monotonic();
        let (loaded, unavailable) = load_in(&self.dir, &self.bounds, Some(grown)).await?;
        if let Some((hook, reason)) = unavailable.iter().find(|(hook, _)| !self.unavailable.contains_key(hook)) {
            anyhow::bail!("the kernel does not take {} again: {reason}", hook.program());
        }
        *lock(&self.aging) = Aging::default();
        let took = monotonic().saturating_sub(began);
        tracing::info!(rooms = ?loaded.rooms, ?took, "the maps of the eBPF datapath got more room");
        *self.loaded() = loaded;
        Ok(true)
    }

    /// The least room of a table of flows that may still grow; `None`: none may.
    #[must_use]
    pub fn growing_room(&self) -> Option<u32> {
        let loaded = self.loaded();
        self.bounds.growable(&loaded.rooms).filter(|(group, _)| group.has_flows()).map(|(_, room)| room).min()
    }

    /// Flows of clients that have begun since the maps were created.
    ///
    /// # Errors
    /// The kernel's.
    pub fn flows_begun(&self) -> anyhow::Result<u64> {
        let counters = self.loaded().counters()?;
        let count = |counter: Counter| counters.get(counter.name()).copied().unwrap_or_default();
        Ok(count(Counter::PortNew) + count(Counter::PortReselected) + count(Counter::Established))
    }

    /// Removes established connections that are over, among the next ones of the tables: those that were silent for `idle`, and
    /// after two minutes those to containers that are gone. Returns how many entries were removed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn age_flows(&self, backends: &BTreeMap<V4, Backend>, idle: Duration) -> anyhow::Result<usize> {
        self.loaded().age(&mut lock(&self.aging), backends, monotonic(), idle)
    }

    /// New connections since the maps were created, by port and by virtual address.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connections(&self) -> anyhow::Result<(BTreeMap<Port, u64>, BTreeMap<Ipv4Addr, u64>)> {
        let loaded = self.loaded();
        let vips = loaded.sums::<V4>("VIP_COUNTS")?;
        Ok((loaded.sums("PORT_COUNTS")?, vips.into_iter().map(|(vip, n)| (convert::to_v4(vip), n)).collect()))
    }

    /// Destroys the connected UDP sockets of a namespace that asked for a virtual address and whose backend is one of these
    /// containers: their processes get an error, and the next `connect` selects another backend. Returns their number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn destroy_datagram_sockets(&self, namespace: &Path, gone: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
        let subnets = self.loaded().subnets6().map_err(io::Error::other)?;
        let both = |v4: &Ipv4Addr| {
            let v6 = subnets.iter().filter_map(|((_, first), subnet)| convert::to_v6(*v4, *first, *subnet));
            [IpAddr::V4(*v4)].into_iter().chain(v6.map(IpAddr::V6)).map(|address| (address, *v4)).collect::<Vec<_>>()
        };
        let gone: BTreeMap<IpAddr, Ipv4Addr> = gone.iter().flat_map(both).collect();
        let addresses = gone.keys().copied().collect();
        sockdiag::destroy_datagrams(netns::of_container(namespace)?.as_fd(), &addresses, |cookie, to| {
            let backend = gone.get(&to.ip().to_canonical());
            backend.is_some_and(|v4| self.loaded().asked_for_vip(cookie, SocketAddrV4::new(*v4, to.port())))
        })
    }

    /// Removes everything: programs first, so that no packet meets an empty map.
    ///
    /// # Errors
    /// What could not be removed, and why.
    pub async fn remove(&self) -> anyhow::Result<()> {
        remove(&self.dir, self.programs.mesh()).await?;
        host_devices::remove_pair(self.programs.mesh()).await
    }
}

async fn load_in(dir: &Path, bounds: &Bounds, rooms: Option<Rooms>) -> anyhow::Result<(Loaded, BTreeMap<Hook, String>)> {
    let (dir, bounds) = (dir.to_owned(), bounds.clone());
    tokio::task::spawn_blocking(move || load::load(&dir, &bounds, rooms)).await?
}

fn bpf_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("bpf")
}

async fn remove(dir: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    let unpinned = programs::unpin_all(&load::links_dir(dir), mesh).await;
    let removed = unpinned.and_then(|()| load::remove(dir));
    removed.with_context(|| format!("cannot remove the eBPF datapath in {}", dir.display()))
}

/// Removes what an earlier run with an eBPF datapath left in a run directory, without loading anything; for a daemon that
/// runs without one.
///
/// # Errors
/// What could not be removed, and why.
pub async fn remove_leftovers(run_dir: &Path, mesh: &Mesh) -> anyhow::Result<()> {
    remove(&bpf_dir(run_dir), mesh).await
}
