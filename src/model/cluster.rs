//! The cluster object: settings that every manager shares, and the roots of trust.

use super::{id::ClusterId, mesh::MeshPrefix, meta::Meta, node::Role, time::Nanos};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The one cluster object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// What the user set.
    pub spec: ClusterSpec,
    /// Goes up when a cluster is restored or forced anew, so that nodes follow the recovered managers.
    pub incarnation: u64,
    /// Certificate of the root CA, PEM.
    pub ca_certificate: String,
    /// Key of the root CA, PEM. Managers only; never leaves them.
    pub ca_key: String,
    /// Secrets that let nodes join.
    pub tokens: JoinTokens,
    /// The cluster's /48 of mesh addresses.
    pub mesh: MeshPrefix,
    /// Pools that networks are cut from; empty means 10.0.0.0/8.
    pub address_pools: Vec<Ipv4Net>,
    /// Prefix length of a network cut from the pool.
    pub subnet_size: u8,
    /// UDP port of the tunnel.
    pub data_path_port: u16,
}

/// Join tokens, `SWMTKN-1-<digest of the root CA>-<secret>`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct JoinTokens {
    /// Lets a node join as worker.
    pub worker: String,
    /// Lets a node join as manager.
    pub manager: String,
}

impl JoinTokens {
    /// The token for a role.
    #[must_use]
    pub fn of(&self, role: Role) -> &str {
        match role {
            Role::Worker => &self.worker,
            Role::Manager => &self.manager,
        }
    }
}

/// What `docker swarm update` writes; field names and defaults are Swarm's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClusterSpec {
    /// Always "default".
    pub name: String,
    /// User's labels.
    #[serde(deserialize_with = "super::serde_helpers::null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Orchestration settings.
    pub orchestration: Orchestration,
    /// Raft settings.
    pub raft: RaftSettings,
    /// Dispatcher settings.
    pub dispatcher: DispatcherSettings,
    /// CA settings.
    #[serde(rename = "CAConfig")]
    pub ca_config: CaSettings,
    /// Task defaults (shown, empty).
    pub task_defaults: TaskDefaults,
    /// Encryption settings.
    pub encryption_config: EncryptionSettings,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            labels: BTreeMap::new(),
            orchestration: Orchestration { task_history_retention_limit: Some(5) },
            raft: RaftSettings {
                snapshot_interval: Some(10_000),
                keep_old_snapshots: Some(0),
                log_entries_for_slow_followers: Some(500),
                election_tick: 10,
                heartbeat_tick: 1,
            },
            dispatcher: DispatcherSettings { heartbeat_period: Some(Nanos(5_000_000_000)) },
            ca_config: CaSettings { node_cert_expiry: Some(Nanos(7_776_000_000_000_000)) },
            task_defaults: TaskDefaults {},
            encryption_config: EncryptionSettings { auto_lock_managers: false },
        }
    }
}

/// Orchestration settings.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Orchestration {
    /// Finished tasks kept per slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_history_retention_limit: Option<i64>,
}

/// Raft settings as Swarm shows them; skep's own time-outs are daemon settings.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RaftSettings {
    /// Log entries between snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_interval: Option<u64>,
    /// Old snapshots kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_old_snapshots: Option<u64>,
    /// Entries kept for slow followers after a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_entries_for_slow_followers: Option<u64>,
    /// Ticks to an election.
    pub election_tick: i64,
    /// Ticks between heartbeats.
    pub heartbeat_tick: i64,
}

/// Dispatcher settings.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DispatcherSettings {
    /// Shown as Swarm shows it; skep's heartbeat is a daemon setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_period: Option<Nanos>,
}

/// CA settings.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaSettings {
    /// Life-time of node certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cert_expiry: Option<Nanos>,
}

/// Defaults for tasks (none carried out yet).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TaskDefaults {}

/// Encryption of the managers' keys.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EncryptionSettings {
    /// Not built yet: true is refused.
    pub auto_lock_managers: bool,
}
