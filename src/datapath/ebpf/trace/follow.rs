//! Follows a packet from hook to hook, and its answer back.

use super::frame::{self, FrameHeaders, MeshDirection, TracedFrame, carried};
use super::instance::{AtHook, HookRun, TraceInstance};
use super::path::{TraceNext, after};
use super::start::{Containers, TraceRequest, container_of, start};
use super::tables::TraceEntry;
use crate::datapath::ebpf::EbpfDatapath;
use crate::datapath::ebpf::hook::Hook;
use crate::datapath::ebpf::host_devices::{self, HostDevices};
use crate::datapath::ebpf::slots::SlotReader;
use anyhow::Context as _;
use aya::maps::{HashMap, MapData, MapError};
use ipnet::Ipv4Net;
use skep_ebpf::{Backend, Counter, Prefix, V4, VerdictKind, Vip, convert};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Hooks on a path at most: none of the programs leads in a circle.
const MOST_STEPS: usize = 8;

/// A run of a hook's program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TraceStep {
    /// It is the answer's.
    pub reply: bool,
    pub hook: Hook,
    /// Index of the device, in the hook's namespace.
    pub device: u32,
    /// As it came in, and as the program left it.
    pub before: TracedFrame,
    pub after: TracedFrame,
    pub verdict: VerdictKind,
    /// Counters that it raised.
    pub counters: Vec<Counter>,
    /// Entries that it would make or change.
    pub entries: Vec<TraceEntry>,
    pub next: TraceNext,
}

/// A virtual address as the live table has it. Hooks at socket calls cannot be run without a socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VipTable {
    pub address: Ipv4Addr,
    /// `skep_ebpf::owner` of the service.
    pub owner: u32,
    /// Number of slots of each backend.
    pub backends: BTreeMap<Ipv4Addr, usize>,
    /// The hook that would select one, and why it is unavailable, if it is.
    pub hook: Hook,
    pub unavailable: Option<String>,
}

/// The path of a packet on this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PacketTrace {
    pub vip: Option<VipTable>,
    /// At least one.
    pub steps: Vec<TraceStep>,
    /// Why the answer was not followed, if it was asked for.
    pub no_reply: Option<&'static str>,
    pub devices: HostDevices,
}

impl EbpfDatapath {
    /// What the programs would do with a packet on this node. Changes nothing that is live. One trace runs at a time.
    ///
    /// # Errors
    /// The request does not fit this node, or the kernel's.
    pub async fn trace(self: &Arc<Self>, request: TraceRequest) -> anyhow::Result<PacketTrace> {
        let one = self.tracing().await;
        let devices = self.host_devices().await?;
        let macs = host_devices::hardware_addresses(self.mesh()).await?;
        let ebpf = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            // Also where the caller no longer waits.
            let _one = one;
            let instance = TraceInstance::load(ebpf.dir())?;
            Follower { ebpf: &ebpf, instance, devices, macs }.follow(&request)
        })
        .await?
    }
}

struct Follower<'a> {
    ebpf: &'a EbpfDatapath,
    instance: TraceInstance,
    devices: HostDevices,
    macs: BTreeMap<u32, [u8; 6]>,
}

impl Follower<'_> {
    fn follow(mut self, request: &TraceRequest) -> anyhow::Result<PacketTrace> {
        let ends = [request.headers.source, request.headers.destination];
        let mut containers = Containers::new();
        for address in ends.into_iter().filter_map(|end| container_of(end, &self.instance.config)) {
            containers.extend(self.node_of(address)?.map(|node| (address, node)));
        }
        let first = start(request, &self.instance.config, &self.devices, &self.macs, &containers).map_err(anyhow::Error::msg)?;
        let vip = if first.hook == Hook::FromContainer { self.vip(&request.headers)? } else { None };
        let mut steps = Vec::new();
        let from = first.via;
        self.walk(first, false, &mut steps)?;
        let mut no_reply = None;
        if request.reply {
            match steps.last().map_or(Ok(None), |last| self.answer(last, request, from))? {
                Some(answer) => self.walk(answer, true, &mut steps)?,
                None => no_reply = Some("the packet reaches no container, so no program handles an answer"),
            }
        }
        Ok(PacketTrace { vip, steps, no_reply, devices: self.devices })
    }

    /// Runs the programs from one hook on.
    fn walk(&mut self, first: AtHook, reply: bool, steps: &mut Vec<TraceStep>) -> anyhow::Result<()> {
        let mut at = first;
        for _ in 0..MOST_STEPS {
            let namespace = self.ebpf.namespace(at.hook.side());
            let HookRun { verdict, to, frame, counters, entries } = self.instance.run(&at, namespace)?;
            let (before, after_frame) = (frame::read(&at.frame), frame::read(&frame));
            let (before, left) = before.zip(after_frame).context("a program made a packet that cannot be read")?;
            let to = if at.hook.egress() { at.device } else { to };
            let next = after(at.hook, verdict, to, &self.devices);
            let AtHook { hook, device, .. } = at;
            steps.push(TraceStep { reply, hook, device, before, after: left, verdict, counters, entries, next });
            let TraceNext::Hook(hook, device) = next else { return Ok(()) };
            at = AtHook { hook, device, frame, via: None };
        }
        anyhow::bail!("the packet met {MOST_STEPS} hooks, which is more than any path has")
    }

    /// The answer to a packet that has come to its end, where a hook of this node meets it first. `None`: none does.
    fn answer(&self, last: &TraceStep, request: &TraceRequest, from: Option<Prefix>) -> anyhow::Result<Option<AtHook>> {
        let packet = last.after.inner.unwrap_or(last.after.headers);
        let own = self.instance.config.prefix;
        let (container, answer) = match last.next {
            TraceNext::Container(address) if last.verdict == VerdictKind::RedirectPeer => (address, packet.answer()),
            TraceNext::Tunnel if from.is_none() => {
                // As the node's container sees it: before it was translated for the tunnel.
                let inside = last.before.headers;
                let Some(address) = container_of(inside.destination, &self.instance.config) else { return Ok(None) };
                let Some(node) = self.node_of(address)? else { return Ok(None) };
                let frame = carried(&inside.answer(), request.length, MeshDirection::Reply, node, own);
                return Ok(self.out_of_tunnel(frame, node));
            }
            TraceNext::MeshRoutes => {
                let Some(address) = container_of(packet.destination, &self.instance.config) else { return Ok(None) };
                match self.node_of(address)? {
                    Some(node) if skep_ebpf::is_zero(&node) => (address, packet.answer()),
                    Some(node) => {
                        return Ok(self.out_of_tunnel(frame::frame(&packet.answer(), request.length, [2; 6]), node));
                    }
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let Some((_, device)) = self.devices.veths.get(&container) else { return Ok(None) };
        let frame = frame::frame(&answer, request.length, [2; 6]);
        Ok(Some(AtHook { hook: Hook::FromContainer, device: *device, frame, via: None }))
    }

    fn out_of_tunnel(&self, frame: Vec<u8>, node: Prefix) -> Option<AtHook> {
        Some(AtHook { hook: Hook::FromMesh, device: self.devices.tunnel?, frame, via: Some(node) })
    }

    fn get<V: aya::Pod>(&self, map: &str, key: V4) -> anyhow::Result<Option<V>> {
        let map: HashMap<&MapData, V4, V> = HashMap::try_from(self.instance.map(map)?)?;
        match map.get(&key, 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The /64 of a container's node, unset for this one; `None` if the address is no container's.
    fn node_of(&self, address: Ipv4Addr) -> anyhow::Result<Option<Prefix>> {
        let backend: Option<Backend> = self.get("BACKENDS", convert::v4(address))?;
        Ok(backend.map(|backend| if backend.ifindex == 0 { backend.prefix } else { [0; 2] }))
    }

    /// Whether an address is in a further subnet of the network of a virtual address.
    fn is_in_further_subnet(&self, address: Ipv4Addr, vip: &Vip) -> anyhow::Result<bool> {
        let further = self.ebpf.loaded().subnets6()?;
        let mut of_network = further.iter().filter(|(_, subnet)| subnet.network == vip.network);
        Ok(of_network.any(|((length, first), _)| {
            let length = length.checked_sub(96).and_then(|length| u8::try_from(length).ok());
            let subnet = match (convert::to_address(*first), length) {
                (IpAddr::V4(first), Some(length)) => Ipv4Net::new(first, length).ok(),
                _ => None,
            };
            subnet.is_some_and(|subnet| subnet.contains(&address))
        }))
    }

    /// The live table of a packet's destination, if that is a virtual address and its socket call would be translated.
    fn vip(&self, headers: &FrameHeaders) -> anyhow::Result<Option<VipTable>> {
        let IpAddr::V4(address) = headers.destination else { return Ok(None) };
        if headers.destination_port == 0 {
            return Ok(None);
        }
        let Some(vip) = self.get::<Vip>("VIPS", convert::v4(address))? else { return Ok(None) };
        let IpAddr::V4(source) = headers.source else { return Ok(None) };
        if convert::v4(source) & vip.mask != vip.network && !self.is_in_further_subnet(source, &vip)? {
            return Ok(None);
        }
        let mut backends = BTreeMap::new();
        let slots = SlotReader::new(&self.ebpf.loaded().ebpf)?.range(vip.base, vip.size);
        for slot in slots.unwrap_or_default() {
            *backends.entry(convert::to_v4(slot)).or_default() += 1;
        }
        let unavailable = self.ebpf.unavailable().get(&Hook::Connect4).cloned();
        Ok(Some(VipTable { address, owner: vip.owner, backends, hook: Hook::Connect4, unavailable }))
    }
}

impl PacketTrace {
    /// The /64 of the node that a step has sent the packet to.
    #[must_use]
    pub fn node_of(step: &TraceStep) -> Option<Ipv6Addr> {
        let IpAddr::V6(outer) = step.after.headers.destination else { return None };
        (step.next == TraceNext::Tunnel).then(|| Ipv6Addr::from(u128::from(outer) >> 64 << 64))
    }
}
