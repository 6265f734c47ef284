//! What a task may use at most, and what its node keeps free for it. Names are those of Docker's JSON.

use super::serde_helpers::null_as_default;
use serde::{Deserialize, Serialize};

/// Limits and reservations of a task.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Enforced by the engine; not looked at when a node is selected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
    /// Looked at when a node is selected; not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservations: Option<Reservations>,
    /// Swap beside the memory limit, in bytes; -1 for no limit, the engine's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<i64>,
    /// 0 to 100: how readily the kernel swaps the container's memory; -1 or absent for the kernel's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swappiness: Option<i64>,
}

/// Amounts of resources; zero is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ResourceAmounts {
    /// CPUs, in units of 1e-9 CPU.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    pub nano_cpus: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: i64,
    /// Number of processes.
    #[serde(skip_serializing_if = "is_zero")]
    pub pids: i64,
}

/// What a node must have free.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Reservations {
    /// CPUs, in units of 1e-9 CPU; 0 or more.
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    pub nano_cpus: i64,
    /// 0 or more.
    #[serde(skip_serializing_if = "is_zero")]
    pub memory_bytes: i64,
    /// In a spec: numbers of a kind, each kind once.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub generic_resources: Vec<GenericResource>,
}

/// Resources of a kind that the user has defined, as `node-generic-resources` of an engine's configuration. One field is set.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct GenericResource {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_resource_spec: Option<NamedResource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discrete_resource_spec: Option<DiscreteResource>,
}

/// One resource of a kind, with its name: `gpu=GPU-1`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NamedResource {
    pub kind: String,
    pub value: String,
}

/// A number of resources of a kind: `ssd=3`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DiscreteResource {
    pub kind: String,
    pub value: i64,
}

impl GenericResource {
    /// One resource with a name.
    #[must_use]
    pub fn named(kind: &str, value: &str) -> Self {
        let named = NamedResource { kind: kind.to_owned(), value: value.to_owned() };
        Self { named_resource_spec: Some(named), discrete_resource_spec: None }
    }
    /// A number of resources.
    #[must_use]
    pub fn discrete(kind: &str, value: i64) -> Self {
        let discrete = DiscreteResource { kind: kind.to_owned(), value };
        Self { named_resource_spec: None, discrete_resource_spec: Some(discrete) }
    }
    /// About the bytes that it takes.
    #[must_use]
    pub fn size(&self) -> usize {
        16 + self.kind().len() + self.named_resource_spec.as_ref().map_or(0, |named| named.value.len())
    }
    /// Empty if neither field is set.
    #[must_use]
    pub fn kind(&self) -> &str {
        let named = self.named_resource_spec.as_ref().map(|named| named.kind.as_str());
        named.or(self.discrete_resource_spec.as_ref().map(|discrete| discrete.kind.as_str())).unwrap_or_default()
    }
}

impl Resources {
    /// API name of the first field set that builds of feature level 1 do not carry out.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let reserved = self.reservations.as_ref();
        // Level 1 keeps the amounts, and does not look at them when it selects a node.
        let fields = [
            (reserved.is_some_and(|r| r.nano_cpus != 0), "Resources.Reservations.NanoCPUs"),
            (reserved.is_some_and(|r| r.memory_bytes != 0), "Resources.Reservations.MemoryBytes"),
        ];
        self.newer_field_of_nodes().or_else(|| fields.into_iter().find_map(|(set, name)| set.then_some(name)))
    }
    /// The same of the fields that nodes carry out, not managers.
    #[must_use]
    pub fn newer_field_of_nodes(&self) -> Option<&'static str> {
        let reserved = self.reservations.as_ref();
        let fields = [
            (self.swap_bytes.is_some(), "Resources.SwapBytes"),
            (self.memory_swappiness.is_some(), "Resources.MemorySwappiness"),
            (reserved.is_some_and(|r| !r.generic_resources.is_empty()), "Resources.Reservations.GenericResources"),
        ];
        fields.into_iter().find_map(|(set, name)| set.then_some(name))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}
