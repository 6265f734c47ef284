//! Docker's service spec.

use super::types::{Field, FieldType, Struct, refused, supported, unsupported};

/// `POST /services/create` and `POST /services/{id}/update`.
pub static SERVICE_SPEC: Struct = Struct { name: "ServiceSpec", package: "swarm.ServiceSpec", fields: SPEC };

const SPEC: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported("TaskTemplate", FieldType::Object("swarm.TaskSpec", TASK)),
    supported("Mode", FieldType::Object("swarm.ServiceMode", MODE)),
    supported("UpdateConfig", FieldType::Object("swarm.UpdateConfig", UPDATE)),
    supported("RollbackConfig", FieldType::Object("swarm.UpdateConfig", UPDATE)),
    supported("Networks", FieldType::Objects("swarm.NetworkAttachmentConfig", ATTACHMENT)),
    supported("EndpointSpec", FieldType::Object("swarm.EndpointSpec", ENDPOINT)),
];

const TASK: &[Field] = &[
    supported("ContainerSpec", FieldType::Object("swarm.ContainerSpec", CONTAINER)),
    refused("PluginSpec", FieldType::Any),
    refused("NetworkAttachmentSpec", FieldType::Any),
    supported("Resources", FieldType::Object("swarm.ResourceRequirements", RESOURCES)),
    supported("RestartPolicy", FieldType::Object("swarm.RestartPolicy", RESTART)),
    supported("Placement", FieldType::Object("swarm.Placement", PLACEMENT)),
    supported("Networks", FieldType::Objects("swarm.NetworkAttachmentConfig", ATTACHMENT)),
    unsupported(
        "LogDriver",
        FieldType::Object("swarm.Driver", &[unsupported("Name", FieldType::Str), unsupported("Options", FieldType::Labels)]),
    ),
    supported("ForceUpdate", FieldType::U64),
    supported("Runtime", FieldType::Str),
];

const CONTAINER: &[Field] = &[
    supported("Image", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported("Command", FieldType::Strings),
    supported("Args", FieldType::Strings),
    supported("Hostname", FieldType::Str),
    supported("Env", FieldType::Strings),
    supported("Dir", FieldType::Str),
    supported("User", FieldType::Str),
    supported("Groups", FieldType::Strings),
    unsupported("Privileges", FieldType::Any),
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
    unsupported("Secrets", FieldType::Any),
    unsupported("Configs", FieldType::Any),
    supported("Isolation", FieldType::Str),
    supported("Sysctls", FieldType::Labels),
    supported("CapabilityAdd", FieldType::Strings),
    supported("CapabilityDrop", FieldType::Strings),
    unsupported("Ulimits", FieldType::Any),
    unsupported("OomScoreAdj", FieldType::I64),
];

const MOUNT: &[Field] = &[
    supported("Type", FieldType::Str),
    supported("Source", FieldType::Str),
    supported("Target", FieldType::Str),
    supported("ReadOnly", FieldType::Bool),
    unsupported("Consistency", FieldType::Str),
    unsupported("BindOptions", FieldType::Any),
    unsupported("VolumeOptions", FieldType::Any),
    unsupported("ImageOptions", FieldType::Any),
    unsupported("TmpfsOptions", FieldType::Any),
    unsupported("ClusterOptions", FieldType::Any),
];

const HEALTH: &[Field] = &[
    supported("Test", FieldType::Strings),
    supported("Interval", FieldType::DURATION),
    supported("Timeout", FieldType::DURATION),
    supported("StartPeriod", FieldType::DURATION),
    unsupported("StartInterval", FieldType::DURATION),
    supported("Retries", FieldType::INT),
];

const DNS: &[Field] = &[
    supported("Nameservers", FieldType::Strings),
    supported("Search", FieldType::Strings),
    supported("Options", FieldType::Strings),
];

const RESOURCES: &[Field] = &[
    supported("Limits", FieldType::Object("swarm.Limit", LIMITS)),
    supported("Reservations", FieldType::Object("swarm.Resources", RESERVATIONS)),
    unsupported("SwapBytes", FieldType::I64),
    unsupported("MemorySwappiness", FieldType::I64),
];
const LIMITS: &[Field] =
    &[supported("NanoCPUs", FieldType::I64), supported("MemoryBytes", FieldType::I64), supported("Pids", FieldType::I64)];
const RESERVATIONS: &[Field] = &[
    unsupported("NanoCPUs", FieldType::I64),
    unsupported("MemoryBytes", FieldType::I64),
    unsupported("GenericResources", FieldType::Any),
];

const RESTART: &[Field] = &[
    supported("Condition", FieldType::Str),
    supported("Delay", FieldType::DURATION),
    supported("MaxAttempts", FieldType::U64),
    supported("Window", FieldType::DURATION),
];

const PLACEMENT: &[Field] = &[
    unsupported("Constraints", FieldType::Strings),
    unsupported("Preferences", FieldType::Any),
    unsupported("MaxReplicas", FieldType::U64),
    supported(
        "Platforms",
        FieldType::Objects("swarm.Platform", &[supported("Architecture", FieldType::Str), supported("OS", FieldType::Str)]),
    ),
];

const ATTACHMENT: &[Field] = &[
    supported("Target", FieldType::Str),
    supported("Aliases", FieldType::Strings),
    unsupported("DriverOpts", FieldType::Labels),
];

const MODE: &[Field] = &[
    supported("Replicated", FieldType::Object("swarm.ReplicatedService", &[supported("Replicas", FieldType::U64)])),
    supported("Global", FieldType::Object("swarm.GlobalService", &[])),
    supported(
        "ReplicatedJob",
        FieldType::Object(
            "swarm.ReplicatedJob",
            &[supported("MaxConcurrent", FieldType::U64), supported("TotalCompletions", FieldType::U64)],
        ),
    ),
    supported("GlobalJob", FieldType::Object("swarm.GlobalJob", &[])),
];

const UPDATE: &[Field] = &[
    supported("Parallelism", FieldType::U64),
    supported("Delay", FieldType::DURATION),
    supported("FailureAction", FieldType::Str),
    supported("Monitor", FieldType::DURATION),
    supported("MaxFailureRatio", FieldType::Float),
    supported("Order", FieldType::Str),
];

const ENDPOINT: &[Field] = &[supported("Mode", FieldType::Str), supported("Ports", FieldType::Objects("swarm.PortConfig", PORT))];
const PORT: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("Protocol", FieldType::Str),
    supported("TargetPort", FieldType::U32),
    supported("PublishedPort", FieldType::U32),
    supported("PublishMode", FieldType::Str),
];
