//! The loop that keeps the kernel's maps and program attachments as the view requires.

use super::dirty::{Changed, Dirty};
use super::follower::DesiredState;
use super::inputs::Inputs;
use super::left::concerned;
use super::left_objects::LeftObjects;
use super::namespaces::Namespaces;
use super::plan::{drained_backends, plan};
use super::slots::SlotAllocator;
use super::status::{DatapathCounts, PassResult, rise};
use super::{EbpfChannels, EbpfStatus, EbpfTiming};
use crate::backoff::Backoff;
use crate::datapath::ebpf::{
    EbpfDatapath, EbpfState, EbpfStep, Hook, IngressNetwork, Members, StepFailure, TableNeeds, Tables, VipReadiness,
    has_socket_hooks,
};
use crate::datapath::{Sandbox, places};
use crate::ingress::HeldPorts;
use crate::model::view::TaskEndpoint;
use crate::model::{NodeId, NodeView, Protocol, ServiceId};
use crate::sync::replace_if_changed;
use anyhow::Context as _;
use skep_ebpf::{NetnsMembership, V4, convert};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pauses after a pass that failed.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// What the kernel did not take is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_mins(1);

/// How often new flows are counted, as long as the tables of flows may grow.
const RUSH_LOOK: Duration = Duration::from_millis(500);

/// How long replies of a container may still be on their way after it was removed from a virtual address's backends.
const LINGER: Duration = Duration::from_secs(1);

/// Keeps the eBPF datapath as the view requires until `shutdown`. At the end nothing is taken down: the datapath outlives the
/// daemon.
pub async fn run(
    mut channels: EbpfChannels,
    me: NodeId,
    ebpf: Arc<EbpfDatapath>,
    timing: EbpfTiming,
    shutdown: CancellationToken,
) {
    let mut reconciler = EbpfReconciler::new(me, ebpf, timing);
    let mut device_changes = reconciler.ebpf.device_changes();
    let (mut view_closed, mut sandboxes_closed, mut held_closed, mut lost_closed) = (false, false, false, false);
    loop {
        let view = channels.view.borrow_and_update().clone();
        let sandboxes = channels.sandboxes.borrow_and_update().clone();
        reconciler.held.clone_from(&channels.held.borrow_and_update());
        reconciler.lost.clone_from(&channels.lost.borrow_and_update());
        let pause = match view {
            Some(view) => reconciler.pass(&view, &sandboxes, &channels).await,
            None => timing.tick,
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = channels.view.changed(), if !view_closed => view_closed = changed.is_err(),
            changed = channels.sandboxes.changed(), if !sandboxes_closed => sandboxes_closed = changed.is_err(),
            changed = channels.held.changed(), if !held_closed => held_closed = changed.is_err(),
            changed = channels.lost.changed(), if !lost_closed => lost_closed = changed.is_err(),
            () = device_changes.changed() => {}
            () = reconciler.rush() => reconciler.rushed = true,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What containers' namespaces need to know of the network `ingress`. `at_sockets`: the socket hooks choose the source of
/// datagrams to clients.
fn ingress(view: &NodeView, tunnel_mtu: u32, at_sockets: bool) -> Option<IngressNetwork> {
    let network = view.networks.by_id.values().find(|network| network.ingress)?;
    let mut targets: BTreeMap<&ServiceId, BTreeSet<u16>> = BTreeMap::new();
    for port in view.cluster.ports.iter().filter(|port| port.protocol == Protocol::Udp && !at_sockets) {
        targets.entry(&port.service_id).or_default().insert(port.target);
    }
    let mut datagrams = BTreeMap::new();
    if !targets.is_empty() {
        let udp_ports = |task: &Arc<TaskEndpoint>| Some((task.address, targets.get(&task.service_id)?.clone()));
        datagrams.extend(network.members.iter().filter_map(udp_ports));
    }
    // Room for an IPv6 header before the packet.
    Some(IngressNetwork {
        subnet: network.subnet.trunc(),
        mtu: tunnel_mtu.saturating_sub(40),
        mesh: view.cluster.mesh,
        datagrams,
    })
}

struct EbpfReconciler {
    me: NodeId,
    ebpf: Arc<EbpfDatapath>,
    timing: EbpfTiming,
    /// Ports that this node's listeners hold, as last published.
    held: Option<Arc<HeldPorts>>,
    /// Nodes that are down and do not answer here, as last published.
    lost: BTreeSet<NodeId>,
    namespaces: Namespaces,
    /// Hooks that cannot be attached, with the reason, as of the last observation.
    unavailable: BTreeMap<Hook, String>,
    desired: DesiredState,
    maps: MapsCache,
    drift: Drift,
    drained: DrainedBackends,
    /// Addresses of the containers whose socket calls are translated, as last published.
    translated: BTreeSet<Ipv4Addr>,
    /// Passes that failed, in a row.
    failures: u32,
    /// What the kernel did not take, and when this was tried last.
    left: LeftObjects,
    left_at: Instant,
    /// When larger maps could not be made.
    room_failed_at: Option<Instant>,
    /// Flows that had begun when the room for them was looked at last.
    flows_begun: u64,
    /// So many have begun since that it is to be looked at again.
    rushed: bool,
}

/// The maps' contents after the last pass, so that a change of the view costs what changes and not what the maps contain.
struct MapsCache {
    /// `None`: the maps must be read.
    contents: Option<(Tables, SlotAllocator)>,
    read_at: Instant,
    read_took: Duration,
    /// As of `read_at`.
    counts: DatapathCounts,
    /// `counts` were read at least once.
    counted: bool,
}

/// Changes to the kernel's state that something other than this loop made.
struct Drift {
    /// The last pass left everything as desired, so that a difference at the next one is drift.
    settled: bool,
    /// Repairs since the daemon started.
    repaired: u64,
}

impl Drift {
    fn repair(&mut self, steps: &[EbpfStep]) {
        // Memory that is given back is none.
        let steps: Vec<_> = steps.iter().filter(|step| !matches!(step, EbpfStep::FreeBlock(_))).collect();
        self.repaired += steps.len() as u64;
        for step in steps {
            tracing::warn!(%step, "something else changed the eBPF datapath; repaired");
        }
    }

    fn repair_marks(&mut self, marks: usize) {
        if marks > 0 {
            self.repaired += marks as u64;
            tracing::warn!(marks, "something else changed the marks of namespaces; repaired");
        }
    }
}

/// Containers that were removed from the backends of virtual addresses, with the time at which their UDP sockets are closed.
#[derive(Default)]
struct DrainedBackends(VecDeque<(Instant, BTreeSet<Ipv4Addr>)>);

impl DrainedBackends {
    fn add(&mut self, drained: BTreeSet<Ipv4Addr>, now: Instant) {
        if !drained.is_empty() {
            self.0.push_back((now + LINGER, drained));
        }
    }

    fn pop_due(&mut self, now: Instant) -> Option<BTreeSet<Ipv4Addr>> {
        self.0.pop_front_if(|(due, _)| *due <= now).map(|(_, drained)| drained)
    }

    fn next_due(&self) -> Option<Instant> {
        self.0.front().map(|(due, _)| *due)
    }
}

impl EbpfReconciler {
    fn new(me: NodeId, ebpf: Arc<EbpfDatapath>, timing: EbpfTiming) -> Self {
        let counts = DatapathCounts::default();
        Self {
            me,
            ebpf,
            timing,
            held: None,
            lost: BTreeSet::new(),
            namespaces: Namespaces::default(),
            unavailable: BTreeMap::new(),
            desired: DesiredState::default(),
            maps: MapsCache { contents: None, read_at: Instant::now(), read_took: Duration::ZERO, counts, counted: false },
            drift: Drift { settled: false, repaired: 0 },
            drained: DrainedBackends::default(),
            translated: BTreeSet::new(),
            failures: 0,
            left: LeftObjects::default(),
            left_at: Instant::now(),
            room_failed_at: None,
            flows_begun: 0,
            rushed: false,
        }
    }

    /// One pass. Returns the time until the next one if nothing changes.
    async fn pass(&mut self, view: &NodeView, sandboxes: &[Sandbox], channels: &EbpfChannels) -> Duration {
        let mut pause = self.timing.tick;
        let ingress = ingress(view, *channels.mtu.borrow(), self.ebpf.translates_calls());
        self.ebpf.set_ingress(ingress.clone());
        if let Some(retry) = self.namespaces.prepare(&self.ebpf, sandboxes, ingress.as_ref()).await {
            pause = pause.min(retry);
        }
        match self.reconcile(view, sandboxes, &channels.status).await {
            Ok(ready) => {
                self.failures = 0;
                replace_if_changed(&channels.applied, view.revision);
                if let Some(ready) = ready {
                    replace_if_changed(&channels.ready, ready);
                }
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                pause = RETRY.pause(self.failures);
                let reason = format!("{error:#}");
                tracing::warn!(revision = ?view.revision, error = reason, retry_in = ?pause, "cannot reconcile the eBPF datapath");
                channels.status.send_modify(|status| status.reason = reason);
            }
        }
        // Also after a pass that failed: what it left out is served by the other datapath.
        replace_if_changed(&channels.prepared, self.namespaces.prepared(sandboxes, ingress.as_ref()));
        self.close_drained_sockets(sandboxes);
        match self.drained.next_due() {
            Some(due) => pause.min(due.saturating_duration_since(Instant::now())),
            None => pause,
        }
    }

    /// Reconciles, and again without the objects that the kernel did not take. Returns where virtual addresses work, if that may
    /// have changed.
    async fn reconcile(
        &mut self,
        view: &NodeView,
        sandboxes: &[Sandbox],
        status: &watch::Sender<EbpfStatus>,
    ) -> anyhow::Result<Option<VipReadiness>> {
        if !self.left.is_empty() && self.left_at.elapsed() >= TRY_AGAIN {
            self.left = LeftObjects::default();
        }
        loop {
            let left = self.left.clone();
            let ready = self.round(view, sandboxes, status).await?;
            // Ends: each further round leaves more objects.
            if self.left == left {
                return Ok(ready);
            }
        }
    }

    /// Observes, plans, applies, and publishes `status`.
    async fn round(
        &mut self,
        view: &NodeView,
        sandboxes: &[Sandbox],
        status: &watch::Sender<EbpfStatus>,
    ) -> anyhow::Result<Option<VipReadiness>> {
        let members = self.namespaces.members(sandboxes);
        let mut settled = std::mem::take(&mut self.drift.settled);
        let (mut actual, mut allocator) = self.observe_with_pair(settled).await?;
        if settled {
            self.drift.repair_marks(actual.repaired_marks);
        }
        let mut measured = allocator.is_none() || std::mem::take(&mut self.rushed);
        let (mut allocator, changed, unchanged) = loop {
            self.unavailable = self.ebpf.unavailable().clone();
            self.unavailable.extend(actual.blocked.clone());
            self.unavailable.extend(self.left.hooks.clone());
            let updated = self.update_desired(view, &actual, &members, allocator);
            if !self.make_room(std::mem::take(&mut measured)).await {
                break updated;
            }
            // Everything is to be attached again.
            actual = self.ebpf.observe().await.context("the eBPF datapath cannot be read")?;
            (allocator, settled) = (None, false);
        };
        let steps = plan(self.desired.desired(), &actual, &mut allocator, &changed);
        if settled && unchanged {
            self.drift.repair(&steps);
        }
        let failed = self.apply(&steps, &mut actual.tables).await;
        if !failed.is_empty() {
            self.desired.invalidate();
            let concerned =
                concerned(self.desired.desired(), &steps, &failed).map_err(|held| anyhow::anyhow!("eBPF datapath: {held}"))?;
            self.left_at = Instant::now();
            if self.left.merge(concerned) {
                return Ok(None);
            }
        }
        // A table that found no room is tried again with what this plan has freed.
        let exhausted = allocator.take_exhausted();
        if exhausted {
            self.desired.invalidate();
        }
        self.drift.settled = !exhausted && failed.is_empty();
        self.publish(status, view, &changed, &actual, steps.len());
        let ready = self.ready(&changed, &members, &actual.tables);
        // After a failed step the maps are read again.
        self.maps.contents = failed.is_empty().then_some((actual.tables, allocator));
        Ok(ready)
    }

    /// Observes; creates the veth pair between host and mesh first if one of its ends is missing. The allocator is `None` if
    /// the maps were read.
    async fn observe_with_pair(&mut self, settled: bool) -> anyhow::Result<(EbpfState, Option<SlotAllocator>)> {
        let (actual, allocator) = self.observe().await?;
        if actual.host_devices.host_end.is_some() && actual.host_devices.mesh_end.is_some() {
            return Ok((actual, allocator));
        }
        if settled {
            self.drift.repair(&[EbpfStep::Pair]);
        }
        self.ebpf.apply(&[EbpfStep::Pair]).await?;
        self.maps.contents = allocator.map(|allocator| (actual.tables, allocator));
        self.observe().await
    }

    /// The maps are read at the slow tick and after any error; devices and attachments always.
    async fn observe(&mut self) -> anyhow::Result<(EbpfState, Option<SlotAllocator>)> {
        // With thousands of services a read takes long: it must not use more than a twentieth of the time.
        let interval = self.timing.tick.max(self.maps.read_took * 20);
        let (known, allocator) = self.maps.contents.take().filter(|_| self.maps.read_at.elapsed() < interval).unzip();
        let reads_maps = known.is_none();
        let begin = Instant::now();
        if reads_maps {
            let (port_connections, vip_connections) = self.ebpf.connections()?;
            let refusals = self.ebpf.refusals()?;
            let known = std::mem::replace(&mut self.maps.counted, true);
            let rising = if known { rise(&self.maps.counts.refusals, &refusals) } else { BTreeMap::new() };
            let (counters, occupancy) = (self.ebpf.counters()?, self.ebpf.occupancy()?);
            self.maps.counts = DatapathCounts { counters, port_connections, vip_connections, refusals, rising, occupancy };
        }
        let state = self.ebpf.observe_around(known).await.context("the eBPF datapath cannot be read")?;
        if reads_maps {
            let aged = self.ebpf.age_flows(&state.tables.backends, self.timing.tcp_idle);
            match aged.context("connections that are over cannot be removed") {
                Ok(0) => {}
                Ok(removed) => tracing::debug!(removed, "entries of connections that are over"),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "the tables of connections grow"),
            }
            (self.maps.read_at, self.maps.read_took) = (begin, begin.elapsed());
        }
        Ok((state, allocator))
    }

    /// Returns once so many flows have begun that a table of them may be full before the next tick.
    async fn rush(&self) {
        loop {
            tokio::time::sleep(RUSH_LOOK).await;
            if let Some(room) = self.ebpf.growing_room()
                && let Ok(begun) = self.ebpf.flows_begun()
                && begun.saturating_sub(self.flows_begun) > u64::from(room / 4)
            {
                return;
            }
        }
    }

    /// Gives the maps more room if they need it; `measured`: also for flows. Returns whether it did.
    async fn make_room(&mut self, measured: bool) -> bool {
        if measured {
            self.flows_begun = self.ebpf.flows_begun().unwrap_or_default();
        }
        if self.room_failed_at.is_some_and(|failed| failed.elapsed() < TRY_AGAIN) {
            return false;
        }
        let desired = self.desired.desired();
        let needs = TableNeeds { backends: desired.backends.len(), ports: desired.ports.len(), vips: desired.vips.len() };
        match self.ebpf.make_room(needs, measured.then_some(self.timing.udp_idle)).await {
            Ok(made) => {
                self.room_failed_at = None;
                made
            }
            Err(error) => {
                // What does not fit is left to the userspace datapath; flows without room work, until newer ones push them out.
                tracing::warn!(error = format!("{error:#}"), "the maps of the eBPF datapath get no more room");
                self.room_failed_at = Some(Instant::now());
                false
            }
        }
    }

    /// Updates the desired datapath to a view; computes all of it if the maps were read. Returns the allocator for the plan,
    /// what changed, and whether the desired datapath is what it was before.
    fn update_desired(
        &mut self,
        view: &NodeView,
        actual: &EbpfState,
        members: &[(Ipv4Addr, [(NetnsMembership, V4); 2])],
        allocator: Option<SlotAllocator>,
    ) -> (SlotAllocator, Changed, bool) {
        let members: Members = members.iter().flat_map(|(_, entries)| *entries).collect();
        let inputs = Inputs {
            me: &self.me,
            lost: Some(&self.lost),
            host_devices: &actual.host_devices,
            members: &members,
            unavailable: &self.unavailable,
            held: self.held.as_ref(),
            left: Some(&self.left),
            udp_idle: self.timing.udp_idle,
        };
        match allocator {
            None => {
                let unchanged = self.desired.recompute(view, &inputs);
                (SlotAllocator::from_tables(&actual.tables), Changed::All, unchanged)
            }
            Some(allocator) => {
                let changed = self.desired.update(view, &inputs);
                let unchanged = changed == Changed::Only(Dirty::default());
                (allocator, changed, unchanged)
            }
        }
    }

    /// Returns the steps that failed.
    async fn apply(&mut self, steps: &[EbpfStep], tables: &mut Tables) -> Vec<StepFailure> {
        let drained = drained_backends(self.desired.desired(), tables, steps);
        let failed = self.ebpf.apply_each(steps).await;
        // Also after an error: the steps after one that failed are applied.
        self.drained.add(drained, Instant::now());
        for step in steps.iter().filter(|step| failed.iter().all(|failure| failure.step != **step)) {
            tables.carry_out(step);
        }
        failed
    }

    fn publish(&self, status: &watch::Sender<EbpfStatus>, view: &NodeView, changed: &Changed, actual: &EbpfState, steps: usize) {
        let result = PassResult {
            view,
            desired: self.desired.desired(),
            changed,
            tables: &actual.tables,
            unserved_devices: &actual.host_devices.unserved,
            unavailable: &self.unavailable,
            held: self.held.as_deref(),
            counts: &self.maps.counts,
            steps,
            repaired: self.drift.repaired,
        };
        if *changed == Changed::All {
            // Takes long with many ports: readers do not wait for it.
            let mut next = status.borrow().clone();
            result.update(&mut next);
            status.send_replace(next);
        } else {
            status.send_modify(|status| result.update(status));
        }
    }

    /// Where virtual addresses work; `None` if that is as last published.
    fn ready(
        &mut self,
        changed: &Changed,
        members: &[(Ipv4Addr, [(NetnsMembership, V4); 2])],
        tables: &Tables,
    ) -> Option<VipReadiness> {
        let mut translated = BTreeSet::new();
        if self.translates_calls() {
            let present = |(member, address): &(NetnsMembership, V4)| tables.members.get(member) == Some(address);
            translated.extend(members.iter().filter(|(_, entries)| entries.iter().all(present)).map(|(address, _)| *address));
        }
        let ready = (*changed == Changed::All || translated != self.translated).then(|| VipReadiness {
            containers: translated.clone(),
            vips: tables.vips.keys().copied().map(convert::to_v4).collect(),
        });
        self.translated = translated;
        ready
    }

    /// Whether every socket hook is attached: with some of them only, a process would see addresses that it did not use.
    fn translates_calls(&self) -> bool {
        has_socket_hooks(&self.unavailable)
    }

    /// Closes connected UDP sockets to containers that were drained [`LINGER`] ago and did not become backends again: nothing
    /// else informs their processes. (TCP connections are closed by the container's kernel.)
    fn close_drained_sockets(&mut self, sandboxes: &[Sandbox]) {
        let now = Instant::now();
        while let Some(drained) = self.drained.pop_due(now) {
            let backends = &self.desired.desired().backends;
            let serves = |address: &Ipv4Addr| backends.get(&convert::v4(*address)).is_some_and(|backend| backend.serving != 0);
            let drained: BTreeSet<Ipv4Addr> = drained.into_iter().filter(|address| !serves(address)).collect();
            let by_namespace = places(sandboxes, &drained);
            let ebpf = Arc::clone(&self.ebpf);
            tokio::task::spawn_blocking(move || {
                for (namespace, drained) in by_namespace {
                    let closed = ebpf.destroy_datagram_sockets(&namespace, &drained);
                    let namespace = namespace.display();
                    match closed {
                        Ok(0) => {}
                        Ok(closed) => tracing::debug!(closed, %namespace, "closed UDP sockets to drained tasks"),
                        Err(error) => tracing::debug!(%error, %namespace, "cannot close UDP sockets to drained tasks"),
                    }
                }
            });
        }
    }
}
