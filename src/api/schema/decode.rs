//! Decodes JSON by its schema, with Go's errors.

use super::literals::{float, literal, with_numbers};
use super::types::{Field, FieldType, Struct};
use crate::api::error::{ApiError, Result};
use serde_json::{Map, Value};

/// Decodes a value as Go would decode it into this struct: keys match in any case, unknown ones are dropped, `null` counts
/// as absent. Numbers may be as [`keep_literals`](super::keep_literals) leaves them.
///
/// # Errors
/// 400 with Go's error for the first wrong type.
pub fn decode(value: Value, schema: &'static Struct) -> Result<Value> {
    let is_number = literal(&value).is_some();
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(map) if !is_number => decode_object(map, schema.fields, schema.name),
        other => Err(ApiError::bad(format!(
            "invalid JSON: json: cannot unmarshal {} into Go value of type {}",
            kind(&other),
            schema.package
        ))),
    }
}

fn decode_object(map: Map<String, Value>, fields: &[Field], path: &str) -> Result<Value> {
    let mut out = Map::new();
    for (key, value) in map {
        let field = fields.iter().find(|f| f.name == key).or_else(|| fields.iter().find(|f| f.name.eq_ignore_ascii_case(&key)));
        if let Some(field) = field
            && !value.is_null()
        {
            let value = decode_field(value, &field.ty, &format!("{path}.{}", field.name))?;
            out.insert(field.name.to_owned(), value);
        }
    }
    Ok(Value::Object(out))
}

fn decode_field(value: Value, ty: &FieldType, path: &str) -> Result<Value> {
    let is_number = literal(&value).is_some();
    match (ty, value) {
        (FieldType::Any, value) => Ok(with_numbers(value)),
        (FieldType::Str, value @ Value::String(_))
        | (FieldType::Bool, value @ Value::Bool(_))
        | (FieldType::Float, value @ Value::Number(_)) => Ok(value),
        (FieldType::Float, value) if is_number => float(&value).ok_or_else(|| wrong_type(&value, "float32", path)),
        (ty, value) if is_number => Err(wrong_type(&value, &ty.go_name(), path)),
        (FieldType::Int(name, min, max), value) => {
            let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
            match number {
                Some(n) if (*min..=*max).contains(&n) => Ok(value),
                _ => Err(wrong_type(&value, name, path)),
            }
        }
        (FieldType::Strings, Value::Array(list)) => list.into_iter().map(|v| decode_string(v, path)).collect(),
        (FieldType::StringLists, Value::Array(lists)) => {
            lists.into_iter().map(|list| decode_field(list, &FieldType::Strings, path)).collect()
        }
        (FieldType::Bytes, Value::String(text)) => match invalid_base64(&text) {
            None => Ok(Value::String(text)),
            Some(at) => Err(ApiError::bad(format!(
                "invalid JSON: json: cannot unmarshal string into Go struct field {path} of type []uint8: illegal base64 data at \
                 input byte {at}"
            ))),
        },
        (FieldType::Labels, Value::Object(map)) => {
            let map: Result<Map<String, Value>> = map.into_iter().map(|(key, v)| Ok((key, decode_string(v, path)?))).collect();
            Ok(Value::Object(map?))
        }
        (FieldType::Object(_, fields), Value::Object(map)) => decode_object(map, fields, path),
        (FieldType::Objects(name, fields), Value::Array(list)) => list
            .into_iter()
            .map(|v| match v {
                v if literal(&v).is_some() => Err(wrong_type(&v, name, path)),
                Value::Object(map) => decode_object(map, fields, path),
                Value::Null => Ok(Value::Object(Map::new())),
                other => Err(wrong_type(&other, name, path)),
            })
            .collect(),
        (ty, value) => Err(wrong_type(&value, &ty.go_name(), path)),
    }
}

/// Where a text is no base64, as Go counts; `None` if it is some. Go skips line ends, so they are no error.
fn invalid_base64(text: &str) -> Option<usize> {
    let is_digit = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    let (mut digits, mut padding) = (0_usize, 0_usize);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\n' | b'\r' => {}
            b'=' if digits % 4 >= 2 && digits % 4 + padding < 4 => padding += 1,
            _ if padding == 0 && is_digit(byte) => digits += 1,
            _ => return Some(at),
        }
    }
    ((digits + padding) % 4 != 0).then_some(text.len())
}

/// A string within a list or a map; `null` is the empty one.
fn decode_string(value: Value, path: &str) -> Result<Value> {
    match value {
        Value::String(_) => Ok(value),
        Value::Null => Ok(Value::String(String::new())),
        other => Err(wrong_type(&other, "string", path)),
    }
}

/// Go's error for a value that does not fit the type of the field at `path`.
fn wrong_type(value: &Value, ty: &str, path: &str) -> ApiError {
    let is_numeric =
        ["uint", "int", "float", "time.Duration", "fs.FileMode"].iter().any(|of| ty.starts_with(of)) && ty != "interface {}";
    let number = literal(value).map(str::to_owned).or_else(|| value.as_number().map(ToString::to_string));
    let found = match number {
        Some(number) if is_numeric => format!("number {number}"),
        _ => kind(value).to_owned(),
    };
    ApiError::bad(format!("invalid JSON: json: cannot unmarshal {found} into Go struct field {path} of type {ty}"))
}

/// What Go calls a JSON value of this type.
fn kind(value: &Value) -> &'static str {
    match value {
        value if literal(value).is_some() => "number",
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use super::super::SERVICE_SPEC;
    use super::*;
    use serde_json::json;

    fn refusal(spec: Value) -> String {
        decode(spec, &SERVICE_SPEC).unwrap_err().message
    }

    #[test]
    fn base64_is_checked_as_go_does() {
        for good in ["", "eA==", "eHg=", "eHh4", "eA=\n="] {
            assert_eq!(invalid_base64(good), None, "{good:?}");
        }
        for (bad, at) in [("not base64!", 3), ("eA=", 3), ("e===", 1), ("eA==x", 4), ("eHh4=", 4), ("e", 1)] {
            assert_eq!(invalid_base64(bad), Some(at), "{bad:?}");
        }
    }

    fn posted(text: &str) -> Result<Value> {
        let kept = super::super::keep_literals(text.as_bytes(), 64);
        decode(serde_json::from_slice(kept.as_deref().unwrap_or(text.as_bytes())).unwrap(), &SERVICE_SPEC)
    }

    #[test]
    fn numbers_are_repeated_as_they_were_posted() {
        let prefix = "invalid JSON: json: cannot unmarshal number";
        for (spec, why) in [
            (
                r#"{"Mode":{"Replicated":{"Replicas":99999999999999999999}}}"#,
                " 99999999999999999999 into Go struct field \
             ServiceSpec.Mode.Replicated.Replicas of type uint64",
            ),
            (
                r#"{"UpdateConfig":{"Delay":1e30}}"#,
                " 1e30 into Go struct field ServiceSpec.UpdateConfig.Delay of type time.Duration",
            ),
            (
                r#"{"UpdateConfig":{"Delay":1.50}}"#,
                " 1.50 into Go struct field ServiceSpec.UpdateConfig.Delay of type time.Duration",
            ),
            (
                r#"{"UpdateConfig":{"MaxFailureRatio":1e400}}"#,
                " 1e400 into Go struct field \
             ServiceSpec.UpdateConfig.MaxFailureRatio of type float32",
            ),
            (r#"{"Name":1.5}"#, " into Go struct field ServiceSpec.Name of type string"),
            (r#"{"TaskTemplate":2.5}"#, " into Go struct field ServiceSpec.TaskTemplate of type swarm.TaskSpec"),
            (
                r#"{"TaskTemplate":{"Networks":[2.5]}}"#,
                " into Go struct field ServiceSpec.TaskTemplate.Networks of type \
             swarm.NetworkAttachmentConfig",
            ),
            ("1.5", " into Go value of type swarm.ServiceSpec"),
        ] {
            assert_eq!(posted(spec).unwrap_err().message, format!("{prefix}{why}"), "{spec}");
        }
        let taken = posted(r#"{"UpdateConfig":{"MaxFailureRatio":0.25},"TaskTemplate":{"PluginSpec":{"x":1.5}}}"#).unwrap();
        assert_eq!(taken, json!({"UpdateConfig": {"MaxFailureRatio": 0.25}, "TaskTemplate": {"PluginSpec": {"x": 1.5}}}));
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        let prefix = "invalid JSON: json: cannot unmarshal";
        assert_eq!(refusal(json!({"Name": 5})), format!("{prefix} number into Go struct field ServiceSpec.Name of type string"));
        assert_eq!(
            refusal(json!({"Mode": {"Replicated": {"Replicas": "2"}}})),
            format!("{prefix} string into Go struct field ServiceSpec.Mode.Replicated.Replicas of type uint64")
        );
        assert_eq!(
            refusal(json!({"Mode": {"Replicated": {"Replicas": -2}}})),
            format!("{prefix} number -2 into Go struct field ServiceSpec.Mode.Replicated.Replicas of type uint64")
        );
        assert_eq!(
            refusal(json!({"TaskTemplate": {"ContainerSpec": {"StopGracePeriod": "10s"}}})),
            format!(
                "{prefix} string into Go struct field ServiceSpec.TaskTemplate.ContainerSpec.StopGracePeriod of type time.Duration"
            )
        );
    }
}
