//! The API's replies as types, field by field in the real server's order. Their names are those of Docker's JSON, so some
//! repeat names of the model (`Node`, `Task`, …): use them as `wire::Node`. Specs are not here: those of [`crate::model`]
//! are spelled as in Docker's JSON and are sent as they are.

#![expect(
    clippy::struct_field_names,
    clippy::struct_excessive_bools,
    clippy::option_option,
    clippy::trivially_copy_pass_by_ref,
    reason = "Docker's names and nulls; the signature that serde requires"
)]

use crate::model::PortConfig;
use crate::model::cluster::{ClusterSpec, JoinTokens};
use crate::model::payload::Templating;
use crate::model::service::{EndpointSpec, ServiceSpec};
use crate::model::task::{ContainerStatus, GenericResource, TaskSpec};
use crate::model::{Meta, NetworkId, NodeSpec, Timestamp};
use ipnet::IpNet;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    pub index: u64,
}

/// The fields of every object of the cluster after its id.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ObjectMeta {
    pub version: Version,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<Meta> for ObjectMeta {
    fn from(meta: Meta) -> Self {
        Self { version: Version { index: meta.version }, created_at: meta.created_at, updated_at: meta.updated_at }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub spec: ServiceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_spec: Option<ServiceSpec>,
    pub endpoint: Endpoint,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_status: Option<UpdateStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_status: Option<ServiceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_status: Option<JobStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UpdateStatus {
    pub state: &'static str,
    pub started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    pub message: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct JobStatus {
    pub job_iteration: JobIteration,
    pub last_execution: Timestamp,
}

/// `{}` for the first run.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct JobIteration {
    #[serde(skip_serializing_if = "is_zero")]
    pub index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Endpoint {
    pub spec: EndpointSpec,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
    #[serde(rename = "VirtualIPs", skip_serializing_if = "Vec::is_empty")]
    pub virtual_ips: Vec<VirtualIp>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceStatus {
    pub running_tasks: u64,
    pub desired_tasks: u64,
    pub completed_tasks: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Task {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub labels: BTreeMap<String, String>,
    pub spec: TaskSpec,
    #[serde(rename = "ServiceID")]
    pub service_id: String,
    #[serde(skip_serializing_if = "is_zero")]
    pub slot: u64,
    #[serde(rename = "NodeID", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,
    pub status: TaskStatus,
    pub desired_state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks_attachments: Vec<Attachment>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job_iteration: Option<JobIteration>,
    /// `Some(None)` is written as `null`, `None` not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Option<()>>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TaskStatus {
    pub timestamp: Timestamp,
    pub state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_status: Option<ContainerStatus>,
    pub port_status: PortStatus,
}

/// Ports of the host that the engine bound; `{}` without any.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortConfig>,
}

/// A virtual address of a service, of either family.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct VirtualIp {
    #[serde(rename = "NetworkID")]
    pub network_id: NetworkId,
    /// With the prefix length of the network.
    pub addr: IpNet,
}

/// An element of a task's `NetworksAttachments`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attachment {
    pub network: AttachedNetwork,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
}

/// A network within an [`Attachment`].
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachedNetwork {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub spec: AttachedNetworkSpec,
    pub driver_state: Driver,
    #[serde(rename = "IPAMOptions")]
    pub ipam_options: Ipam,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttachedNetworkSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub driver_configuration: Driver,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub internal: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub attachable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ingress: bool,
    #[serde(rename = "IPAMOptions")]
    pub ipam_options: Ipam,
    pub scope: &'static str,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Driver {
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// IPAM of a network within an [`Attachment`].
#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    pub driver: Driver,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configs: Vec<IpamConfig>,
}

#[derive(Serialize, Clone, Default)]
#[serde(rename_all = "PascalCase")]
pub struct IpamConfig {
    pub subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
    pub ip_range: String,
    /// The same within a task's networks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub range: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub gateway: String,
}

/// A secret or a config.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct StoredPayload {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub spec: PayloadSpec,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PayloadSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// In base64; of configs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templating: Option<Templating>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub spec: NodeSpec,
    pub description: Description,
    pub status: NodeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manager_status: Option<ManagerStatus>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Description {
    pub hostname: String,
    pub platform: Platform,
    pub resources: Resources,
    pub engine: EngineDescription,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Platform {
    pub architecture: String,
    #[serde(rename = "OS")]
    pub os: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Resources {
    #[serde(rename = "NanoCPUs")]
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generic_resources: Vec<GenericResource>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct EngineDescription {
    pub engine_version: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    pub plugins: Vec<Plugin>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plugin {
    #[serde(rename = "Type")]
    pub kind: String,
    pub name: String,
}

#[derive(Serialize, Clone, Default)]
#[serde(rename_all = "PascalCase")]
pub struct TlsInfo {
    pub trust_root: String,
    /// DER in base 64.
    pub cert_issuer_subject: String,
    /// DER in base 64.
    pub cert_issuer_public_key: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeStatus {
    pub state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ManagerStatus {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leader: bool,
    pub reachability: &'static str,
    pub addr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Swarm {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(flatten)]
    pub meta: ObjectMeta,
    pub spec: ClusterSpec,
    #[serde(rename = "TLSInfo")]
    pub tls_info: TlsInfo,
    pub root_rotation_in_progress: bool,
    /// `null` when the default is used.
    pub default_addr_pool: Option<Vec<String>>,
    pub subnet_size: u8,
    pub data_path_port: u16,
    /// Not in `/info`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_tokens: Option<JoinTokens>,
}

/// The `Swarm` block of `/info`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct SwarmInfo {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub node_addr: String,
    pub local_node_state: &'static str,
    pub control_available: bool,
    pub error: String,
    /// `null` outside a swarm.
    pub remote_managers: Option<Vec<RemoteManager>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub managers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Swarm>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RemoteManager {
    #[serde(rename = "NodeID")]
    pub node_id: String,
    pub addr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    pub name: String,
    pub id: String,
    pub created: Timestamp,
    pub scope: &'static str,
    pub driver: &'static str,
    /// From API 1.48 on.
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    pub enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    pub ipam: NetworkIpam,
    pub internal: bool,
    pub attachable: bool,
    pub ingress: bool,
    pub config_from: ConfigFrom,
    pub config_only: bool,
    /// Nodes with containers on the network; absent where this node's engine does not have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<serde_json::Value>,
    /// By name, with their tasks; only of a verbose inspection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<serde_json::Value>,
    /// Of this node; `null` if its engine does not have the network.
    pub containers: Option<serde_json::Value>,
    pub options: BTreeMap<String, String>,
    /// `null` if there are none and this node's engine does not have the network.
    pub labels: Option<BTreeMap<String, String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkIpam {
    pub driver: &'static str,
    pub options: Option<()>,
    pub config: Vec<IpamConfig>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct ConfigFrom {
    pub network: String,
}

/// A line of `GET /services/{id}/history`, which no Docker has.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryEntry {
    pub at: Timestamp,
    pub event: &'static str,
    /// Of the task, as `service ps` has it; empty for what happened to the service.
    pub name: String,
    pub task: String,
    pub node: String,
    pub why: String,
}
