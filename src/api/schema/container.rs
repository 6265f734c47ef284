//! The container of a service's tasks in Docker's service spec.

use super::types::{Field, FieldType, refused, supported, unsupported};

/// `swarm.ContainerSpec`.
pub(super) const CONTAINER: &[Field] = &[
    supported("Image", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported("Command", FieldType::Strings),
    supported("Args", FieldType::Strings),
    supported("Hostname", FieldType::Str),
    supported("Env", FieldType::Strings),
    supported("Dir", FieldType::Str),
    supported("User", FieldType::Str),
    supported("Groups", FieldType::Strings),
    supported("Privileges", FieldType::Object("swarm.Privileges", PRIVILEGES)),
    supported("Init", FieldType::Bool),
    supported("StopSignal", FieldType::Str),
    supported("TTY", FieldType::Bool),
    supported("OpenStdin", FieldType::Bool),
    supported("ReadOnly", FieldType::Bool),
    supported("Mounts", FieldType::Objects("mount.Mount", MOUNT)),
    supported("StopGracePeriod", FieldType::DURATION),
    supported("Healthcheck", FieldType::Object("container.HealthConfig", HEALTH)),
    supported("Hosts", FieldType::Strings),
    supported("DNSConfig", FieldType::Object("swarm.DNSConfig", DNS)),
    supported("Secrets", FieldType::Objects("swarm.SecretReference", SECRET)),
    supported("Configs", FieldType::Objects("swarm.ConfigReference", CONFIG)),
    supported("Isolation", FieldType::Str),
    supported("Sysctls", FieldType::Labels),
    supported("CapabilityAdd", FieldType::Strings),
    supported("CapabilityDrop", FieldType::Strings),
    supported("Ulimits", FieldType::Objects("container.Ulimit", ULIMIT)),
    supported("OomScoreAdj", FieldType::I64),
];

/// Credential specs are of Windows.
const PRIVILEGES: &[Field] = &[
    unsupported(
        "CredentialSpec",
        FieldType::Object(
            "swarm.CredentialSpec",
            &[
                unsupported("Config", FieldType::Str),
                unsupported("File", FieldType::Str),
                unsupported("Registry", FieldType::Str),
            ],
        ),
    ),
    supported("SELinuxContext", FieldType::Object("swarm.SELinuxContext", SELINUX)),
    supported("Seccomp", FieldType::Object("swarm.SeccompOpts", SECCOMP)),
    supported("AppArmor", FieldType::Object("swarm.AppArmorOpts", &[supported("Mode", FieldType::Str)])),
    supported("NoNewPrivileges", FieldType::Bool),
];
const SELINUX: &[Field] = &[
    supported("Disable", FieldType::Bool),
    supported("User", FieldType::Str),
    supported("Role", FieldType::Str),
    supported("Type", FieldType::Str),
    supported("Level", FieldType::Str),
];
const SECCOMP: &[Field] = &[supported("Mode", FieldType::Str), supported("Profile", FieldType::Bytes)];

const MOUNT: &[Field] = &[
    supported("Type", FieldType::Str),
    supported("Source", FieldType::Str),
    supported("Target", FieldType::Str),
    supported("ReadOnly", FieldType::Bool),
    supported("Consistency", FieldType::Str),
    supported("BindOptions", FieldType::Object("mount.BindOptions", BIND)),
    supported("VolumeOptions", FieldType::Object("mount.VolumeOptions", VOLUME)),
    supported("ImageOptions", FieldType::Object("mount.ImageOptions", &[supported("Subpath", FieldType::Str)])),
    supported("TmpfsOptions", FieldType::Object("mount.TmpfsOptions", TMPFS)),
    unsupported("ClusterOptions", FieldType::Any),
];
const BIND: &[Field] = &[
    supported("Propagation", FieldType::Str),
    supported("NonRecursive", FieldType::Bool),
    supported("CreateMountpoint", FieldType::Bool),
    supported("ReadOnlyNonRecursive", FieldType::Bool),
    supported("ReadOnlyForceRecursive", FieldType::Bool),
];
const VOLUME: &[Field] = &[
    supported("NoCopy", FieldType::Bool),
    supported("Labels", FieldType::Labels),
    supported("Subpath", FieldType::Str),
    supported("DriverConfig", FieldType::Object("mount.Driver", DRIVER)),
];
const TMPFS: &[Field] = &[
    supported("SizeBytes", FieldType::I64),
    supported("Mode", FieldType::FILE_MODE),
    supported("Options", FieldType::StringLists),
];

/// Name and options of a driver.
pub(super) const DRIVER: &[Field] = &[supported("Name", FieldType::Str), supported("Options", FieldType::Labels)];

const HEALTH: &[Field] = &[
    supported("Test", FieldType::Strings),
    supported("Interval", FieldType::DURATION),
    supported("Timeout", FieldType::DURATION),
    supported("StartPeriod", FieldType::DURATION),
    supported("StartInterval", FieldType::DURATION),
    supported("Retries", FieldType::INT),
];

const DNS: &[Field] = &[
    supported("Nameservers", FieldType::Strings),
    supported("Search", FieldType::Strings),
    supported("Options", FieldType::Strings),
];

const SECRET: &[Field] = &[
    supported("File", FieldType::Object("swarm.SecretReferenceFileTarget", FILE)),
    supported("SecretID", FieldType::Str),
    supported("SecretName", FieldType::Str),
];
/// A config for the runtime is one for a credential spec.
const CONFIG: &[Field] = &[
    supported("File", FieldType::Object("swarm.ConfigReferenceFileTarget", FILE)),
    refused("Runtime", FieldType::Any),
    supported("ConfigID", FieldType::Str),
    supported("ConfigName", FieldType::Str),
];
const FILE: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("UID", FieldType::Str),
    supported("GID", FieldType::Str),
    supported("Mode", FieldType::FILE_MODE),
];

const ULIMIT: &[Field] =
    &[supported("Name", FieldType::Str), supported("Hard", FieldType::I64), supported("Soft", FieldType::I64)];
