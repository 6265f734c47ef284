//! Where a new container goes, as the stand-alone Swarm decided it: [`request`] reads what is asked for, [`filter`] removes nodes,
//! [`rank`] orders the rest. Pure: [`choose`] gets a snapshot and a random number.

pub mod expression;
mod filter;
pub mod rank;
pub mod request;

#[cfg(test)]
pub mod fixture;
#[cfg(test)]
mod tests;

pub use rank::choose;
pub use request::{ContainerRequest, SWARM_ID_LABEL};

use super::engine_node::EngineNode;
use crate::settings::PlacementStrategy;
use std::collections::BTreeMap;

/// How containers are placed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PlacementRules {
    pub strategy: PlacementStrategy,
    /// Part of a node's CPUs and memory that may be reserved beyond them.
    pub overcommit: f64,
}

/// A node that may get a container.
#[derive(Clone, PartialEq, Debug)]
pub struct CandidateNode {
    pub node: EngineNode,
    /// Its engine's labels, and what its engine says of itself: `storagedriver`, `kernelversion`, `operatingsystem`, `ostype`.
    pub labels: BTreeMap<String, String>,
    pub containers: Vec<PlacedContainer>,
    /// Ids, names and names without tags of its images.
    pub images: Vec<String>,
}

/// A container that a node has, or is about to get.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct PlacedContainer {
    /// Empty while it is made.
    pub id: String,
    /// Without the slash.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub running: bool,
    pub reserved: Reservation,
    pub ports: Vec<BoundPort>,
}

/// What a container reserves.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reservation {
    pub nano_cpus: i64,
    /// In bytes.
    pub memory: i64,
}

/// A port of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoundPort {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    pub port: u16,
    /// Empty: all addresses.
    pub ip: String,
}

impl BoundPort {
    fn conflicts(&self, other: &Self) -> bool {
        let is_any = |ip: &str| matches!(ip, "" | "0.0.0.0" | "::");
        self.port == other.port
            && self.protocol == other.protocol
            && (is_any(&self.ip) || is_any(&other.ip) || self.ip == other.ip)
    }
}

impl CandidateNode {
    /// What its containers reserve.
    pub fn reserved(&self) -> Reservation {
        self.containers.iter().fold(Reservation::default(), |sum, container| Reservation {
            nano_cpus: sum.nano_cpus.saturating_add(container.reserved.nano_cpus),
            memory: sum.memory.saturating_add(container.reserved.memory),
        })
    }
}
