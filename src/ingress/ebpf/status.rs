//! Fills [`EbpfStatus`] from what a pass of the loop found and did. Pure.

use super::desired::{DesiredDatapath, port_key};
use super::dirty::Changed;
use super::eligibility::{PortEligibility, PortUnavailable};
use super::{EbpfStatus, FrontendConnections};
use crate::datapath::ebpf::{Counter, Hook, SCTP, Tables, port_name};
use crate::ingress::HeldPorts;
use crate::model::view::PublishedPort;
use crate::model::{IpFamily, NodeView, Protocol};
use skep_ebpf::{Port, convert, packet};
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
}

/// Why packets were dropped, by the name of the programs' counter; `None` for a counter of events.
#[must_use]
pub fn drop_reason(counter: &str) -> Option<&'static str> {
    Counter::ALL.iter().find(|known| known.name() == counter)?.drop_reason()
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
        status.unavailable.clone_from(self.unavailable);
        status.unserved_devices.clone_from(self.unserved_devices);
        status.vips = self.desired.vips.len();
        status.members = self.desired.members.len();
        status.links = self.desired.links.len();
        status.repaired = self.repaired;
        status.changed = self.steps;
        status.counters = self.counts.counters.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
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
            }
        }
    }

    /// Reports which datapath serves a port for clients of a family.
    fn add_port(&self, status: &mut EbpfStatus, eligibility: &PortEligibility, port: &PublishedPort, family: IpFamily) {
        let key = port_key(port, family);
        let name = port_name(&key);
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
