//! Finds fields that skep does not support, so that none is ignored in silence.

use super::types::{Field, FieldType, Struct, Support};
use serde_json::Value;

/// The path of the first field of a decoded value that skep does not support.
pub fn unsupported_field(value: &Value, schema: &'static Struct) -> Option<String> {
    first_unsupported(value, schema.fields, "")
}

fn first_unsupported(value: &Value, fields: &[Field], path: &str) -> Option<String> {
    let map = value.as_object()?;
    fields.iter().find_map(|field| {
        let value = map.get(field.name)?;
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        match (field.support, &field.ty) {
            (Support::Absent, _) => Some(path),
            (Support::OnlyZero, _) => (!is_zero(value)).then_some(path),
            (Support::Full, FieldType::Object(_, fields)) => first_unsupported(value, fields, &path),
            (Support::Full, FieldType::Objects(_, fields)) => value
                .as_array()?
                .iter()
                .enumerate()
                .find_map(|(i, value)| first_unsupported(value, fields, &format!("{path}[{i}]"))),
            (Support::Full, _) => None,
        }
    })
}

/// Whether a value is Go's zero value, or an object of nothing but zero values.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SERVICE_SPEC, decode};
    use super::*;
    use serde_json::json;

    #[test]
    fn unsupported_fields_are_found_unless_they_are_zero() {
        let unsupported = |spec: Value| unsupported_field(&decode(spec, &SERVICE_SPEC).unwrap(), &SERVICE_SPEC);
        let container = |c: Value| json!({"TaskTemplate": {"ContainerSpec": c}});
        assert_eq!(
            unsupported(container(json!({"configs": [{"ConfigID": "x", "runtime": {}}]}))).as_deref(),
            Some("TaskTemplate.ContainerSpec.Configs[0].Runtime")
        );
        assert_eq!(
            unsupported(container(json!({"Secrets": [], "Privileges": {"CredentialSpec": null, "NoNewPrivileges": false}}))),
            None
        );
        assert_eq!(
            unsupported(container(json!({"Mounts": [{}, {"ClusterOptions": {"x": 1}}]}))).as_deref(),
            Some("TaskTemplate.ContainerSpec.Mounts[1].ClusterOptions")
        );
        assert_eq!(unsupported(json!({"Mode": {"Global": {}}})), None);
        assert_eq!(
            unsupported(json!({"TaskTemplate": {"Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}}})),
            None
        );
    }
}
