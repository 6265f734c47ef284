//! The eBPF datapath's control loop: observe, plan, apply, at every change of the view and at the slow tick.
//!
//! From the bottom up: [`maglev`] computes tables; `slots` allocates their place in the slot array; `eligibility` decides
//! which published ports the datapath serves; `desired` computes what the maps and attachments should contain; `dirty` names
//! what a change affects; `plan` is the difference to the current contents; `follower` updates the desired contents from one
//! view to the next; all of these are pure. `namespaces` prepares containers' namespaces, `status` fills [`EbpfStatus`],
//! `reconciler` is the loop. Knows containers only as namespaces with addresses, and nothing of what the programs do.

mod desired;
#[cfg(test)]
mod desired_tests;
mod dirty;
mod eligibility;
mod follower;
#[cfg(test)]
mod follower_tests;
mod inputs;
mod left;
mod left_objects;
pub mod maglev;
mod namespaces;
mod plan;
#[cfg(test)]
mod plan_tests;
mod reconciler;
mod slots;
mod status;

pub use desired::DesiredDatapath;
pub use dirty::{Changed, Dirty};
pub use eligibility::PortUnavailable;
pub use follower::DesiredState;
pub use inputs::Inputs;
pub use left_objects::LeftObjects;
pub use plan::plan;
pub use reconciler::run;
pub use slots::SlotAllocator;
pub use status::{drop_reason, refusal_reason, refusal_reasons, service_names};

use super::HeldPorts;
use crate::datapath::Sandbox;
use crate::datapath::ebpf::{Hook, Occupancy, VipReadiness};
use crate::model::{NodeId, NodeView, Revision};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The eBPF datapath as this node has it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct EbpfStatus {
    /// The programs are loaded and were reconciled at least once.
    pub up: bool,
    /// Why it is not up, or the last error; empty after a pass without one.
    pub reason: String,
    /// Hooks that cannot be attached, with the reason.
    pub unavailable: BTreeMap<Hook, String>,
    /// Published ports that it serves, as `8080/tcp`; for IPv6 clients `8080/tcp6`.
    pub ports: BTreeSet<String>,
    /// Published ports that it does not serve, with the reason; the userspace datapath serves them.
    #[serde(default)]
    pub unavailable_ports: BTreeMap<String, String>,
    /// What the kernel did not take, with the reason; the rest is served without it.
    #[serde(default)]
    pub failed: BTreeMap<String, String>,
    /// Devices of the host with an address whose clients the userspace datapath serves, with the reason.
    #[serde(default)]
    pub unserved_devices: BTreeMap<String, String>,
    /// New connections by frontend.
    #[serde(default)]
    pub connections: Vec<FrontendConnections>,
    /// Number of virtual addresses in the maps.
    pub vips: usize,
    /// Number of container attachments to networks whose virtual addresses are translated.
    pub members: usize,
    /// Number of attached programs.
    pub links: usize,
    /// Map entries and attachments that something else had changed and that were repaired, since the daemon started.
    pub repaired: u64,
    /// Number of steps in the last plan. 0: the kernel's state was as desired.
    #[serde(default)]
    pub changed: usize,
    /// The programs' counters, summed over the processors; read with the maps, at the slow tick.
    pub counters: BTreeMap<String, u64>,
    /// What was dropped, refused or left to the host since the maps were created, largest first; read with the counters.
    #[serde(default)]
    pub refusals: Vec<RefusalCount>,
    /// By how much these rose between the last two reads.
    #[serde(default)]
    pub rising: Vec<RefusalCount>,
    /// How full the maps are, by name; read with the counters.
    #[serde(default)]
    pub maps: BTreeMap<String, Occupancy>,
}

/// Packets or calls that a program dropped or refused, or packets that it left to the host.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct RefusalCount {
    /// Left to the host.
    pub left: bool,
    pub reason: String,
    /// Name of the program.
    pub hook: String,
    /// Name of the service; empty if it was for none, `unknown` if it is gone.
    pub service: String,
    pub count: u64,
}

/// New connections of a service by one of its frontends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct FrontendConnections {
    /// Name of the service.
    pub service: String,
    /// A published port as `8080/tcp` (`8080/tcp6` for IPv6 clients), or a virtual address.
    pub frontend: String,
    /// Counted since the maps were created.
    pub connections: u64,
}

/// Timing of the eBPF datapath.
#[derive(Clone, Copy, Debug)]
pub struct EbpfTiming {
    /// The slow tick: the maps are read and repaired.
    pub tick: Duration,
    /// A UDP flow ends after so long without a datagram of its client.
    pub udp_idle: Duration,
    /// An established TCP connection is forgotten after so long without a packet.
    pub tcp_idle: Duration,
}

/// What the loop reads and publishes.
pub struct EbpfChannels {
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    /// Nodes that are down and do not answer here: connections to their containers are over.
    pub lost: watch::Receiver<BTreeSet<NodeId>>,
    /// Network namespaces of this node's containers.
    pub sandboxes: watch::Receiver<Vec<Sandbox>>,
    /// MTU of the tunnel, in bytes.
    pub mtu: watch::Receiver<u32>,
    /// Of those, the ones that clients may be sent to as far as this node is concerned: the programs know them, and their answers
    /// find the way back.
    pub prepared: watch::Sender<Vec<Sandbox>>,
    /// Published ports that the userspace datapath's listeners hold; `None` while they are not known.
    pub held: watch::Receiver<Option<Arc<HeldPorts>>>,
    /// Revision of the view that new connections follow.
    pub applied: watch::Sender<Revision>,
    /// Which virtual addresses work, and for which containers: DNS answers with these only.
    pub ready: watch::Sender<VipReadiness>,
    /// For `skep status` and the metrics.
    pub status: watch::Sender<EbpfStatus>,
}
