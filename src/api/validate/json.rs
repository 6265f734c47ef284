//! Posted JSON.

use serde_json::Value;

pub(super) fn items<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Lower-cases a text field and removes it if it is empty.
pub(super) fn lowercase(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut()
        && let Some(Value::String(text)) = map.get_mut(key)
    {
        text.make_ascii_lowercase();
        if text.is_empty() {
            map.remove(key);
        }
    }
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
