//! What earlier builds wrote is read, and what a newer build wrote is refused by name, not read in part.

mod data_directory;
mod messages;
mod names;
mod sealed;
mod unknown_fields;

use serde_json::Value;

/// Everything in the recorded document is in the written one, which may have more.
fn assert_contains(written: &Value, recorded: &Value, at: &str) {
    match (written, recorded) {
        (Value::Object(written), Value::Object(recorded)) => {
            for (name, value) in recorded {
                let at = format!("{at}/{name}");
                assert_contains(written.get(name).unwrap_or_else(|| panic!("{at} is missing")), value, &at);
            }
        }
        (Value::Array(written), Value::Array(recorded)) => {
            assert_eq!(written.len(), recorded.len(), "{at}");
            for (number, (written, recorded)) in written.iter().zip(recorded).enumerate() {
                assert_contains(written, recorded, &format!("{at}/{number}"));
            }
        }
        _ => assert_eq!(written, recorded, "{at}"),
    }
}
