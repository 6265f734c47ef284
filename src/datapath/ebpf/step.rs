//! Steps: single changes of the eBPF datapath, and their names in logs.

use super::hook::ProgramLink;
use super::host_devices::{HOST_END, MESH_END};
use super::tables::{Slots, Tables};
use skep_ebpf::{
    Address, Backend, Config, Frontend, NetnsMembership, Port, SLOTS_PER_BLOCK, Source, Subnet6, Target, V4, Vip, convert, packet,
};
use std::fmt;

/// One change. Each is idempotent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EbpfStep {
    /// Sets this node's devices and prefixes.
    Config(Config),
    /// Writes slots from the first one on.
    Slots(u32, Slots),
    /// Gives the memory of a block of slots back that no table is in.
    FreeBlock(u32),
    /// Adds or changes a virtual address.
    SetVip(V4, Vip),
    RemoveVip(V4),
    /// Adds or changes a published port.
    SetPort(Port, Frontend),
    RemovePort(Port),
    /// Adds or changes a container.
    SetBackend(V4, Backend),
    RemoveBackend(V4),
    /// Lets clients come from other nodes to a port in the containers of a service.
    AddTarget(Target),
    RemoveTarget(Target),
    /// Adds an address of the host.
    AddLocal(Address),
    RemoveLocal(Address),
    /// Adds an uplink of the host, by its interface index.
    AddUplink(u32),
    RemoveUplink(u32),
    /// Adds a client prefix to a scope; the number is the length of the key.
    AddSource(u32, Source),
    RemoveSource(u32, Source),
    /// Translates the socket calls of a namespace to virtual addresses of a network, on which it has this address.
    AddMember(NetnsMembership, V4),
    RemoveMember(NetnsMembership),
    /// Translates socket calls to IPv6 addresses of a network, by its subnet: length and first address of the prefix.
    AddSubnet6((u32, Address), Subnet6),
    RemoveSubnet6((u32, Address)),
    /// Creates the veth pair between host and mesh again. Its ends get new interface indexes, so the state must be observed
    /// again.
    Pair,
    /// Attaches a program, or replaces an older one.
    Attach(ProgramLink),
    Detach(ProgramLink),
    /// Removes the pin of an earlier run, which detaches its program.
    Unpin(String),
}

/// A step that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StepFailure {
    pub step: EbpfStep,
    /// The kernel's answer.
    pub reason: String,
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.reason)
    }
}

impl Tables {
    /// Makes the change of a step that was carried out. Ranges that are no longer named stay listed until the maps are read
    /// again.
    pub fn carry_out(&mut self, step: &EbpfStep) {
        match step {
            EbpfStep::Config(config) => self.config = *config,
            EbpfStep::Slots(base, slots) => {
                if let Ok(size) = u32::try_from(slots.len()) {
                    self.slots.insert((*base, size), slots.clone());
                    if size > 0 {
                        self.blocks.extend(base / SLOTS_PER_BLOCK..=(base + size - 1) / SLOTS_PER_BLOCK);
                    }
                }
            }
            EbpfStep::FreeBlock(number) => drop(self.blocks.remove(number)),
            EbpfStep::SetVip(address, vip) => drop(self.vips.insert(*address, *vip)),
            EbpfStep::RemoveVip(address) => drop(self.vips.remove(address)),
            EbpfStep::SetPort(port, frontend) => drop(self.ports.insert(*port, *frontend)),
            EbpfStep::RemovePort(port) => drop(self.ports.remove(port)),
            EbpfStep::SetBackend(address, backend) => drop(self.backends.insert(*address, *backend)),
            EbpfStep::RemoveBackend(address) => drop(self.backends.remove(address)),
            EbpfStep::AddTarget(target) => drop(self.targets.insert(*target)),
            EbpfStep::RemoveTarget(target) => drop(self.targets.remove(target)),
            EbpfStep::AddLocal(address) => drop(self.locals.insert(*address)),
            EbpfStep::RemoveLocal(address) => drop(self.locals.remove(address)),
            EbpfStep::AddUplink(index) => drop(self.uplinks.insert(*index)),
            EbpfStep::RemoveUplink(index) => drop(self.uplinks.remove(index)),
            EbpfStep::AddSource(length, source) => drop(self.sources.insert((*length, *source))),
            EbpfStep::RemoveSource(length, source) => drop(self.sources.remove(&(*length, *source))),
            EbpfStep::AddMember(member, address) => drop(self.members.insert(*member, *address)),
            EbpfStep::RemoveMember(member) => drop(self.members.remove(member)),
            EbpfStep::AddSubnet6(prefix, subnet) => drop(self.subnets6.insert(*prefix, *subnet)),
            EbpfStep::RemoveSubnet6(prefix) => drop(self.subnets6.remove(prefix)),
            EbpfStep::Pair | EbpfStep::Attach(_) | EbpfStep::Detach(_) | EbpfStep::Unpin(_) => {}
        }
    }
}

impl fmt::Display for EbpfStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = |address: &V4| convert::to_v4(*address);
        let local = |address: &Address| convert::to_address(*address);
        match self {
            Self::Config(c) => write!(f, "config host end {} mesh end {} tunnel {}", c.host_end, c.mesh_end, c.tunnel),
            Self::Slots(first, slots) => write!(f, "slots {first} +{}", slots.len()),
            Self::FreeBlock(number) => write!(f, "no slots in block {number}"),
            Self::SetVip(address, vip) => write!(f, "vip {} slots {} +{}", ip(address), vip.base, vip.size),
            Self::RemoveVip(address) => write!(f, "no vip {}", ip(address)),
            Self::SetPort(p, to) => write!(f, "port {} slots {} +{}", port_name(p), to.base, to.size),
            Self::RemovePort(p) => write!(f, "no port {}", port_name(p)),
            Self::SetBackend(address, to) if to.ifindex != 0 => write!(f, "backend {} device {}", ip(address), to.ifindex),
            Self::SetBackend(address, _) => write!(f, "backend {} remote", ip(address)),
            Self::RemoveBackend(address) => write!(f, "no backend {}", ip(address)),
            Self::AddTarget(target) => write!(f, "target {}", target_name(*target)),
            Self::RemoveTarget(target) => write!(f, "no target {}", target_name(*target)),
            Self::AddLocal(address) => write!(f, "local {}", local(address)),
            Self::RemoveLocal(address) => write!(f, "no local {}", local(address)),
            Self::AddUplink(index) => write!(f, "uplink {index}"),
            Self::RemoveUplink(index) => write!(f, "no uplink {index}"),
            Self::AddSource(length, s) => write!(f, "source {}/{} of {:x}", local(&s.address), length - 32, s.scope),
            Self::RemoveSource(length, s) => write!(f, "no source {}/{} of {:x}", local(&s.address), length - 32, s.scope),
            Self::AddMember(m, address) => write!(f, "member {} of {} as {}", m.cookie, ip(&m.network), ip(address)),
            Self::RemoveMember(m) => write!(f, "no member {} of {}", m.cookie, ip(&m.network)),
            Self::AddSubnet6((length, first), subnet) => write!(f, "subnet {}/{length} of {}", local(first), ip(&subnet.network)),
            Self::RemoveSubnet6((length, first)) => write!(f, "no subnet {}/{length}", local(first)),
            Self::Pair => write!(f, "pair {HOST_END} {MESH_END}"),
            Self::Attach(link) => write!(f, "attach {}", link.pin()),
            Self::Detach(link) => write!(f, "detach {}", link.pin()),
            Self::Unpin(pin) => write!(f, "unpin {pin}"),
        }
    }
}

/// IP protocol number that no program handles.
pub const SCTP: u8 = 132;

/// Name of an IP protocol, or its number.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        packet::TCP => "tcp".to_owned(),
        packet::UDP => "udp".to_owned(),
        SCTP => "sctp".to_owned(),
        other => other.to_string(),
    }
}

fn target_name(target: Target) -> String {
    format!("{}/{} of {:x}", convert::to_port(target.port), protocol_name(target.protocol), target.owner)
}

/// Name of a published port in status and logs: `8080/tcp`, for IPv6 clients `8080/tcp6`.
#[must_use]
pub fn port_name(port: &Port) -> String {
    let six = if port.family == 6 { "6" } else { "" };
    format!("{}/{}{six}", convert::to_port(port.port), protocol_name(port.protocol))
}
