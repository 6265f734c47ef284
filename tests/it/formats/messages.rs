//! Messages of each format of the protocol, as they travel. `messages-2.json` are those of commit b71afbd, `messages-3.json` what
//! format 3 has more, and so on; all are read, and what this build writes has everything that is in them.

use super::assert_contains;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use skep::manager::new_cluster::ManagerGreeting;
use skep::model::FormatRange;
use skep::protocol::{
    FORMATS, FromJoiner, MembershipAnswer, RenewalAnswer, RenewalRequest, ToJoiner, ToManager, ToNode, formats_in,
    formats_of_peer,
};

pub const RECORDED: [(u32, &str); 5] = [
    (2, include_str!("messages-2.json")),
    (3, include_str!("messages-3.json")),
    (4, include_str!("messages-4.json")),
    (5, include_str!("messages-5.json")),
    (6, include_str!("messages-6.json")),
];

/// What every format has.
const KINDS: [&str; 4] = ["ToManager", "ToNode", "FromJoiner", "ToJoiner"];

fn check<T: Serialize + DeserializeOwned>(format: u32, recorded: &Value, kind: &str) -> Vec<T> {
    let messages = recorded[kind].as_array().unwrap_or_else(|| panic!("{format}: no {kind}"));
    let read = |message: &Value| -> T {
        let read: T = serde_json::from_value(message.clone()).unwrap_or_else(|e| panic!("{format} {kind} {message}: {e}"));
        assert_contains(&serde_json::to_value(&read).unwrap(), message, &format!("{format} {kind}"));
        read
    };
    messages.iter().map(read).collect()
}

#[test]
fn the_messages_of_each_format_are_read_and_written() {
    for (format, text) in RECORDED {
        let recorded: Value = serde_json::from_str(text).unwrap();
        check::<ToNode>(format, &recorded, "ToNode");
        check::<FromJoiner>(format, &recorded, "FromJoiner");
        check::<ToJoiner>(format, &recorded, "ToJoiner");
        // Their connections name formats of their own.
        for others in recorded.as_object().unwrap().keys().filter(|kind| !KINDS.contains(&kind.as_str())) {
            match others.as_str() {
                "MembershipAnswer" => drop(check::<MembershipAnswer>(format, &recorded, others)),
                "RenewalRequest" => drop(check::<RenewalRequest>(format, &recorded, others)),
                "RenewalAnswer" => drop(check::<RenewalAnswer>(format, &recorded, others)),
                "ManagerGreeting" => drop(check::<ManagerGreeting>(format, &recorded, others)),
                other => panic!("{format}: {other} is read by no type"),
            }
        }
        for message in check::<ToManager>(format, &recorded, "ToManager") {
            assert!(message.is_in(format), "{message:?}");
            assert!(format > FORMATS.oldest || message.is_in(FORMATS.oldest), "{message:?}");
            if let ToManager::Hello { format: named, formats, .. } = message {
                let expected = if format == 2 { FormatRange::only(2) } else { FormatRange::new(2, format) };
                assert_eq!(formats_of_peer(named, formats), expected);
            }
        }
    }
}

#[test]
fn the_first_messages_name_their_formats() {
    for (format, text) in RECORDED {
        let recorded: Value = serde_json::from_str(text).unwrap();
        for first in [&recorded["ToManager"][0], &recorded["FromJoiner"][0]] {
            let formats = formats_in(&serde_json::to_vec(first).unwrap()).expect("formats");
            assert!(formats.contains(format) && FORMATS.common(formats) == Some(format), "{formats}");
        }
    }
}
