//! The container of a task, as a service's spec describes it.

use super::serde_helpers::null_as_default;
use super::time::Nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The container of a task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    pub image: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Entrypoint; the image's if empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// The image's if empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// The container's id if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Each `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Working directory; the image's if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dir: String,
    /// The image's if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Additional groups.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub groups: Vec<String>,
    /// Shown only: the API refuses all but the zero values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileges: Option<Privileges>,
    /// Allocate a terminal.
    #[serde(rename = "TTY", skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Keep standard input open.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub open_stdin: bool,
    /// The root file system is read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Runs an init process as process 1; the engine's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
    /// The image's if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Time between the stop signal and SIGKILL; [`DEFAULT_STOP_GRACE`] if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_grace_period: Option<Nanos>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub mounts: Vec<Mount>,
    /// Lines for /etc/hosts: `address name …`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub hosts: Vec<String>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    pub dns_config: Option<DnsConfig>,
    /// The image's if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// `default`; set by the API.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub isolation: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities added.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub capability_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub capability_drop: Vec<String>,
}

/// Security options of a container. None is implemented: all are zero.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Privileges {
    pub credential_spec: (),
    #[serde(rename = "SELinuxContext")]
    pub selinux_context: (),
    pub no_new_privileges: bool,
}

/// Time between the stop signal and SIGKILL if the spec sets none.
pub const DEFAULT_STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

impl ContainerSpec {
    /// Time between the stop signal and SIGKILL.
    #[must_use]
    pub fn stop_grace(&self) -> std::time::Duration {
        self.stop_grace_period.map_or(DEFAULT_STOP_GRACE, Nanos::duration)
    }
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind` or `volume`; the API refuses other types by name.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path on the node, or name of a volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the container.
    pub target: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// Resolver settings of a container.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DnsConfig {
    /// Resolvers for names outside the cluster.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub search: Vec<String>,
    /// As in resolv.conf: `ndots:1`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub options: Vec<String>,
}

/// Health check of a container; the engine's defaults for what is absent.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", …]`, `["CMD-SHELL", …]` or `["NONE"]`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Nanos>,
    /// Longest time that one check may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Nanos>,
    /// Time after the start in which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period: Option<Nanos>,
    /// Consecutive failures until the container is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}
