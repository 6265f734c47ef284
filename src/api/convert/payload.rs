//! Secrets and configs.

use crate::api::wire;
use crate::model::payload::PayloadSpec;
use crate::model::{ClusterConfig, ClusterSecret};

/// A secret, without its content.
pub fn secret(secret: &ClusterSecret) -> wire::StoredPayload {
    wire::StoredPayload { id: secret.id.to_string(), meta: secret.meta.into(), spec: spec(&secret.spec, None) }
}

/// A config with its content, in base64.
pub fn config(config: &ClusterConfig, content: String) -> wire::StoredPayload {
    wire::StoredPayload { id: config.id.to_string(), meta: config.meta.into(), spec: spec(&config.spec, Some(content)) }
}

fn spec(spec: &PayloadSpec, content: Option<String>) -> wire::PayloadSpec {
    wire::PayloadSpec { name: spec.name.clone(), labels: spec.labels.clone(), data: content, templating: spec.templating.clone() }
}
