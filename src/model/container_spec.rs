//! The container of a task, as a service's spec describes it. Spelled as in the Docker API.

use super::container_privileges::Privileges;
use super::id::{ConfigId, SecretId};
use super::mount::Mount;
use super::payload::PayloadId;
use super::secret::{self, Secret};
use super::serde_helpers::null_as_default;
use super::template;
use super::time::Nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerSpec {
    pub image: String,
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default",
        serialize_with = "secret::expose_labels"
    )]
    pub labels: BTreeMap<String, String>,
    /// Entrypoint; the image's if empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub command: Vec<String>,
    /// The image's if empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub args: Vec<String>,
    /// The container's id if empty. May have placeholders ([`template`]).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Each `NAME=value`. Values may have placeholders, and may be secret.
    #[serde(
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "null_as_default",
        serialize_with = "secret::expose_values"
    )]
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
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub secrets: Vec<SecretReference>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub configs: Vec<ConfigReference>,
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
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub ulimits: Vec<Ulimit>,
    /// -1000 to 1000: how readily the kernel kills its processes when memory runs out.
    #[serde(skip_serializing_if = "is_zero")]
    pub oom_score_adj: i64,
}

/// Time between the stop signal and SIGKILL if the spec sets none.
pub const DEFAULT_STOP_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

impl fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret::debug(self, f)
    }
}

impl ContainerSpec {
    /// Time between the stop signal and SIGKILL.
    #[must_use]
    pub fn stop_grace(&self) -> std::time::Duration {
        self.stop_grace_period.map_or(DEFAULT_STOP_GRACE, Nanos::duration)
    }

    /// The secrets and configs that it gets.
    pub fn payloads(&self) -> impl Iterator<Item = PayloadId> {
        let secrets = self.secrets.iter().map(|s| PayloadId::Secret(s.id.clone()));
        secrets.chain(self.configs.iter().map(|c| PayloadId::Config(c.id.clone())))
    }

    /// Whether a value of it is expanded on the node.
    #[must_use]
    pub fn has_templates(&self) -> bool {
        self.template_field().is_some()
    }

    /// The first field with a placeholder.
    fn template_field(&self) -> Option<&'static str> {
        if template::is_template(&self.hostname) {
            return Some("Hostname");
        }
        let value = |entry: &String| entry.split_once('=').is_some_and(|(_, value)| template::is_template(value));
        if self.env.iter().any(value) {
            return Some("Env");
        }
        self.mounts.iter().any(Mount::has_templates).then_some("Mounts")
    }

    /// The API's name of the first field that is set and that builds of feature level 1 would drop or misread.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let health = self.healthcheck.as_ref();
        let fields = [
            (!self.secrets.is_empty(), "ContainerSpec.Secrets"),
            (!self.configs.is_empty(), "ContainerSpec.Configs"),
            (!self.ulimits.is_empty(), "ContainerSpec.Ulimits"),
            (self.oom_score_adj != 0, "ContainerSpec.OomScoreAdj"),
            (self.privileges.as_ref().is_some_and(|p| *p != Privileges::default()), "ContainerSpec.Privileges"),
            (health.is_some_and(|h| h.start_interval.is_some()), "ContainerSpec.Healthcheck.StartInterval"),
            (self.mounts.iter().any(Mount::is_newer), "ContainerSpec.Mounts"),
        ];
        let set = fields.into_iter().find_map(|(is_set, name)| is_set.then_some(name));
        set.or_else(|| {
            self.template_field().map(|field| match field {
                "Hostname" => "ContainerSpec.Hostname with a template",
                "Env" => "ContainerSpec.Env with a template",
                _ => "ContainerSpec.Mounts with a template",
            })
        })
    }
}

/// A secret that the container gets as a file in memory.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SecretReference {
    #[serde(rename = "SecretID")]
    pub id: SecretId,
    /// The secret's name when the service was written.
    #[serde(rename = "SecretName")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
}

/// A config that the container gets as a file.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ConfigReference {
    #[serde(rename = "ConfigID")]
    pub id: ConfigId,
    /// The config's name when the service was written.
    #[serde(rename = "ConfigName")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileTarget>,
}

/// Where a secret or config appears in the container, and whose it is there.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct FileTarget {
    /// Path; a relative one is below `/run/secrets` for a secret, below `/` for a config.
    pub name: String,
    /// Owner, a number.
    #[serde(rename = "UID")]
    pub uid: String,
    /// Group, a number.
    #[serde(rename = "GID")]
    pub gid: String,
    /// Permissions: the lowest nine bits count.
    pub mode: u32,
}

/// A limit of the container's processes (setrlimit). -1 is no limit.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ulimit {
    /// As in `ulimit`: `nofile`.
    pub name: String,
    pub hard: i64,
    pub soft: i64,
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
    /// Time between checks in the start period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_interval: Option<Nanos>,
    /// Consecutive failures until the container is unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i64>,
}

/// Where what a container writes to its output goes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LogDriver {
    /// The engine's default if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Values may be secret: tokens of log services.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default",
        serialize_with = "secret::expose_map"
    )]
    pub options: BTreeMap<String, Secret<String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_build_would_drop_is_named() {
        let newer = |json: &str| serde_json::from_str::<ContainerSpec>(json).expect("a spec").newer_field();
        for (json, field) in [
            (r#"{"Image":"a","Env":["A=b"],"Mounts":[{"Type":"volume","Source":"v","Target":"/v","ReadOnly":true}]}"#, None),
            (r#"{"Privileges":{"CredentialSpec":null,"SELinuxContext":null,"NoNewPrivileges":false}}"#, None),
            (r#"{"Privileges":{"NoNewPrivileges":true}}"#, Some("ContainerSpec.Privileges")),
            (r#"{"Secrets":[{"SecretID":"x"}]}"#, Some("ContainerSpec.Secrets")),
            (r#"{"Configs":[{"ConfigID":"x"}]}"#, Some("ContainerSpec.Configs")),
            (r#"{"Ulimits":[{"Name":"core"}]}"#, Some("ContainerSpec.Ulimits")),
            (r#"{"OomScoreAdj":-1}"#, Some("ContainerSpec.OomScoreAdj")),
            (r#"{"Healthcheck":{"StartInterval":1}}"#, Some("ContainerSpec.Healthcheck.StartInterval")),
            (r#"{"Mounts":[{"Type":"tmpfs","Target":"/t"}]}"#, Some("ContainerSpec.Mounts")),
            (r#"{"Mounts":[{"Type":"bind","Target":"/t","BindOptions":{"NonRecursive":true}}]}"#, Some("ContainerSpec.Mounts")),
            (r#"{"Hostname":"{{.Task.Slot}}"}"#, Some("ContainerSpec.Hostname with a template")),
            (r#"{"Env":["A={{.Task.Slot}}"]}"#, Some("ContainerSpec.Env with a template")),
            (r#"{"Env":["{{A}}=b"]}"#, None),
        ] {
            assert_eq!(newer(json), field, "{json}");
        }
    }
}
