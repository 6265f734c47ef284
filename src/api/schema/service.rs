//! Docker's service spec.

use super::{Field, Struct, Ty, never, no, yes};

/// What `docker service create` and `update` post.
pub static SERVICE_SPEC: Struct = Struct { name: "ServiceSpec", package: "swarm.ServiceSpec", fields: SPEC };

const SPEC: &[Field] = &[
    yes("Name", Ty::Str),
    yes("Labels", Ty::Labels),
    yes("TaskTemplate", Ty::Object("swarm.TaskSpec", TASK)),
    yes("Mode", Ty::Object("swarm.ServiceMode", MODE)),
    no("UpdateConfig", Ty::Object("swarm.UpdateConfig", UPDATE)),
    no("RollbackConfig", Ty::Object("swarm.UpdateConfig", UPDATE)),
    yes("Networks", Ty::Objects("swarm.NetworkAttachmentConfig", ATTACHMENT)),
    yes("EndpointSpec", Ty::Object("swarm.EndpointSpec", ENDPOINT)),
];

const TASK: &[Field] = &[
    yes("ContainerSpec", Ty::Object("swarm.ContainerSpec", CONTAINER)),
    never("PluginSpec", Ty::Any),
    never("NetworkAttachmentSpec", Ty::Any),
    yes("Resources", Ty::Object("swarm.ResourceRequirements", RESOURCES)),
    yes("RestartPolicy", Ty::Object("swarm.RestartPolicy", RESTART)),
    yes("Placement", Ty::Object("swarm.Placement", PLACEMENT)),
    yes("Networks", Ty::Objects("swarm.NetworkAttachmentConfig", ATTACHMENT)),
    no("LogDriver", Ty::Object("swarm.Driver", &[no("Name", Ty::Str), no("Options", Ty::Labels)])),
    yes("ForceUpdate", Ty::U64),
    yes("Runtime", Ty::Str),
];

const CONTAINER: &[Field] = &[
    yes("Image", Ty::Str),
    yes("Labels", Ty::Labels),
    yes("Command", Ty::Strings),
    yes("Args", Ty::Strings),
    yes("Hostname", Ty::Str),
    yes("Env", Ty::Strings),
    yes("Dir", Ty::Str),
    yes("User", Ty::Str),
    yes("Groups", Ty::Strings),
    no("Privileges", Ty::Any),
    yes("Init", Ty::Bool),
    yes("StopSignal", Ty::Str),
    yes("TTY", Ty::Bool),
    yes("OpenStdin", Ty::Bool),
    yes("ReadOnly", Ty::Bool),
    yes("Mounts", Ty::Objects("mount.Mount", MOUNT)),
    yes("StopGracePeriod", Ty::DURATION),
    yes("Healthcheck", Ty::Object("container.HealthConfig", HEALTH)),
    yes("Hosts", Ty::Strings),
    yes("DNSConfig", Ty::Object("swarm.DNSConfig", DNS)),
    no("Secrets", Ty::Any),
    no("Configs", Ty::Any),
    yes("Isolation", Ty::Str),
    yes("Sysctls", Ty::Labels),
    yes("CapabilityAdd", Ty::Strings),
    yes("CapabilityDrop", Ty::Strings),
    no("Ulimits", Ty::Any),
    no("OomScoreAdj", Ty::I64),
];

const MOUNT: &[Field] = &[
    yes("Type", Ty::Str),
    yes("Source", Ty::Str),
    yes("Target", Ty::Str),
    yes("ReadOnly", Ty::Bool),
    no("Consistency", Ty::Str),
    no("BindOptions", Ty::Any),
    no("VolumeOptions", Ty::Any),
    no("ImageOptions", Ty::Any),
    no("TmpfsOptions", Ty::Any),
    no("ClusterOptions", Ty::Any),
];

const HEALTH: &[Field] = &[
    yes("Test", Ty::Strings),
    yes("Interval", Ty::DURATION),
    yes("Timeout", Ty::DURATION),
    yes("StartPeriod", Ty::DURATION),
    no("StartInterval", Ty::DURATION),
    yes("Retries", Ty::INT),
];

const DNS: &[Field] = &[yes("Nameservers", Ty::Strings), yes("Search", Ty::Strings), yes("Options", Ty::Strings)];

const RESOURCES: &[Field] = &[
    yes("Limits", Ty::Object("swarm.Limit", LIMITS)),
    yes("Reservations", Ty::Object("swarm.Resources", RESERVATIONS)),
    no("SwapBytes", Ty::I64),
    no("MemorySwappiness", Ty::I64),
];
const LIMITS: &[Field] = &[yes("NanoCPUs", Ty::I64), yes("MemoryBytes", Ty::I64), yes("Pids", Ty::I64)];
const RESERVATIONS: &[Field] = &[no("NanoCPUs", Ty::I64), no("MemoryBytes", Ty::I64), no("GenericResources", Ty::Any)];

const RESTART: &[Field] =
    &[yes("Condition", Ty::Str), yes("Delay", Ty::DURATION), yes("MaxAttempts", Ty::U64), yes("Window", Ty::DURATION)];

const PLACEMENT: &[Field] = &[
    no("Constraints", Ty::Strings),
    no("Preferences", Ty::Any),
    no("MaxReplicas", Ty::U64),
    yes("Platforms", Ty::Objects("swarm.Platform", &[yes("Architecture", Ty::Str), yes("OS", Ty::Str)])),
];

const ATTACHMENT: &[Field] = &[yes("Target", Ty::Str), yes("Aliases", Ty::Strings), no("DriverOpts", Ty::Labels)];

const MODE: &[Field] = &[
    yes("Replicated", Ty::Object("swarm.ReplicatedService", &[yes("Replicas", Ty::U64)])),
    never("Global", Ty::Any),
    never("ReplicatedJob", Ty::Any),
    never("GlobalJob", Ty::Any),
];

const UPDATE: &[Field] = &[
    no("Parallelism", Ty::U64),
    no("Delay", Ty::DURATION),
    no("FailureAction", Ty::Str),
    no("Monitor", Ty::DURATION),
    no("MaxFailureRatio", Ty::Float),
    no("Order", Ty::Str),
];

const ENDPOINT: &[Field] = &[yes("Mode", Ty::Str), yes("Ports", Ty::Objects("swarm.PortConfig", PORT))];
const PORT: &[Field] = &[
    yes("Name", Ty::Str),
    yes("Protocol", Ty::Str),
    yes("TargetPort", Ty::U32),
    yes("PublishedPort", Ty::U32),
    yes("PublishMode", Ty::Str),
];
