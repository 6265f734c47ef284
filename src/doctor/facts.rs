//! What the checks look at: plain data, so that a test can change one fact and see which line it causes.

use super::firewall::Passage;
use crate::model::Timestamp;
use crate::status::Status;
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::time::Duration;

/// The host, its engine, its daemon. `Err`: why a fact could not be read.
#[derive(Clone, Debug)]
pub struct Facts {
    pub settings: Result<(), String>,
    pub host: HostFacts,
    pub disk: Result<DiskFacts, String>,
    pub engine: Result<DockerFacts, String>,
    pub network: NetworkFacts,
    /// The node is in a swarm, as its data directory says.
    pub has_membership: bool,
    /// What the daemon reports; why it does not answer.
    pub daemon: Result<Status, String>,
    /// The clock of the host.
    pub now: Timestamp,
    /// The nodes as the API of this manager lists them. Empty on workers and without a daemon.
    pub nodes: Vec<NodeFacts>,
}

/// The kernel and what it offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostFacts {
    pub is_root: bool,
    /// As `uname -r`.
    pub kernel: String,
    pub ipv6: Ipv6,
    /// The kernel can create WireGuard devices.
    pub wireguard: Result<bool, String>,
    /// `/dev/net/tun` is there.
    pub tun: bool,
    /// The kernel takes the eBPF programs' types.
    pub ebpf: Result<(), String>,
    /// A cgroup2 tree is mounted.
    pub cgroup2: bool,
    /// The kernel's clock is synchronised.
    pub clock: Result<bool, String>,
    /// Bytes.
    pub memory_available: u64,
    /// Connections in conntrack's table and its size; `None`: it is not loaded.
    pub conntrack: Option<(u64, u64)>,
    /// Resolvers of the host's `resolv.conf`.
    pub resolvers: usize,
}

/// Whether the host has IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ipv6 {
    Enabled,
    /// By sysctl, on all interfaces.
    Disabled,
    /// The kernel was started without it.
    Absent,
}

/// The file system of the data directory, or of the nearest folder above it that exists.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskFacts {
    pub path: String,
    /// It is kept in memory.
    pub in_memory: bool,
    /// Bytes that root can still write.
    pub free: u64,
    /// Median time of a write of 4 KiB with `fdatasync`.
    pub sync: Duration,
}

/// What `GET /info` of the engine says.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DockerFacts {
    pub url: String,
    pub version: String,
    /// As `LocalNodeState`: `inactive` outside Docker's own swarm mode.
    pub swarm: String,
    pub is_rootless: bool,
    /// Bytes free where the engine keeps images and containers; `None`: its folder is not visible here.
    pub free: Option<u64>,
}

/// Ports, firewall and routes of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkFacts {
    /// Ports that skep needs, as `2377/tcp`, and why they cannot be bound. Only those that skep does not hold itself.
    pub taken: BTreeMap<String, String>,
    /// What the firewall does with packets for the ports that other nodes send to, as `2377/tcp`.
    pub firewall: Result<BTreeMap<String, Passage>, String>,
    /// Destinations of the host's routes.
    pub routes: Vec<Ipv4Net>,
}

/// A node as the API lists it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct NodeFacts {
    pub hostname: String,
    pub is_manager: bool,
    /// As `ManagerStatus.Reachability`.
    pub reachability: String,
    /// As `Status.State`.
    pub state: String,
    /// Of the node and of its engine.
    pub labels: BTreeMap<String, String>,
}
