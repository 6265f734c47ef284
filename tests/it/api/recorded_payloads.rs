//! The secrets and configs of the swarm that a recording was made with, reconstructed from the recorded replies.

use super::fixture::FakeNode;
use super::recorded_store::{service, spec};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skep::model::payload::{PayloadSpec, SealedData};
use skep::model::{ClusterConfig, ClusterSecret, Meta, PayloadId, Timestamp};
use skep::store::{Action, StoreHandle};
use std::collections::BTreeMap;

/// An object that a recording shows or mentions.
#[derive(Clone, Debug)]
struct Recorded {
    is_secret: bool,
    id: String,
    spec: Value,
    users: Vec<String>,
}

/// Adds them to a store.
pub async fn fill(handle: &StoreHandle, exchanges: &[Value]) {
    let mut found: BTreeMap<(bool, String), Recorded> = BTreeMap::new();
    let mut created = Vec::new();
    for exchange in exchanges {
        let path = exchange["path"].as_str().unwrap_or_default();
        let is_secret = path.contains("/secrets");
        if !is_secret && !path.contains("/configs") {
            continue;
        }
        let body = &exchange["response_body"];
        if exchange["status"] == 201 {
            created.push(exchange["request_body"]["Name"].clone());
        }
        let mut add = |id: &str, spec: Value, users: Vec<String>| {
            let name = spec["Name"].as_str().unwrap_or_default().to_owned();
            let id = if id.is_empty() { format!("{name:0<25}") } else { id.to_owned() };
            found.entry((is_secret, name)).or_insert(Recorded { is_secret, id, spec, users });
        };
        for object in body.as_array().map_or_else(|| vec![body], |list| list.iter().collect()) {
            if object["Spec"]["Name"].is_string() {
                add(object["ID"].as_str().unwrap_or_default(), object["Spec"].clone(), Vec::new());
            }
        }
        let message = body["message"].as_str().unwrap_or_default();
        if let Some((name, users)) = message.split_once("' is in use by the following service") {
            let name = name.split('\'').next_back().unwrap_or_default();
            let users = users.split_once(": ").map_or("", |(_, users)| users).split(", ").map(str::to_owned).collect();
            add("", json!({ "Name": name }), users);
        }
        if message.ends_with("already exists") {
            add("", json!({ "Name": exchange["request_body"]["Name"] }), Vec::new());
        }
        if exchange["status"] == 204 {
            add("", json!({ "Name": path.rsplit('/').next() }), Vec::new());
        }
        // Its name is in the path, its id only in the refusal of a stale version.
        if message.contains("out of sequence") {
            let name = path.trim_end_matches("/update").rsplit('/').next();
            add("", json!({ "Name": name }), Vec::new());
        }
    }
    found.retain(|_, recorded| !created.contains(&recorded.spec["Name"]));
    write(handle, found.into_values().collect()).await;
}

async fn write(handle: &StoreHandle, recorded: Vec<Recorded>) {
    if recorded.is_empty() {
        return;
    }
    let store = handle.read();
    let cluster = store.cluster().expect("a cluster").id.clone();
    let (key, keys) = FakeNode::payload_vault().first_key(cluster, &mut rand::rng()).expect("a key");
    let mut actions = vec![Action::create(keys)];
    let mut services: BTreeMap<String, Value> = BTreeMap::new();
    for Recorded { is_secret, id, spec: shown, users } in recorded {
        let content = STANDARD.decode(shown["Data"].as_str().unwrap_or("eA==")).unwrap_or_default();
        let seal = |id: &PayloadId| -> SealedData { key.seal(id, &content, &mut rand::rng()).expect("sealed") };
        let spec_of: PayloadSpec = serde_json::from_value(shown.clone()).expect("a spec");
        let (list, reference) = if is_secret {
            let data = seal(&PayloadId::Secret(id.as_str().into()));
            actions.push(Action::create(ClusterSecret { id: id.as_str().into(), meta: Meta::default(), spec: spec_of, data }));
            ("Secrets", json!({"SecretID": id, "SecretName": shown["Name"], "File": {"Name": "x"}}))
        } else {
            let data = seal(&PayloadId::Config(id.as_str().into()));
            actions.push(Action::create(ClusterConfig { id: id.as_str().into(), meta: Meta::default(), spec: spec_of, data }));
            ("Configs", json!({"ConfigID": id, "ConfigName": shown["Name"], "File": {"Name": "x"}}))
        };
        for user in users {
            let spec = services.entry(user.clone()).or_insert_with(|| spec(&user));
            spec["TaskTemplate"]["ContainerSpec"][list] = json!([reference]);
        }
    }
    for (name, spec) in services {
        actions.extend(service(&format!("{name:0<25}"), spec).map(Action::create));
    }
    handle.write(Timestamp(1_795_000_000_123_456_789), actions).await.expect("the recorded secrets and configs fit");
}
