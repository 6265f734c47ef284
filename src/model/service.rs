//! Services. Names, order and absence of fields are those of the Docker API, because a client gets a spec back as it was
//! posted. Fields of Docker's spec that are not implemented are missing: the API refuses them by name.

use super::{
    autoscale::{self, AutoscaleLabels, Scaling},
    http::HttpLabels,
    id::{NetworkId, ServiceId},
    meta::Meta,
    port::{PortConfig, PublishMode},
    pull_auth::PullAuth,
    secret,
    serde_helpers::null_as_default,
    service_update::{JobStatus, ServiceUpdate},
    task::TaskSpec,
};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

pub use super::service_mode::{Global, Replicated, ReplicatedJob, ServiceMode};
pub use super::service_update::UpdateConfig;

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
    /// Changes only with the task template: a task with the same number runs the current template. A rollback brings back the
    /// number of the spec before.
    pub spec_version: u64,
    /// `spec_version` of the previous spec, if that has another template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_spec_version: Option<u64>,
    /// Highest `spec_version` that was ever given, if it is not the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_spec_version: Option<u64>,
    /// The last update or rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<ServiceUpdate>,
    /// Set for jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// Written by the allocator.
    pub endpoint: Endpoint,
    /// The last changes of its replicas by its load, older first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scalings: Vec<Scaling>,
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
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ServiceSpec {
    /// Unique among services without regard to case.
    pub name: String,
    #[serde(deserialize_with = "null_as_default", serialize_with = "secret::expose_labels")]
    pub labels: BTreeMap<String, String>,
    pub task_template: TaskSpec,
    pub mode: ServiceMode,
    /// How the tasks are replaced when the template changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_config: Option<UpdateConfig>,
    /// As `update_config`, for a rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_config: Option<UpdateConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_spec: Option<EndpointSpec>,
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
    /// How its tasks are replaced now: as the spec says of updates or of rollbacks, whichever is the last one.
    #[must_use]
    pub fn current_update_config(&self) -> UpdateConfig {
        let is_rollback = self.update.as_ref().is_some_and(|update| update.state.is_rollback());
        let config = if is_rollback { &self.spec.rollback_config } else { &self.spec.update_config };
        config.clone().unwrap_or_default()
    }

    /// A `spec_version` that no task has.
    #[must_use]
    pub fn next_spec_version(&self) -> u64 {
        let highest = [Some(self.spec_version), self.previous_spec_version, self.newest_spec_version];
        highest.into_iter().flatten().max().unwrap_or(0).saturating_add(1)
    }

    /// Its last update goes on, or is paused.
    #[must_use]
    pub fn has_open_update(&self) -> bool {
        self.update.as_ref().is_some_and(|update| update.state.is_open())
    }

    /// Goes back to the previous spec, or exchanges both if `keep` is set, with the `spec_version` and the credentials of each.
    /// False, and nothing changed, if there is no previous spec.
    pub fn restore_previous_spec(&mut self, keep: bool) -> bool {
        let Some(previous) = self.previous_spec.take() else { return false };
        let newest = self.next_spec_version() - 1;
        let undone = std::mem::replace(&mut self.spec, previous);
        self.spec.keep_scaled_replicas(&undone.mode);
        let version = self.previous_spec_version.take().unwrap_or(self.spec_version);
        let undone_version = std::mem::replace(&mut self.spec_version, version);
        if keep {
            self.previous_spec = Some(undone);
            self.previous_spec_version = (undone_version != version).then_some(undone_version);
        }
        self.newest_spec_version = (newest != self.spec_version).then_some(newest);
        std::mem::swap(&mut self.pull_auth, &mut self.previous_pull_auth);
        true
    }

    /// What of the object managers of feature level 1 do not know, by its name in the API.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let versions = self.previous_spec_version.is_some() || self.newest_spec_version.is_some();
        match self {
            Self { update: Some(_), .. } => Some("UpdateStatus"),
            Self { job: Some(_), .. } => Some("JobStatus"),
            _ if versions => Some("PreviousSpec"),
            _ => self.spec.newer_field(),
        }
    }

    /// The number of replicas that a user has given it, before its load has changed that. The present one if that is not known: so many
    /// changes are not kept.
    #[must_use]
    pub fn given_replicas(&self) -> u64 {
        let now = self.spec.mode.replicas();
        // A change by a user in between breaks the chain.
        let before = |given: u64, scaling: &Scaling| if scaling.to == given { Ok(scaling.from) } else { Err(given) };
        match self.scalings.iter().rev().try_fold(now, before) {
            Ok(_) if self.scalings.len() >= autoscale::KEPT => now,
            Ok(given) | Err(given) => given,
        }
    }

    /// Ports published through the routing mesh.
    pub fn ingress_ports(&self) -> impl Iterator<Item = &PortConfig> {
        self.endpoint.ports.iter().filter(|p| p.publish_mode == PublishMode::Ingress)
    }
}

impl fmt::Debug for ServiceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

impl ServiceSpec {
    /// A spec that comes back does not undo what its service was scaled to by load since: as many replicas as now, within its range.
    pub fn keep_scaled_replicas(&mut self, now: &ServiceMode) {
        if let (Ok(Some(range)), Some(replicated)) = (AutoscaleLabels::read(&self.labels), &mut self.mode.replicated) {
            replicated.replicas = Some(now.replicas().clamp(range.min, range.max));
        }
    }

    /// What of the spec managers of feature level 1 do not know, by its name in the API.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        match &self.mode {
            ServiceMode { global: Some(_), .. } => Some("Mode.Global"),
            ServiceMode { replicated_job: Some(_), .. } => Some("Mode.ReplicatedJob"),
            ServiceMode { global_job: Some(_), .. } => Some("Mode.GlobalJob"),
            ServiceMode { .. } if self.labels.contains_key(autoscale::RANGE) => Some("Labels.skep.autoscale"),
            ServiceMode { .. } => self.task_template.newer_field(),
        }
    }
    /// True if its tasks need an address on `ingress`: it publishes a port there, or has an HTTP route.
    #[must_use]
    pub fn wants_ingress(&self) -> bool {
        self.publishes_on_ingress() || !self.http_ports().is_empty()
    }
    /// What its labels and its containers' environment say of HTTP.
    ///
    /// # Errors
    /// See [`HttpLabels::of`].
    pub fn http(&self) -> Result<HttpLabels, String> {
        HttpLabels::of(&self.labels, &self.task_template.container_spec.env)
    }
    /// Ports of the containers that its HTTP routes lead to, sorted. Labels that do not parse were set before skep gave them a
    /// meaning, and have no effect.
    #[must_use]
    pub fn http_ports(&self) -> Vec<u16> {
        let labels = self.http().unwrap_or_default();
        let mut ports: Vec<u16> = labels.routes.iter().map(|route| route.port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
    /// Its labels say that it may have no task while no client connects to it.
    #[must_use]
    pub fn reaches_zero(&self) -> bool {
        matches!(AutoscaleLabels::read(&self.labels), Ok(Some(labels)) if labels.reaches_zero())
    }
    fn publishes_on_ingress(&self) -> bool {
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
