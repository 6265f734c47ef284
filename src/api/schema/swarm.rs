//! Bodies of requests to `/swarm` and `/nodes`.

use super::types::{Field, FieldType, Struct, supported, unsupported};

/// `POST /nodes/{id}/update`.
pub static NODE_SPEC: Struct = Struct {
    name: "NodeSpec",
    package: "swarm.NodeSpec",
    fields: &[
        supported("Name", FieldType::Str),
        supported("Labels", FieldType::Labels),
        supported("Role", FieldType::Str),
        supported("Availability", FieldType::Str),
    ],
};

/// `POST /swarm/update`.
pub static CLUSTER_SPEC: Struct = Struct { name: "Spec", package: "swarm.Spec", fields: CLUSTER };

const CLUSTER: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported(
        "Orchestration",
        FieldType::Object("swarm.OrchestrationConfig", &[supported("TaskHistoryRetentionLimit", FieldType::I64)]),
    ),
    supported("Raft", FieldType::Object("swarm.RaftConfig", RAFT)),
    supported("Dispatcher", FieldType::Object("swarm.DispatcherConfig", &[supported("HeartbeatPeriod", FieldType::DURATION)])),
    supported("CAConfig", FieldType::Object("swarm.CAConfig", CA)),
    supported("TaskDefaults", FieldType::Object("swarm.TaskDefaults", &[unsupported("LogDriver", FieldType::Any)])),
    supported("EncryptionConfig", FieldType::Object("swarm.EncryptionConfig", &[supported("AutoLockManagers", FieldType::Bool)])),
];

const RAFT: &[Field] = &[
    supported("SnapshotInterval", FieldType::U64),
    // Kept and shown, as scripts that set them expect. A real swarm does not use the ticks either; of snapshots only the newest
    // is ever read; how much of the log is kept for slow managers is a setting of the daemon.
    supported("KeepOldSnapshots", FieldType::U64),
    supported("LogEntriesForSlowFollowers", FieldType::U64),
    supported("ElectionTick", FieldType::INT),
    supported("HeartbeatTick", FieldType::INT),
];

const CA: &[Field] = &[
    supported("NodeCertExpiry", FieldType::DURATION),
    unsupported("ExternalCAs", FieldType::Any),
    supported("SigningCACert", FieldType::Str),
    supported("SigningCAKey", FieldType::Str),
    supported("ForceRotate", FieldType::U64),
];

/// `POST /swarm/init`.
pub static INIT: Struct = Struct {
    name: "InitRequest",
    package: "swarm.InitRequest",
    fields: &[
        supported("ListenAddr", FieldType::Str),
        supported("AdvertiseAddr", FieldType::Str),
        supported("DataPathAddr", FieldType::Str),
        supported("DataPathPort", FieldType::U32),
        supported("ForceNewCluster", FieldType::Bool),
        supported("Spec", FieldType::Object("swarm.Spec", CLUSTER)),
        supported("AutoLockManagers", FieldType::Bool),
        supported("Availability", FieldType::Str),
        supported("DefaultAddrPool", FieldType::Strings),
        supported("SubnetSize", FieldType::U32),
    ],
};

/// `POST /swarm/join`.
pub static JOIN: Struct = Struct {
    name: "JoinRequest",
    package: "swarm.JoinRequest",
    fields: &[
        supported("ListenAddr", FieldType::Str),
        supported("AdvertiseAddr", FieldType::Str),
        supported("DataPathAddr", FieldType::Str),
        supported("RemoteAddrs", FieldType::Strings),
        supported("JoinToken", FieldType::Str),
        supported("Availability", FieldType::Str),
    ],
};

/// `POST /swarm/unlock`.
pub static UNLOCK: Struct =
    Struct { name: "UnlockRequest", package: "swarm.UnlockRequest", fields: &[supported("UnlockKey", FieldType::Str)] };
