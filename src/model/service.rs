//! Services: the user's wish. Field names, order and absence are the Docker API's, because a spec goes back to the
//! client as it came. Fields of Docker's spec that are not carried out are not here: the API refuses them by name.

use super::{
    id::{NetworkId, ServiceId},
    meta::Meta,
    port::{PortConfig, PublishMode},
    serde_helpers::null_as_default,
    task::TaskSpec,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Version and times.
    pub meta: Meta,
    /// What the user wants now.
    pub spec: ServiceSpec,
    /// What the user wanted before the last update.
    pub previous_spec: Option<ServiceSpec>,
    /// Changes only when the task template does: tells cheaply whether a task is current.
    pub spec_version: u64,
    /// What the allocator gave it.
    pub endpoint: Endpoint,
}

/// What the allocator gave a service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The endpoint spec that this was made from; `None` if there was nothing to do.
    pub spec: Option<EndpointSpec>,
    /// Ports as published.
    pub ports: Vec<PortConfig>,
    /// One virtual address per network, `ingress` first. Reserved on the userspace datapath, answered on the eBPF datapath.
    pub vips: Vec<Vip>,
}

/// A virtual address of a service on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Vip {
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network_id: NetworkId,
    /// Address with the network's prefix length.
    pub addr: Ipv4Net,
}

/// What `docker service create` posts.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    /// Unique among services, case ignored.
    pub name: String,
    /// User's labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// What its tasks are.
    pub task_template: TaskSpec,
    /// How many.
    pub mode: ServiceMode,
    /// How it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
}

/// How many tasks a service has. Exactly one is set; only `replicated` is carried out yet.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    /// So many tasks, wherever they fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
}

/// A number of tasks.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Replicated {
    /// How many; the API sets 1 if none was posted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

impl ServiceMode {
    /// Wished number of tasks.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        self.replicated.and_then(|r| r.replicas).unwrap_or(1)
    }
}

/// How a service is reached.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSpec {
    /// `vip` or `dnsrr`; as posted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<EndpointMode>,
    /// Published ports.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub ports: Vec<PortConfig>,
}

/// What a service's name answers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// Its virtual address (on the userspace datapath: its task addresses).
    #[default]
    Vip,
    /// Its task addresses.
    Dnsrr,
}

impl Service {
    /// Ports published through the routing mesh.
    pub fn ingress_ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.endpoint.ports.iter().filter(|p| p.publish_mode == PublishMode::Ingress)
    }
}

impl ServiceSpec {
    /// True if its tasks need an address on `ingress`.
    #[must_use]
    pub fn wants_ingress(&self) -> bool {
        self.endpoint_spec.as_ref().is_some_and(|e| e.ports.iter().any(|p| p.publish_mode == PublishMode::Ingress))
    }
    /// Ports that the engine of a task's node binds.
    #[must_use]
    pub fn host_ports(&self) -> Vec<PortConfig> {
        let ports = self.endpoint_spec.iter().flat_map(|e| &e.ports);
        ports.filter(|p| p.publish_mode == PublishMode::Host).cloned().collect()
    }
    /// `vip` unless the spec says otherwise.
    #[must_use]
    pub fn endpoint_mode(&self) -> EndpointMode {
        self.endpoint_spec.as_ref().and_then(|e| e.mode).unwrap_or_default()
    }
}
