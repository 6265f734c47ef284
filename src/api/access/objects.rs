//! Replies of nodes are not trusted: what is no object where one belongs is dropped, so that none of our changes can panic.

use crate::http::HttpReply;
use serde_json::{Value, json};

/// What a node's reply may be.
pub trait NodeContent: Sized {
    /// `None`: it has another shape.
    fn checked(value: Value) -> Option<Self>;
}

/// An object.
impl NodeContent for Value {
    fn checked(value: Value) -> Option<Self> {
        value.is_object().then_some(value)
    }
}

/// A list of objects, or `null`.
impl NodeContent for Vec<Value> {
    fn checked(value: Value) -> Option<Self> {
        match value {
            Value::Array(list) => Some(objects(list)),
            Value::Null => Some(Vec::new()),
            _ => None,
        }
    }
}

/// Those that are objects.
pub fn objects(list: Vec<Value>) -> Vec<Value> {
    list.into_iter().filter(Value::is_object).collect()
}

/// What a node's reply, or a line of it, says.
///
/// # Errors
/// It has another shape.
pub fn decoded<T: NodeContent>(body: &[u8]) -> Result<T, String> {
    let value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    T::checked(value).ok_or_else(|| "its reply has another shape".to_owned())
}

/// As [`decoded`]; an error status is an error too.
///
/// # Errors
/// The node refuses, or its reply has another shape.
pub fn content<T: NodeContent>(reply: &HttpReply) -> Result<T, String> {
    reply.ok().map_err(|error| format!("{error:#}"))?;
    decoded(&reply.body)
}

/// A field to change that has to be an object; what is none is replaced by an empty one.
pub fn object_in<'a>(value: &'a mut Value, key: &str) -> &'a mut Value {
    if !value.is_object() {
        *value = json!({});
    }
    let inner = &mut value[key];
    if !inner.is_object() {
        *inner = json!({});
    }
    inner
}

#[cfg(test)]
mod tests {
    use super::super::merge;
    use super::super::planner::fixture::engine_node;
    use super::*;

    const GARBAGE: [&str; 12] = [
        "\"x\"",
        "3",
        "null",
        "[\"x\", 3, null, [], {}]",
        "{\"Config\": \"x\"}",
        "{\"NetworkSettings\": \"x\", \"HostConfig\": [1]}",
        "{\"NetworkSettings\": {\"Ports\": {\"80/tcp\": [\"x\"]}}}",
        "{\"Actor\": \"x\"}",
        "{\"Actor\": {\"Attributes\": [3]}}",
        "{\"Volumes\": [\"x\", 3, null]}",
        "[{\"Names\": \"x\", \"Ports\": [3], \"RepoTags\": {}, \"Scope\": \"local\"}]",
        "{{",
    ];

    #[test]
    fn garbage_replies_of_a_node_do_not_panic() {
        let node = engine_node("n1");
        for text in GARBAGE {
            if let Ok(list) = decoded::<Vec<Value>>(text.as_bytes()) {
                assert!(list.iter().all(Value::is_object));
                merge::containers(vec![(node.clone(), list.clone())], 0);
                merge::images(vec![(node.clone(), list.clone()), (node.clone(), list.clone())]);
                merge::networks(vec![(node.clone(), list)]);
            }
            if let Ok(object) = decoded::<Value>(text.as_bytes()) {
                merge::inspected(&mut object.clone(), &node);
                merge::volumes(vec![(node.clone(), object.clone())]);
                merge::pruned(vec![object.clone(), object.clone()]);
                assert_eq!(merge::event(object, &node)["Actor"]["Attributes"]["node.name"], "n1");
            }
        }
        assert_eq!(decoded::<Vec<Value>>(b"[\"x\", {}]").unwrap(), [json!({})]);
        assert!(decoded::<Value>(b"[]").is_err() && decoded::<Vec<Value>>(b"{}").is_err());
    }
}
