//! What is posted to swarm, nodes and networks.

use super::{Field, Struct, Ty, no, yes};

/// `POST /nodes/{id}/update`.
pub static NODE_SPEC: Struct = Struct {
    name: "NodeSpec",
    package: "swarm.NodeSpec",
    fields: &[yes("Name", Ty::Str), yes("Labels", Ty::Labels), yes("Role", Ty::Str), yes("Availability", Ty::Str)],
};

/// `POST /swarm/update`.
pub static CLUSTER_SPEC: Struct = Struct { name: "Spec", package: "swarm.Spec", fields: CLUSTER };

const CLUSTER: &[Field] = &[
    yes("Name", Ty::Str),
    yes("Labels", Ty::Labels),
    yes("Orchestration", Ty::Object("swarm.OrchestrationConfig", &[yes("TaskHistoryRetentionLimit", Ty::I64)])),
    yes("Raft", Ty::Object("swarm.RaftConfig", RAFT)),
    yes("Dispatcher", Ty::Object("swarm.DispatcherConfig", &[yes("HeartbeatPeriod", Ty::DURATION)])),
    yes("CAConfig", Ty::Object("swarm.CAConfig", CA)),
    yes("TaskDefaults", Ty::Object("swarm.TaskDefaults", &[no("LogDriver", Ty::Any)])),
    yes("EncryptionConfig", Ty::Object("swarm.EncryptionConfig", &[no("AutoLockManagers", Ty::Bool)])),
];

const RAFT: &[Field] = &[
    yes("SnapshotInterval", Ty::U64),
    yes("KeepOldSnapshots", Ty::U64),
    yes("LogEntriesForSlowFollowers", Ty::U64),
    yes("ElectionTick", Ty::INT),
    yes("HeartbeatTick", Ty::INT),
];

const CA: &[Field] = &[
    yes("NodeCertExpiry", Ty::DURATION),
    no("ExternalCAs", Ty::Any),
    no("SigningCACert", Ty::Str),
    no("SigningCAKey", Ty::Str),
    no("ForceRotate", Ty::U64),
];

/// `POST /swarm/init`.
pub static INIT: Struct = Struct {
    name: "InitRequest",
    package: "swarm.InitRequest",
    fields: &[
        yes("ListenAddr", Ty::Str),
        yes("AdvertiseAddr", Ty::Str),
        yes("DataPathAddr", Ty::Str),
        yes("DataPathPort", Ty::U32),
        no("ForceNewCluster", Ty::Bool),
        yes("Spec", Ty::Object("swarm.Spec", CLUSTER)),
        no("AutoLockManagers", Ty::Bool),
        yes("Availability", Ty::Str),
        yes("DefaultAddrPool", Ty::Strings),
        yes("SubnetSize", Ty::U32),
    ],
};

/// `POST /swarm/join`.
pub static JOIN: Struct = Struct {
    name: "JoinRequest",
    package: "swarm.JoinRequest",
    fields: &[
        yes("ListenAddr", Ty::Str),
        yes("AdvertiseAddr", Ty::Str),
        yes("DataPathAddr", Ty::Str),
        yes("RemoteAddrs", Ty::Strings),
        yes("JoinToken", Ty::Str),
        yes("Availability", Ty::Str),
    ],
};

/// `POST /swarm/unlock`.
pub static UNLOCK: Struct =
    Struct { name: "UnlockRequest", package: "swarm.UnlockRequest", fields: &[yes("UnlockKey", Ty::Str)] };

/// `POST /networks/create`.
pub static NETWORK: Struct = Struct {
    name: "CreateRequest",
    package: "network.CreateRequest",
    fields: &[
        yes("Name", Ty::Str),
        yes("Driver", Ty::Str),
        yes("Scope", Ty::Str),
        yes("CheckDuplicate", Ty::Bool),
        yes("EnableIPv4", Ty::Bool),
        no("EnableIPv6", Ty::Bool),
        yes("IPAM", Ty::Object("network.IPAM", IPAM)),
        yes("Internal", Ty::Bool),
        yes("Attachable", Ty::Bool),
        yes("Ingress", Ty::Bool),
        no("ConfigOnly", Ty::Bool),
        no("ConfigFrom", Ty::Object("network.ConfigReference", &[no("Network", Ty::Str)])),
        yes("Options", Ty::Labels),
        yes("Labels", Ty::Labels),
    ],
};

const IPAM: &[Field] =
    &[yes("Driver", Ty::Str), no("Options", Ty::Labels), yes("Config", Ty::Objects("network.IPAMConfig", IPAM_CONFIG))];
const IPAM_CONFIG: &[Field] =
    &[yes("Subnet", Ty::Str), no("IPRange", Ty::Str), yes("Gateway", Ty::Str), no("AuxiliaryAddresses", Ty::Labels)];
