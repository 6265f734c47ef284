//! Security options of a container. Credential specs are of Windows: the API refuses them by name.

use serde::{Deserialize, Serialize};

#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Privileges {
    /// Always absent; part of Docker's JSON.
    pub credential_spec: (),
    #[serde(rename = "SELinuxContext")]
    pub selinux_context: Option<SelinuxContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Seccomp>,
    #[serde(rename = "AppArmor", skip_serializing_if = "Option::is_none")]
    pub app_armor: Option<AppArmor>,
    /// Its processes cannot gain privileges by executing a file.
    pub no_new_privileges: bool,
}

/// SELinux labels of the container's processes.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct SelinuxContext {
    /// No confinement by SELinux; the labels are then of no effect.
    pub disable: bool,
    pub user: String,
    pub role: String,
    #[serde(rename = "Type")]
    pub kind: String,
    pub level: String,
}

/// Filter of system calls.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Seccomp {
    /// `default`, `unconfined` or `custom`; the engine's default if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
    /// The profile of mode `custom`: a JSON document, in base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub profile: String,
}

/// Confinement by AppArmor.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AppArmor {
    /// `default` or `disabled`; the engine's default if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mode: String,
}
