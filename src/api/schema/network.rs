//! Bodies of requests to `/networks`.

use super::types::{Field, FieldType, Struct, supported, unsupported};

/// `POST /networks/create`.
pub static NETWORK: Struct = Struct {
    name: "CreateRequest",
    package: "network.CreateRequest",
    fields: &[
        supported("Name", FieldType::Str),
        supported("Driver", FieldType::Str),
        supported("Scope", FieldType::Str),
        supported("CheckDuplicate", FieldType::Bool),
        supported("EnableIPv4", FieldType::Bool),
        supported("EnableIPv6", FieldType::Bool),
        supported("IPAM", FieldType::Object("network.IPAM", IPAM)),
        supported("Internal", FieldType::Bool),
        supported("Attachable", FieldType::Bool),
        supported("Ingress", FieldType::Bool),
        unsupported("ConfigOnly", FieldType::Bool),
        unsupported("ConfigFrom", FieldType::Object("network.ConfigReference", &[unsupported("Network", FieldType::Str)])),
        supported("Options", FieldType::Labels),
        supported("Labels", FieldType::Labels),
    ],
};

const IPAM: &[Field] = &[
    supported("Driver", FieldType::Str),
    unsupported("Options", FieldType::Labels),
    supported("Config", FieldType::Objects("network.IPAMConfig", IPAM_CONFIG)),
];
const IPAM_CONFIG: &[Field] = &[
    supported("Subnet", FieldType::Str),
    supported("IPRange", FieldType::Str),
    supported("Gateway", FieldType::Str),
    supported("AuxiliaryAddresses", FieldType::Labels),
];
