//! What a node sees of the clients of services that are scaled by load, beside the connections that their tasks have.

use super::id::ServiceId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Demand for a service, as one node sees it or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceDemand {
    /// Connections and HTTP requests that wait for a task.
    pub waiting: u64,
    /// HTTP requests, in tenths of one per second.
    pub request_tenths: u64,
}

impl ServiceDemand {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            waiting: self.waiting.saturating_add(other.waiting),
            request_tenths: self.request_tenths.saturating_add(other.request_tenths),
        }
    }
}

/// Demand for services, as one node sees it or all of them.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Demand {
    /// Those for which there is some.
    pub services: BTreeMap<ServiceId, ServiceDemand>,
    /// Nothing is missing. Otherwise no service loses a task.
    pub complete: bool,
}

impl Demand {
    /// For one service.
    #[must_use]
    pub fn of(&self, id: &ServiceId) -> ServiceDemand {
        self.services.get(id).copied().unwrap_or_default()
    }

    /// Adds what another node sees.
    pub fn add(&mut self, other: &Self) {
        for (id, demand) in &other.services {
            let sum = self.services.entry(id.clone()).or_default();
            *sum = sum.plus(*demand);
        }
        self.complete &= other.complete;
    }
}
