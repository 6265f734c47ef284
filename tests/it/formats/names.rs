//! Every field and every variant of what is written to the log, sent between nodes or kept in a view is in a recorded document. Which
//! there are the types say, so one that is new and not recorded fails here. (Files of one room have their tests beside their types.)

use serde::de::DeserializeOwned;
use serde_json::Value;
use skep::durable::recorded::RecordedNames;
use skep::manager::new_cluster::ManagerGreeting;
use skep::model::acme::AcmeChallengeKind;
use skep::model::http::{HttpEntry, HttpScheme, PrefixEnd};
use skep::model::service::EndpointMode;
use skep::model::task::RestartCondition;
use skep::model::{Availability, NodeState, Protocol, PublishMode, Role, TaskCause, TaskEnd, TaskState, UpdateState};
use skep::protocol::{FromJoiner, MembershipAnswer, RenewalAnswer, RenewalRequest, ToJoiner, ToManager, ToNode};
use skep::store::{Store, Transaction, decode_document};

/// An entry of feature level 2 with an object, a write of one field and a condition of every kind, all fields set.
const ENTRY: &str = include_str!("entry-2.json");
const ENTRY_3: &str = include_str!("entry-3.json");
/// The same objects in a snapshot.
const SNAPSHOT: &str = include_str!("snapshot-2.json");
/// Values of the types that have many.
const WORDS: &str = include_str!("words.json");

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Reads all documents of one kind.
fn read<T: DeserializeOwned>(names: &RecordedNames, recorded: &Value, kind: &str) {
    for document in recorded[kind].as_array().into_iter().flatten() {
        names.read::<T>(document).unwrap_or_else(|error| panic!("{kind} {document}: {error}"));
    }
}

#[test]
fn every_field_and_variant_is_in_a_recorded_document() {
    let names = RecordedNames::default();
    for entry in [ENTRY, ENTRY_3] {
        names.read::<Transaction>(&parse(entry)["transaction"]).unwrap();
    }
    names.read::<Store>(&parse(SNAPSHOT)["store"]).unwrap();
    for (_, text) in super::messages::RECORDED {
        let recorded = parse(text);
        read::<ToManager>(&names, &recorded, "ToManager");
        read::<ToNode>(&names, &recorded, "ToNode");
        read::<FromJoiner>(&names, &recorded, "FromJoiner");
        read::<ToJoiner>(&names, &recorded, "ToJoiner");
        read::<MembershipAnswer>(&names, &recorded, "MembershipAnswer");
        read::<RenewalRequest>(&names, &recorded, "RenewalRequest");
        read::<RenewalAnswer>(&names, &recorded, "RenewalAnswer");
        read::<ManagerGreeting>(&names, &recorded, "ManagerGreeting");
    }
    let words = parse(WORDS);
    read::<TaskState>(&names, &words, "TaskState");
    read::<TaskCause>(&names, &words, "TaskCause");
    read::<TaskEnd>(&names, &words, "TaskEnd");
    read::<UpdateState>(&names, &words, "UpdateState");
    read::<NodeState>(&names, &words, "NodeState");
    read::<Availability>(&names, &words, "Availability");
    read::<Role>(&names, &words, "Role");
    read::<Protocol>(&names, &words, "Protocol");
    read::<PublishMode>(&names, &words, "PublishMode");
    read::<EndpointMode>(&names, &words, "EndpointMode");
    read::<RestartCondition>(&names, &words, "RestartCondition");
    read::<AcmeChallengeKind>(&names, &words, "AcmeChallengeKind");
    read::<HttpEntry>(&names, &words, "HttpEntry");
    read::<HttpScheme>(&names, &words, "HttpScheme");
    read::<PrefixEnd>(&names, &words, "PrefixEnd");
    // Refused in every spec, so null.
    let missing = names.missing().into_iter().filter(|name| name != "Privileges.CredentialSpec");
    assert_eq!(
        missing.collect::<Vec<_>>(),
        [""; 0],
        "add them to tests/it/formats/: entry-3.json, snapshot-2.json, messages-6.json or words.json, as this build writes them"
    );
}

#[test]
fn entries_with_every_field_of_their_level_are_read_and_written_the_same() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Entry {
        format: u32,
        transaction: Transaction,
        id: u64,
    }
    for entry in [ENTRY, ENTRY_3] {
        let read: Entry = decode_document(entry.as_bytes()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), parse(entry));
    }
}

#[test]
fn a_snapshot_with_every_field_of_level_2_is_read_and_written_the_same() {
    let written = Store::restore(SNAPSHOT.as_bytes()).unwrap().snapshot();
    assert_eq!(serde_json::from_slice::<Value>(&written).unwrap(), parse(SNAPSHOT));
}
