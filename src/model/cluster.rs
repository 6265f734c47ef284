//! The cluster object: settings that all managers share, and the root CA.

use super::secret::{self, Secret};
use super::trust_bundle::{CaHistory, TrustBundle};
use super::{id::ClusterId, id::NodeId, mesh::MeshPrefix, meta::Meta, node::Role, time::Nanos, time::Timestamp, view::Revision};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a second manager is refused with, at its join as at its promotion, while the cluster is written for builds that know only one.
pub const ONE_MANAGER: &str = "the managers of this swarm may still go back to a version of skep that knows one manager only: try again \
                               when the feature level is 2 (`skep status`)";

/// Prefix length of a subnet that is taken from a pool, if the cluster has none of its own.
const DEFAULT_SUBNET_SIZE: u8 = 24;

/// The store has exactly one of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    /// Incremented when a cluster is restored from a backup or re-created by force, so that nodes accept the recovered managers'
    /// lower raft indexes.
    pub incarnation: u64,
    /// Root CA certificate, PEM.
    pub ca_certificate: String,
    /// Root CA key, PEM. Never sent to a node that is no manager.
    #[serde(serialize_with = "secret::expose")]
    pub ca_key: Secret<String>,
    pub tokens: JoinTokens,
    /// Root CAs before and after this one.
    #[serde(default, skip_serializing_if = "CaHistory::is_empty")]
    pub ca_history: CaHistory,
    /// What managers encrypt their keys with, `SWMKEY-1-…`; `None`: they are not locked.
    #[serde(default, skip_serializing_if = "Option::is_none", serialize_with = "secret::expose_some")]
    pub unlock_key: Option<Secret<String>>,
    /// The /48 of all mesh addresses.
    pub mesh: MeshPrefix,
    /// Pools that subnets of networks are taken from; 10.0.0.0/8 if empty.
    pub address_pools: Vec<Ipv4Net>,
    /// Ranges of the pools that no network gets by itself: the first manager's host had routes to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reserved_subnets: Vec<Ipv4Net>,
    /// As the user chose it; 0: see [`Cluster::subnet_prefix`].
    pub subnet_size: u8,
    /// UDP port of the tunnel.
    pub data_path_port: u16,
    /// How the cluster was re-created from the state of one manager, oldest first; the last [`INCARNATIONS_KEPT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incarnations: Vec<NewIncarnation>,
    /// What may be written to the log: every manager reads it. Absent: 1. Raised by the leader, never lowered.
    #[serde(default = "first_level", skip_serializing_if = "is_first_level")]
    pub feature_level: u32,
}

impl Cluster {
    /// Prefix length of a subnet that is taken from a pool.
    #[must_use]
    pub fn subnet_prefix(&self) -> u8 {
        if self.subnet_size == 0 { DEFAULT_SUBNET_SIZE } else { self.subnet_size }
    }
    /// Certificate and key of the root that issues certificates: the new one while the CA is changed. PEM.
    #[must_use]
    pub fn issuing_ca(&self) -> (&str, &Secret<String>) {
        match &self.ca_history.rotation {
            Some(rotation) => (&rotation.ca_certificate, &rotation.ca_key),
            None => (&self.ca_certificate, &self.ca_key),
        }
    }

    /// What nodes trust; `None` in a cluster that has had only one root CA.
    #[must_use]
    pub fn trust_bundle(&self) -> Option<TrustBundle> {
        if self.ca_history.is_empty() {
            return None;
        }
        let CaHistory { rotation, retired, .. } = &self.ca_history;
        let crosses = rotation.iter().map(|r| &r.cross).chain(retired.iter().rev().map(|r| &r.cross));
        let trusted = rotation.iter().map(|r| &r.ca_certificate).chain([&self.ca_certificate]);
        Some(TrustBundle {
            issuer: self.issuing_ca().0.to_owned(),
            trusted: trusted.cloned().collect(),
            chain: crosses.cloned().collect(),
            retired: retired.iter().map(|r| r.certificate.clone()).collect(),
        })
    }
}

/// A manager that was away for longer than so many new incarnations counts everything that it has as written since.
pub const INCARNATIONS_KEPT: usize = 16;

/// A cluster that was re-created from the state of one manager: by `--force-new-cluster`, or from a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewIncarnation {
    pub incarnation: u64,
    /// The state that it began with. What the incarnation before has written later is not in it.
    pub base: Revision,
    pub at: Timestamp,
    /// The manager whose state it was.
    pub node: NodeId,
}

fn first_level() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_first_level(level: &u32) -> bool {
    *level == first_level()
}

/// Join tokens, `SWMTKN-1-<digest of the root CA>-<secret>`.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct JoinTokens {
    #[serde(serialize_with = "secret::expose")]
    pub worker: Secret<String>,
    #[serde(serialize_with = "secret::expose")]
    pub manager: Secret<String>,
}

impl JoinTokens {
    /// The token that a node of this role joins with.
    #[must_use]
    pub fn of(&self, role: Role) -> &str {
        match role {
            Role::Worker => self.worker.expose(),
            Role::Manager => self.manager.expose(),
        }
    }
}

/// What `docker swarm update` writes; field names and defaults are Swarm's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ClusterSpec {
    /// Always `default`.
    pub name: String,
    #[serde(deserialize_with = "super::serde_helpers::null_as_default")]
    pub labels: BTreeMap<String, String>,
    pub orchestration: Orchestration,
    pub raft: RaftSpec,
    pub dispatcher: DispatcherSettings,
    #[serde(rename = "CAConfig")]
    pub ca_config: CaSettings,
    /// Always empty; part of Docker's JSON.
    pub task_defaults: TaskDefaults,
    pub encryption_config: EncryptionSettings,
}

impl ClusterSpec {
    /// Entries from one snapshot to the next, if they differ from Swarm's default: then they go before the daemon's setting.
    #[must_use]
    pub fn snapshot_every(&self) -> Option<u64> {
        self.raft.snapshot_interval.filter(|entries| *entries != DEFAULT_SNAPSHOT_INTERVAL && *entries != 0)
    }

    /// How many times the silence after which a node is down is longer than the daemon's setting says: the heartbeat period by
    /// Swarm's default, from 1 to [`MOST_PATIENCE`]. skep's own bound is below that of shorter periods anyway.
    #[must_use]
    pub fn patience(&self) -> f64 {
        let period = self.dispatcher.heartbeat_period.map_or(0, |period| period.0);
        let ratio = std::time::Duration::from_nanos(u64::try_from(period).unwrap_or(0)).as_secs_f64() / DEFAULT_HEARTBEAT_SECONDS;
        ratio.clamp(1.0, MOST_PATIENCE)
    }
}

/// Swarm's default of [`RaftSpec::snapshot_interval`].
const DEFAULT_SNAPSHOT_INTERVAL: u64 = 10_000;
/// Swarm's default of [`DispatcherSettings::heartbeat_period`].
const DEFAULT_HEARTBEAT_SECONDS: f64 = 5.0;
/// A node that is gone for good must be noticed some time.
pub const MOST_PATIENCE: f64 = 60.0;

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            labels: BTreeMap::new(),
            orchestration: Orchestration { task_history_retention_limit: Some(5) },
            raft: RaftSpec {
                snapshot_interval: Some(DEFAULT_SNAPSHOT_INTERVAL),
                keep_old_snapshots: Some(0),
                log_entries_for_slow_followers: Some(500),
                election_tick: 10,
                heartbeat_tick: 1,
            },
            dispatcher: DispatcherSettings { heartbeat_period: Some(Nanos(5_000_000_000)) },
            ca_config: CaSettings { node_cert_expiry: Some(Nanos(7_776_000_000_000_000)), force_rotate: 0 },
            task_defaults: TaskDefaults {},
            encryption_config: EncryptionSettings { auto_lock_managers: false },
        }
    }
}

/// Settings of the orchestrator.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Orchestration {
    /// Tasks kept per slot, the live one included; negative for no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_history_retention_limit: Option<i64>,
}

/// Raft settings as Docker shows them. All but the interval of snapshots are shown only: skep's raft is configured by the daemon's
/// settings.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RaftSpec {
    /// Log entries from one snapshot to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_interval: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_old_snapshots: Option<u64>,
    /// Log entries kept behind a snapshot for slow followers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_entries_for_slow_followers: Option<u64>,
    /// Ticks without a leader until an election.
    pub election_tick: i64,
    pub heartbeat_tick: i64,
}

/// Settings of the dispatcher.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DispatcherSettings {
    /// A longer one than Swarm's default lengthens the silence after which a node is down; the heartbeat itself is one of the
    /// daemon's settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat_period: Option<Nanos>,
}

/// Settings of the CA.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CaSettings {
    /// Lifetime of node certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_cert_expiry: Option<Nanos>,
    /// A change of it makes a new root CA.
    #[serde(skip_serializing_if = "is_zero")]
    pub force_rotate: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Defaults for tasks; none is implemented.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct TaskDefaults {}

/// Encryption of the managers' keys.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EncryptionSettings {
    /// Whether a manager that is started needs the unlock key: [`Cluster::unlock_key`].
    pub auto_lock_managers: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_heartbeat_period_is_more_patience_within_bounds() {
        for (period, patience) in [
            (None, 1.0),
            (Some(1), 1.0),
            (Some(5_000_000_000), 1.0),
            (Some(10_000_000_000), 2.0),
            (Some(i64::MAX), MOST_PATIENCE),
        ] {
            let mut spec = ClusterSpec::default();
            spec.dispatcher.heartbeat_period = period.map(Nanos);
            assert!((spec.patience() - patience).abs() < 1e-9, "{period:?}");
        }
    }
}
