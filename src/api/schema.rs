//! The shapes of what clients post, as tables: one walk over them reads a body as Go would (keys in any case, unknown
//! ones dropped, its words for a wrong type), another finds the fields that are not carried out yet. The tables hold
//! all of Docker's fields, so that none is ignored in silence.

mod other;
mod service;

pub use other::{CLUSTER_SPEC, INIT, JOIN, NETWORK, NODE_SPEC, UNLOCK};
pub use service::SERVICE_SPEC;

use super::error::{ApiError, Result};
use serde_json::{Map, Value};

/// A Go struct.
pub struct Struct {
    /// Its name in Go's errors.
    pub name: &'static str,
    /// Its package and name, for a body that is no object.
    pub package: &'static str,
    /// Its fields.
    pub fields: &'static [Field],
}

/// A field of it.
pub struct Field {
    name: &'static str,
    ty: Ty,
    built: Built,
}

/// Whether a field is carried out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Built {
    /// It is.
    Yes,
    /// It is not: anything but its zero value is refused.
    No,
    /// It is not: refused as soon as it is there.
    NotEvenEmpty,
}

/// Type of a field.
pub enum Ty {
    /// `string`
    Str,
    /// `bool`
    Bool,
    /// An integer of a Go type with these bounds.
    Int(&'static str, i128, i128),
    /// `float32`
    Float,
    /// `[]string`
    Strings,
    /// `map[string]string`
    Labels,
    /// A struct; the name is the Go type.
    Object(&'static str, &'static [Field]),
    /// A list of structs; the name is the Go type of one.
    Objects(&'static str, &'static [Field]),
    /// Anything.
    Any,
}

impl Ty {
    const U64: Self = Self::Int("uint64", 0, u64::MAX as i128);
    const U32: Self = Self::Int("uint32", 0, u32::MAX as i128);
    const I64: Self = Self::Int("int64", i64::MIN as i128, i64::MAX as i128);
    const INT: Self = Self::Int("int", i64::MIN as i128, i64::MAX as i128);
    const DURATION: Self = Self::Int("time.Duration", i64::MIN as i128, i64::MAX as i128);

    fn go(&self) -> String {
        match self {
            Self::Str => "string".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Float => "float32".to_owned(),
            Self::Int(name, _, _) | Self::Object(name, _) => (*name).to_owned(),
            Self::Strings => "[]string".to_owned(),
            Self::Labels => "map[string]string".to_owned(),
            Self::Objects(name, _) => format!("[]{name}"),
            Self::Any => "interface {}".to_owned(),
        }
    }
}

/// A field that is carried out.
const fn yes(name: &'static str, ty: Ty) -> Field {
    Field { name, ty, built: Built::Yes }
}
/// A field that is not, unless it is empty.
const fn no(name: &'static str, ty: Ty) -> Field {
    Field { name, ty, built: Built::No }
}
/// A field that is not, not even empty.
const fn never(name: &'static str, ty: Ty) -> Field {
    Field { name, ty, built: Built::NotEvenEmpty }
}

/// Reads a value as this struct.
///
/// # Errors
/// 400 with Go's sentence for the first wrong type.
pub fn normalise(value: Value, of: &'static Struct) -> Result<Value> {
    match value {
        Value::Null => Ok(Value::Object(Map::new())),
        Value::Object(map) => object(map, of.fields, of.name),
        other => Err(ApiError::bad(format!(
            "invalid JSON: json: cannot unmarshal {} into Go value of type {}",
            kind(&other),
            of.package
        ))),
    }
}

fn object(map: Map<String, Value>, fields: &[Field], path: &str) -> Result<Value> {
    let mut out = Map::new();
    for (key, value) in map {
        let field = fields.iter().find(|f| f.name == key).or_else(|| fields.iter().find(|f| f.name.eq_ignore_ascii_case(&key)));
        if let Some(field) = field
            && !value.is_null()
        {
            let value = check(value, &field.ty, &format!("{path}.{}", field.name))?;
            out.insert(field.name.to_owned(), value);
        }
    }
    Ok(Value::Object(out))
}

fn check(value: Value, ty: &Ty, path: &str) -> Result<Value> {
    let wrong = |value: &Value, ty: &str| {
        let seen = if ty.starts_with("uint") || ty.starts_with("int") || ty == "time.Duration" {
            value.as_number().map_or_else(|| kind(value).to_owned(), |n| format!("number {n}"))
        } else {
            kind(value).to_owned()
        };
        ApiError::bad(format!("invalid JSON: json: cannot unmarshal {seen} into Go struct field {path} of type {ty}"))
    };
    match (ty, value) {
        (Ty::Any, value)
        | (Ty::Str, value @ Value::String(_))
        | (Ty::Bool, value @ Value::Bool(_))
        | (Ty::Float, value @ Value::Number(_)) => Ok(value),
        (Ty::Int(name, min, max), value) => {
            let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
            match number {
                Some(n) if (*min..=*max).contains(&n) => Ok(value),
                _ => Err(wrong(&value, name)),
            }
        }
        (Ty::Strings, Value::Array(list)) => {
            let list: Result<Vec<Value>> = list
                .into_iter()
                .map(|v| match v {
                    Value::String(_) => Ok(v),
                    Value::Null => Ok(Value::String(String::new())),
                    other => Err(wrong(&other, "string")),
                })
                .collect();
            Ok(Value::Array(list?))
        }
        (Ty::Labels, Value::Object(map)) => {
            let map: Result<Map<String, Value>> = map
                .into_iter()
                .map(|(key, v)| match v {
                    Value::String(_) => Ok((key, v)),
                    Value::Null => Ok((key, Value::String(String::new()))),
                    other => Err(wrong(&other, "string")),
                })
                .collect();
            Ok(Value::Object(map?))
        }
        (Ty::Object(_, fields), Value::Object(map)) => object(map, fields, path),
        (Ty::Objects(name, fields), Value::Array(list)) => {
            let list: Result<Vec<Value>> = list
                .into_iter()
                .map(|v| match v {
                    Value::Object(map) => object(map, fields, path),
                    Value::Null => Ok(Value::Object(Map::new())),
                    other => Err(wrong(&other, name)),
                })
                .collect();
            Ok(Value::Array(list?))
        }
        (ty, value) => Err(wrong(&value, &ty.go())),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The path of the first field that is set and not carried out.
pub fn not_built(value: &Value, of: &'static Struct) -> Option<String> {
    first_not_built(value, of.fields, "")
}

fn first_not_built(value: &Value, fields: &[Field], path: &str) -> Option<String> {
    let map = value.as_object()?;
    fields.iter().find_map(|field| {
        let value = map.get(field.name)?;
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        match (field.built, &field.ty) {
            (Built::NotEvenEmpty, _) => Some(path),
            (Built::No, _) => (!is_zero(value)).then_some(path),
            (Built::Yes, Ty::Object(_, fields)) => first_not_built(value, fields, &path),
            (Built::Yes, Ty::Objects(_, fields)) => value
                .as_array()?
                .iter()
                .enumerate()
                .find_map(|(i, value)| first_not_built(value, fields, &format!("{path}[{i}]"))),
            (Built::Yes, _) => None,
        }
    })
}

/// True for what Go calls the zero value, and for what holds nothing else.
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
    use super::*;
    use serde_json::json;

    fn refusal(spec: Value) -> String {
        normalise(spec, &SERVICE_SPEC).unwrap_err().message
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

    #[test]
    fn fields_that_are_not_carried_out_are_found_unless_they_are_empty() {
        let of = |spec: Value| not_built(&normalise(spec, &SERVICE_SPEC).unwrap(), &SERVICE_SPEC);
        let container = |c: Value| json!({"TaskTemplate": {"ContainerSpec": c}});
        assert_eq!(of(container(json!({"secrets": [{"SecretID": "x"}]}))).as_deref(), Some("TaskTemplate.ContainerSpec.Secrets"));
        assert_eq!(of(container(json!({"Secrets": [], "Privileges": {"CredentialSpec": null, "NoNewPrivileges": false}}))), None);
        assert_eq!(
            of(container(json!({"Mounts": [{}, {"TmpfsOptions": {"SizeBytes": 1}}]}))).as_deref(),
            Some("TaskTemplate.ContainerSpec.Mounts[1].TmpfsOptions")
        );
        assert_eq!(of(json!({"Mode": {"Global": {}}})).as_deref(), Some("Mode.Global"));
        assert_eq!(of(json!({"TaskTemplate": {"Resources": {"Limits": {}, "Reservations": {}}, "Placement": {}}})), None);
    }
}
