//! Fills [`EbpfStatus`] from what a pass of the loop found and did. Pure.

use super::desired::{DesiredDatapath, port_key};
use super::dirty::Changed;
use super::eligibility::{PortEligibility, PortUnavailable};
use super::{EbpfStatus, FrontendConnections, RefusalCount};
use crate::datapath::ebpf::{Counter, Hook, Occupancy, SCTP, Tables, port_name};
use crate::ingress::HeldPorts;
use crate::model::view::PublishedPort;
use crate::model::{IpFamily, NodeView, Protocol, ServiceId};
use skep_ebpf::{HOOKS, Port, RefusalKey, convert, owner, packet};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// What the programs counted since the maps were created.
#[derive(Default)]
pub(super) struct DatapathCounts {
    /// The programs' counters by name, summed over the processors.
    pub counters: BTreeMap<&'static str, u64>,
    /// New connections by published port.
    pub port_connections: BTreeMap<Port, u64>,
    /// New connections by virtual address.
    pub vip_connections: BTreeMap<Ipv4Addr, u64>,
    /// What was dropped, refused or left to the host.
    pub refusals: BTreeMap<RefusalKey, u64>,
    /// By how much these rose since they were read before; nothing at the first time.
    pub rising: BTreeMap<RefusalKey, u64>,
    /// Maps by name.
    pub occupancy: BTreeMap<String, Occupancy>,
}

/// By how much counters rose. Pure.
pub(super) fn rise(before: &BTreeMap<RefusalKey, u64>, now: &BTreeMap<RefusalKey, u64>) -> BTreeMap<RefusalKey, u64> {
    let risen = now.iter().map(|(key, count)| (*key, count.saturating_sub(before.get(key).copied().unwrap_or_default())));
    risen.filter(|(_, more)| *more > 0).collect()
}

/// Counters by the names of hook, reason and service, largest first. A service that is gone is `unknown`.
fn named_refusals(counts: &BTreeMap<RefusalKey, u64>, services: &BTreeMap<u32, String>) -> Vec<RefusalCount> {
    let mut sums: BTreeMap<(bool, &str, &str, &str), u64> = BTreeMap::new();
    for (key, count) in counts.iter().filter(|(_, count)| **count > 0) {
        let (Some(hook), Some(counter)) = (HOOKS.get(usize::from(key.hook)), Counter::ALL.get(usize::from(key.reason))) else {
            continue;
        };
        let Some(reason) = refusal_reason(*counter) else { continue };
        let service = if key.owner == 0 { "" } else { services.get(&key.owner).map_or("unknown", String::as_str) };
        *sums.entry((counter.left_reason().is_some(), reason, hook, service)).or_default() += count;
    }
    let named = sums.into_iter().map(|((left, reason, hook, service), count)| RefusalCount {
        left,
        reason: reason.to_owned(),
        hook: hook.to_owned(),
        service: service.to_owned(),
        count,
    });
    let mut all: Vec<RefusalCount> = named.collect();
    all.sort_by_key(|refusal| std::cmp::Reverse(refusal.count));
    all
}

/// Why packets were dropped, by the name of the programs' counter; `None` for a counter of events.
#[must_use]
pub fn drop_reason(counter: &str) -> Option<&'static str> {
    Counter::ALL.iter().find(|known| known.name() == counter)?.drop_reason()
}

/// Every reason for a drop, a refusal, or that a packet is left to the host.
pub fn refusal_reasons() -> impl Iterator<Item = &'static str> {
    Counter::ALL.iter().filter_map(|counter| refusal_reason(*counter))
}

/// Why, if it is the counter of a drop, a refusal, or of what is left to the host.
#[must_use]
pub fn refusal_reason(counter: Counter) -> Option<&'static str> {
    counter.drop_reason().or(counter.left_reason())
}

/// Names of the services in a view, by their `skep_ebpf::owner`.
#[must_use]
pub fn service_names(view: &NodeView) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    let mut add = |id: &ServiceId, name: &String| drop(names.insert(owner(id.as_str().as_bytes()), name.clone()));
    for network in view.networks.by_id.values() {
        network.members.iter().for_each(|task| add(&task.service_id, &task.service_name));
        network.services.iter().for_each(|service| add(&service.service_id, &service.name));
    }
    view.cluster.ports.iter().for_each(|port| add(&port.service_id, &port.service_name));
    names
}

/// The result of a pass without an error.
pub(super) struct PassResult<'a> {
    pub view: &'a NodeView,
    pub desired: &'a DesiredDatapath,
    pub changed: &'a Changed,
    /// The maps after the pass.
    pub tables: &'a Tables,
    pub unavailable: &'a BTreeMap<Hook, String>,
    /// Devices of the host that it does not serve, and why.
    pub unserved_devices: &'a BTreeMap<String, String>,
    pub held: Option<&'a HeldPorts>,
    pub counts: &'a DatapathCounts,
    /// Number of steps that were applied.
    pub steps: usize,
    /// Repairs since the daemon started.
    pub repaired: u64,
}

impl PassResult<'_> {
    /// Updates the status; of the ports only those that changed, so that the cost does not grow with their number.
    pub(super) fn update(&self, status: &mut EbpfStatus) {
        status.up = true;
        status.reason.clear();
        status.failed = self.desired.left.by_name();
        status.unavailable.clone_from(self.unavailable);
        status.unserved_devices.clone_from(self.unserved_devices);
        status.vips = self.desired.vips.len();
        status.members = self.desired.members.len();
        status.links = self.desired.links.len();
        status.repaired = self.repaired;
        status.changed = self.steps;
        status.counters = self.counts.counters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        status.maps.clone_from(&self.counts.occupancy);
        let used = self.tables.slots.keys().map(|(_, size)| u64::from(*size)).sum();
        let bytes = status.maps.get("SLOTS").map_or(0, |blocks| blocks.bytes);
        let slots = Occupancy { entries: used, room: self.tables.room.into(), bytes, forgets: false };
        status.maps.insert("SLOTS".to_owned(), slots);
        let eligibility = PortEligibility::new(self.view, self.unavailable, self.held);
        match self.changed {
            Changed::Only(dirty) => {
                for key in &dirty.ports {
                    let name = port_name(key);
                    status.ports.remove(&name);
                    status.unavailable_ports.remove(&name);
                    if let Some((port, family)) = find_port(self.view, *key) {
                        self.add_port(status, &eligibility, port, family);
                    }
                }
            }
            Changed::All => {
                status.ports.clear();
                status.unavailable_ports.clear();
                for port in &self.view.cluster.ports {
                    for family in IpFamily::ALL {
                        self.add_port(status, &eligibility, port, family);
                    }
                }
                status.connections = self.connections();
                let services = service_names(self.view);
                status.refusals = named_refusals(&self.counts.refusals, &services);
                status.rising = named_refusals(&self.counts.rising, &services);
            }
        }
    }

    /// Reports which datapath serves a port for clients of a family.
    fn add_port(&self, status: &mut EbpfStatus, eligibility: &PortEligibility, port: &PublishedPort, family: IpFamily) {
        let key = port_key(port, family);
        let name = port_name(&key);
        if let Some(reason) = self.desired.left.ports.get(&key) {
            status.unavailable_ports.insert(name, reason.clone());
            return;
        }
        let served = match eligibility.check(port, family) {
            Ok(()) if !self.tables.ports.contains_key(&key) => Err(PortUnavailable::NoSlots),
            checked => checked,
        };
        match served {
            Ok(()) => drop(status.ports.insert(name)),
            Err(reason) => drop(status.unavailable_ports.insert(name, reason.to_string())),
        }
    }

    fn connections(&self) -> Vec<FrontendConnections> {
        let mut all = Vec::new();
        for service in self.view.networks.by_id.values().flat_map(|network| &network.services) {
            let connections = self.counts.vip_connections.get(&service.vip).copied().unwrap_or_default();
            all.push(FrontendConnections { service: service.name.clone(), frontend: service.vip.to_string(), connections });
        }
        for port in self.view.cluster.ports.iter().filter(|port| port.protocol != Protocol::Sctp) {
            for key in IpFamily::ALL.map(|family| port_key(port, family)) {
                if let Some(connections) = self.counts.port_connections.get(&key) {
                    let service = port.service_name.clone();
                    all.push(FrontendConnections { service, frontend: port_name(&key), connections: *connections });
                }
            }
        }
        all.sort();
        all
    }
}

/// The published port of a map key.
fn find_port(view: &NodeView, key: Port) -> Option<(&PublishedPort, IpFamily)> {
    let family = if key.family == 4 { IpFamily::V4 } else { IpFamily::V6 };
    let protocol = match key.protocol {
        packet::UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    let (all, wanted) = (&view.cluster.ports, (protocol, convert::to_port(key.port)));
    let index = all.binary_search_by_key(&wanted, |port| (port.protocol, port.published)).ok()?;
    Some((&all[index], family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(owner: u32, reason: Counter, hook: &str) -> RefusalKey {
        let hook = HOOKS.iter().position(|name| *name == hook).expect("a hook");
        RefusalKey { owner, reason: reason as u16, hook: u8::try_from(hook).expect("few"), zero: 0 }
    }

    #[test]
    fn refusals_have_names_and_services_that_are_gone_are_one() {
        let services = [(7, "web".to_owned())].into();
        let counts = [
            (key(7, Counter::DropForged, "from_container"), 5),
            (key(8, Counter::DropForged, "from_container"), 2),
            (key(9, Counter::DropForged, "from_container"), 1),
            (key(0, Counter::DropForeign, "from_mesh"), 4),
            (key(7, Counter::PassNotAllowed, "from_uplink"), 9),
            (key(0, Counter::DropForeign, "from_host"), 0),
            (RefusalKey { hook: 200, ..key(7, Counter::DropForged, "from_mesh") }, 1),
            (key(7, Counter::PortIn, "from_uplink"), 1),
        ];
        let named = named_refusals(&counts.into(), &services);
        let text: Vec<String> =
            named.iter().map(|r| format!("{} {} {} {} {}", r.left, r.reason, r.hook, r.service, r.count)).collect();
        let expected = [
            "true source_not_allowed from_uplink web 9",
            "false forged_source from_container web 5",
            "false unexpected_packet from_mesh  4",
            "false forged_source from_container unknown 3",
        ];
        assert_eq!(text, expected);
    }

    #[test]
    fn what_rose_since_the_last_read_is_known() {
        let (one, other) = (key(7, Counter::DropForged, "from_mesh"), key(8, Counter::DropForged, "from_mesh"));
        let before = [(one, 5), (other, 3)].into();
        assert_eq!(rise(&before, &[(one, 9), (other, 3)].into()), [(one, 4)].into());
        assert_eq!(rise(&before, &[(one, 2)].into()), BTreeMap::new(), "maps of another layout begin at 0");
    }
}
