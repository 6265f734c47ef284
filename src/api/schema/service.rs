//! Docker's service spec.

use super::container::{CONTAINER, DRIVER};
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
    supported("LogDriver", FieldType::Object("swarm.Driver", DRIVER)),
    supported("ForceUpdate", FieldType::U64),
    supported("Runtime", FieldType::Str),
];

const RESOURCES: &[Field] = &[
    supported("Limits", FieldType::Object("swarm.Limit", LIMITS)),
    supported("Reservations", FieldType::Object("swarm.Resources", RESERVATIONS)),
    supported("SwapBytes", FieldType::I64),
    supported("MemorySwappiness", FieldType::I64),
];
const LIMITS: &[Field] =
    &[supported("NanoCPUs", FieldType::I64), supported("MemoryBytes", FieldType::I64), supported("Pids", FieldType::I64)];
const RESERVATIONS: &[Field] = &[
    supported("NanoCPUs", FieldType::I64),
    supported("MemoryBytes", FieldType::I64),
    supported("GenericResources", FieldType::Objects("swarm.GenericResource", GENERIC)),
];
const GENERIC: &[Field] = &[
    supported(
        "NamedResourceSpec",
        FieldType::Object("swarm.NamedGenericResource", &[supported("Kind", FieldType::Str), supported("Value", FieldType::Str)]),
    ),
    supported(
        "DiscreteResourceSpec",
        FieldType::Object(
            "swarm.DiscreteGenericResource",
            &[supported("Kind", FieldType::Str), supported("Value", FieldType::I64)],
        ),
    ),
];

const RESTART: &[Field] = &[
    supported("Condition", FieldType::Str),
    supported("Delay", FieldType::DURATION),
    supported("MaxAttempts", FieldType::U64),
    supported("Window", FieldType::DURATION),
];

const PLACEMENT: &[Field] = &[
    supported("Constraints", FieldType::Strings),
    supported("Preferences", FieldType::Objects("swarm.PlacementPreference", PREFERENCE)),
    supported("MaxReplicas", FieldType::U64),
    supported(
        "Platforms",
        FieldType::Objects("swarm.Platform", &[supported("Architecture", FieldType::Str), supported("OS", FieldType::Str)]),
    ),
];

const PREFERENCE: &[Field] =
    &[supported("Spread", FieldType::Object("swarm.SpreadOver", &[supported("SpreadDescriptor", FieldType::Str)]))];

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
