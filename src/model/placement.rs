//! Where the tasks of a service may run. Names are those of Docker's JSON.

use super::serde_helpers::null_as_default;
use serde::{Deserialize, Serialize};

/// Where tasks may run.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Placement {
    /// Conditions that a node must meet, all of them; [`super::Constraint`] parses them.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub constraints: Vec<String>,
    /// What the tasks are spread over, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub preferences: Vec<PlacementPreference>,
    /// Most tasks of the service on one node; 0: no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_replicas: u64,
    /// Platforms that the image was made for, as the client found them; any if empty.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub platforms: Vec<Platform>,
}

/// Docker has one kind of preference.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PlacementPreference {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<SpreadOver>,
}

/// Tasks are divided evenly among the values that nodes have for a label.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SpreadOver {
    /// `node.labels.KEY` or `engine.labels.KEY`; anything else divides nothing.
    pub spread_descriptor: String,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Platform {
    /// Docker's name: `amd64`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub architecture: String,
    #[serde(rename = "OS", skip_serializing_if = "String::is_empty")]
    pub os: String,
}

impl Placement {
    /// API name of the first field set that managers of feature level 1 do not know.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let fields = [
            (!self.constraints.is_empty(), "Placement.Constraints"),
            (!self.preferences.is_empty(), "Placement.Preferences"),
            (self.max_replicas > 0, "Placement.MaxReplicas"),
        ];
        fields.into_iter().find_map(|(set, name)| set.then_some(name))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}
