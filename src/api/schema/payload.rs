//! Secrets and configs as posted.

use super::container::DRIVER;
use super::types::{Field, FieldType, Struct, supported};

/// `POST /secrets/create` and `/secrets/{id}/update`.
pub static SECRET_SPEC: Struct = Struct { name: "SecretSpec", package: "swarm.SecretSpec", fields: SECRET };
/// `POST /configs/create` and `/configs/{id}/update`.
pub static CONFIG_SPEC: Struct = Struct { name: "ConfigSpec", package: "swarm.ConfigSpec", fields: CONFIG };

const SECRET: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported("Data", FieldType::Bytes),
    supported("Driver", FieldType::Object("swarm.Driver", DRIVER)),
    supported("Templating", FieldType::Object("swarm.Driver", DRIVER)),
];

const CONFIG: &[Field] = &[
    supported("Name", FieldType::Str),
    supported("Labels", FieldType::Labels),
    supported("Data", FieldType::Bytes),
    supported("Templating", FieldType::Object("swarm.Driver", DRIVER)),
];
