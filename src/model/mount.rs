//! Mounts of a container.

use super::secret::{self, Secret};
use super::serde_helpers::null_as_default;
use super::template::is_template;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs` or `image`; the API refuses other types by name.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Path on the node, name of a volume, or an image; may have placeholders.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Path in the container; may have placeholders.
    pub target: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Of Docker Desktop; the engine takes it and does nothing with it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<BindOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<VolumeOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_options: Option<ImageOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<TmpfsOptions>,
}

impl Mount {
    /// Whether a value of it is expanded on the node.
    #[must_use]
    pub fn has_templates(&self) -> bool {
        let volume = self.volume_options.iter();
        let labels = volume.clone().flat_map(|v| v.labels.values());
        let options = volume.filter_map(|v| v.driver_config.as_ref()).flat_map(|d| d.options.values()).map(Secret::expose);
        [&self.source, &self.target].into_iter().chain(labels).chain(options).any(|text| is_template(text))
    }

    /// It has what builds of feature level 1 do not know.
    pub(super) fn is_newer(&self) -> bool {
        let known = Self {
            kind: self.kind.clone(),
            source: self.source.clone(),
            target: self.target.clone(),
            read_only: self.read_only,
            ..Self::default()
        };
        !["bind", "volume"].contains(&self.kind.as_str()) || *self != known
    }
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "fields of Docker's JSON")]
pub struct BindOptions {
    /// As `mount` names it: `rslave`; `rprivate` if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub propagation: String,
    /// Without the mounts below the source.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub non_recursive: bool,
    /// Create the source if it is missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub create_mountpoint: bool,
    /// Only the top mount is read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_non_recursive: bool,
    /// Fail if the mounts below cannot be made read-only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only_force_recursive: bool,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeOptions {
    /// Do not copy what the image has at the target.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_copy: bool,
    /// Of a volume that is created; values may have placeholders.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Path in the volume.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subpath: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_config: Option<VolumeDriver>,
}

/// Driver of a volume that is created.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeDriver {
    /// The engine's default if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Values may have placeholders, and may be secret: passwords of file servers.
    #[serde(
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "null_as_default",
        serialize_with = "secret::expose_map"
    )]
    pub options: BTreeMap<String, Secret<String>>,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageOptions {
    /// Path in the image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subpath: String,
}

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TmpfsOptions {
    /// The kernel's limit if 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub size_bytes: i64,
    /// Permissions of its root; 0 for the engine's default.
    #[serde(skip_serializing_if = "is_zero_mode")]
    pub mode: u32,
    /// Each a name, or a name and a value.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub options: Vec<Vec<String>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero(value: &i64) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "signature that serde calls")]
fn is_zero_mode(value: &u32) -> bool {
    *value == 0
}
