//! What the loop of the eBPF datapath observes, and what it reports to DNS.

use super::hook::{Hook, ProgramLink};
use super::host_devices::HostDevices;
use super::tables::Tables;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// The eBPF datapath as observed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EbpfState {
    /// Attached programs of this run.
    pub links: BTreeSet<ProgramLink>,
    /// Pins of links that are not of this run: of an earlier daemon, or of a device that was removed.
    pub stale: BTreeSet<String>,
    /// Hooks that another program occupies exclusively, and what to do about it. May change at any time.
    pub blocked: BTreeMap<Hook, String>,
    pub tables: Tables,
    /// Marks of namespaces that were not as the members say, and are now.
    pub repaired_marks: usize,
    pub host_devices: HostDevices,
}

/// Where virtual addresses work: DNS returns them only to these containers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct VipReadiness {
    /// Addresses of this node's containers whose socket calls are translated.
    pub containers: BTreeSet<Ipv4Addr>,
    /// Virtual addresses in the maps.
    pub vips: BTreeSet<Ipv4Addr>,
}
