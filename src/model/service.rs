//! Services. Names, order and absence of fields are those of the Docker API, because a client gets a spec back as it was
//! posted. Fields of Docker's spec that are not implemented are missing: the API refuses them by name.

use super::{
    id::{NetworkId, ServiceId},
    meta::Meta,
    port::{PortConfig, PublishMode},
    pull_auth::PullAuth,
    serde_helpers::null_as_default,
    task::TaskSpec,
    time::Nanos,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// Spec before the last update; `None` before the first one.
    pub previous_spec: Option<ServiceSpec>,
    /// What nodes pull the image with; of the update or creation that last sent some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_auth: Option<PullAuth>,
    /// Those before the last update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_pull_auth: Option<PullAuth>,
    /// Changes only with the task template: a task with the same number runs the current template.
    pub spec_version: u64,
    /// Written by the allocator.
    pub endpoint: Endpoint,
}

/// Ports and virtual addresses that the allocator assigned to a service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// The endpoint spec that this results from; `None` if the service has neither ports nor virtual addresses.
    pub spec: Option<EndpointSpec>,
    /// The spec's ports, with every published port assigned.
    pub ports: Vec<PortConfig>,
    /// One virtual address per network, `ingress` first. Load-balanced by the eBPF datapath; the userspace datapath only reserves
    /// it.
    pub vips: Vec<Vip>,
}

/// A virtual address of a service on a network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Vip {
    #[serde(rename = "NetworkID")]
    pub network_id: NetworkId,
    /// The address, with the network's prefix length.
    pub addr: Ipv4Net,
}

/// What `docker service create` posts.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    /// Unique among services without regard to case.
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    pub task_template: TaskSpec,
    pub mode: ServiceMode,
    /// How the tasks are replaced when the template changes. Only the defaults are implemented; the API refuses others by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// As `update_config`, for a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
}

/// How the tasks of a service are replaced.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateConfig {
    /// Tasks replaced at the same time; 0 for all.
    pub parallelism: u64,
    /// Time between two replacements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Nanos>,
    /// `pause`, `continue` or `rollback`.
    pub failure_action: String,
    /// Time after its start in which the end of a task is a failure of the update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Nanos>,
    /// Share of failed tasks, 0 to 1, from which on the update has failed. A number as JSON writes it, because it is shown
    /// as it was posted.
    pub max_failure_ratio: serde_json::Number,
    /// `stop-first` or `start-first`.
    pub order: String,
}

impl Default for UpdateConfig {
    /// What a service without the object is updated by.
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay: None,
            failure_action: "pause".to_owned(),
            monitor: Some(Nanos(5_000_000_000)),
            max_failure_ratio: 0.into(),
            order: "stop-first".to_owned(),
        }
    }
}

/// How many tasks a service has. Exactly one field is set; only `replicated` is implemented.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceMode {
    /// A fixed number of tasks, on any nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicated: Option<Replicated>,
}

/// Replicated mode.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Replicated {
    /// Number of tasks; the API sets 1 if none was posted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u64>,
}

impl ServiceMode {
    /// Desired number of tasks.
    #[must_use]
    pub fn replicas(&self) -> u64 {
        self.replicated.and_then(|r| r.replicas).unwrap_or(1)
    }
}

/// How clients reach a service.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSpec {
    /// As posted; `vip` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<EndpointMode>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub ports: Vec<PortConfig>,
}

/// What the name of a service resolves to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// Its virtual address (its tasks' addresses where only the userspace datapath runs).
    #[default]
    Vip,
    /// The addresses of its tasks.
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
    /// Ports in publish mode `host`: bound by the engine of a task's node.
    #[must_use]
    pub fn host_ports(&self) -> Vec<PortConfig> {
        let ports = self.endpoint_spec.iter().flat_map(|e| &e.ports);
        ports.filter(|p| p.publish_mode == PublishMode::Host).cloned().collect()
    }
    /// `vip` unless the spec sets another mode.
    #[must_use]
    pub fn endpoint_mode(&self) -> EndpointMode {
        self.endpoint_spec.as_ref().and_then(|e| e.mode).unwrap_or_default()
    }
}
