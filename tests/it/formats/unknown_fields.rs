//! No field that this build does not know is dropped in silence. Each object of a document that has every field of every kind
//! gets a further field; the document must then be refused, or be written again with it.

use serde_json::{Value, json};
use skep::model::{ClusterSpec, NodeSpec, Protocol, PublishMode, Role, ServiceSpec, SpecChange, Timestamp, WgKey};
use skep::store::{Action, Condition, FieldUpdate, Kind, Store, Transaction, decode_document};

/// Every field of every kind of object is set.
const SNAPSHOT: &[u8] = include_bytes!("../store/recorded/snapshot.json");
/// With what feature level 2 has more.
const SNAPSHOT_2: &[u8] = include_bytes!("../store/recorded/snapshot-2.json");
const ENTRY: &[u8] = include_bytes!("../store/recorded/entry.json");

/// An entry of the log.
#[derive(serde::Serialize, serde::Deserialize)]
struct Entry {
    format: u32,
    transaction: Transaction,
}

/// Pointers of all objects in a document.
fn objects(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                objects(value, format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), out);
            }
            out.push(at);
        }
        Value::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                objects(item, format!("{at}/{number}"), out);
            }
        }
        _ => {}
    }
}

/// Adds a field to each object in turn; returns the places whose field was refused by name.
fn refused_at(document: &[u8], rewrite: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>) -> Vec<String> {
    let known: Value = serde_json::from_slice(document).unwrap();
    let mut places = Vec::new();
    objects(&known, String::new(), &mut places);
    let mut refused = Vec::new();
    for place in places {
        for value in [json!(null), json!("x"), json!(1), json!([]), json!({ "More": 1 })] {
            let mut newer = known.clone();
            let object = newer.pointer_mut(&place).unwrap().as_object_mut().unwrap();
            object.insert("FieldOfANewerBuild".to_owned(), value.clone());
            match rewrite(&serde_json::to_vec(&newer).unwrap()) {
                // A map of the user, labels for example.
                Ok(written) => {
                    let written: Value = serde_json::from_slice(&written).unwrap();
                    assert_eq!(written, newer, "the field {value} at {place} was dropped");
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    if error.contains("`FieldOfANewerBuild`") {
                        assert!(error.contains("written by a newer version of skep"), "{place}: {error}");
                        refused.push(place.clone());
                    }
                }
            }
        }
    }
    refused.dedup();
    refused
}

#[test]
fn a_snapshot_with_an_unknown_field_is_refused_by_name() {
    assert!(Store::restore(SNAPSHOT).is_ok());
    let refused = refused_at(SNAPSHOT, |bytes| Ok(Store::restore(bytes)?.snapshot()));
    for place in ["", "/store", "/store/cluster", "/store/nodes/n1", "/store/networks/net", "/store/services/svc"] {
        assert!(refused.iter().any(|at| at == place), "{place}: {refused:#?}");
    }
    let deep = "/store/services/svc/spec/TaskTemplate/ContainerSpec/Healthcheck";
    assert!(refused.iter().any(|at| at == deep), "{refused:#?}");
}

#[test]
fn updates_jobs_and_causes_are_read_and_written_and_their_unknown_fields_refused() {
    let store = Store::restore(SNAPSHOT_2).unwrap();
    let (written, recorded): (Value, Value) =
        (serde_json::from_slice(&store.snapshot()).unwrap(), serde_json::from_slice(SNAPSHOT_2).unwrap());
    assert_eq!(written, recorded);
    let task = store.tasks().next().unwrap();
    assert_eq!((task.slot_key().to_string().as_str(), task.display_name().as_str()), ("n1", "web.n1"));
    let refused = refused_at(SNAPSHOT_2, |bytes| Ok(Store::restore(bytes)?.snapshot()));
    for place in ["update", "job", "spec/Mode/ReplicatedJob"] {
        let place = format!("/store/services/svc/{place}");
        assert!(refused.contains(&place), "{place}: {refused:#?}");
    }
}

#[test]
fn an_entry_with_an_unknown_field_is_refused_by_name() {
    let refused = refused_at(ENTRY, |bytes| Ok(serde_json::to_vec(&decode_document::<Entry>(bytes)?)?));
    assert!(refused.iter().any(|at| at == "/transaction") && refused.len() > 20, "{refused:#?}");
}

#[test]
fn conditions_and_writes_of_fields_with_an_unknown_field_are_refused_by_name() {
    let fields = [
        FieldUpdate::ServiceSpec {
            id: "s".into(),
            version: 1,
            spec: Box::new(ServiceSpec::default()),
            pull_auth: None,
            change: SpecChange { replaces_tasks: true, ..SpecChange::default() },
        },
        FieldUpdate::NodeSpec { id: "n".into(), version: 1, spec: NodeSpec::default() },
        FieldUpdate::ClusterSpec { id: "c".into(), version: 1, spec: Box::new(ClusterSpec::default()) },
        FieldUpdate::JoinToken { id: "c".into(), role: Role::Worker, token: "t".into() },
    ];
    let port = Condition::FreePort { mode: PublishMode::Host, protocol: Protocol::Udp, port: 53, except: None };
    let conditions = [
        Condition::version(Kind::Node, "n", 1),
        Condition::present(Kind::Network, "n"),
        Condition::Absent { kind: Kind::Task, id: "t".to_owned() },
        Condition::unreferenced(Kind::Network, "n"),
        port,
        Condition::FreeKey { key: WgKey([1; 32]) },
    ];
    let (fields_count, conditions_count) = (fields.len(), conditions.len());
    let transaction = Transaction::new(Timestamp(1), fields.map(Action::Set).into()).require(conditions).planned_from(7);
    let entry = serde_json::to_vec(&Entry { format: 2, transaction }).unwrap();
    let refused = refused_at(&entry, |bytes| Ok(serde_json::to_vec(&decode_document::<Entry>(bytes)?)?));
    let refused_below = |prefix: &str| refused.iter().filter(|at| at.starts_with(prefix)).count();
    assert!(refused_below("/transaction/plan") == 1, "{refused:#?}");
    assert!(refused_below("/transaction/require/") >= conditions_count, "{refused:#?}");
    assert!(refused_below("/transaction/actions/") >= fields_count, "{refused:#?}");
}

#[test]
fn an_unknown_kind_of_object_is_refused_by_name() {
    let entry = r#"{"format":1,"transaction":{"at":"2026-01-01T00:00:00Z","actions":[{"Remove":["Colour","a"]}]}}"#;
    let error = decode_document::<Entry>(entry.as_bytes()).err().expect("refused");
    let error = format!("{error:#}");
    assert!(error.contains("Colour") && error.contains("written by a newer version of skep"), "{error}");
}
