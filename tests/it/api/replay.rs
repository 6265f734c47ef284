//! Sends what the stock CLI and curl sent to a real swarm, and compares the replies: status, field names, types, null,
//! empty or missing, and every value that is not random.

use super::fixture::{ApiFixture, FakeNode};
use super::{deviations, recorded_payloads, recorded_store};
use bytes::Bytes;
use serde_json::Value;
use skep::api::control::{ControlError, Membership};
use skep::http::HttpReply;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The recordings of a group: name and exchanges.
pub(super) fn recordings(group: &str) -> Vec<(String, Vec<Value>)> {
    let path = format!("{}/tests/it/exchanges/{group}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    all.into_iter().map(|r| (r["name"].as_str().unwrap().to_owned(), r["exchanges"].as_array().unwrap().clone())).collect()
}

/// Replays every recording of a group, each on a new node. At least `least` exchanges must be compared.
async fn replay_group(name: &str, least: usize, node: impl Fn(&str) -> std::sync::Arc<FakeNode>) {
    let (mut wrong, mut compared, mut skipped) = (String::new(), 0, 0);
    for (recording, exchanges) in recordings(name) {
        let node = node(&recording);
        let store = node.store.lock().unwrap().clone();
        if let Some(store) = store {
            recorded_store::fill(&store, &exchanges).await;
            recorded_payloads::fill(&store, &exchanges).await;
            set_leader(&node, &exchanges);
        }
        let fixture = ApiFixture::serve(node, None);
        let mut session = Session { fixture: &fixture, ids: BTreeMap::new(), last_spec: Value::Null };
        for exchange in &exchanges {
            let reply = session.send(exchange).await;
            let reason = deviations::reason(&recording, exchange);
            if exchange["method"] == "POST" && reason.is_some_and(|r| r.contains("501")) && reply.status.as_u16() != 501 {
                let text = String::from_utf8_lossy(&reply.body);
                let _ = writeln!(
                    wrong,
                    "{recording}: {} {} is not 501: {} {text}",
                    exchange["method"], exchange["path"], reply.status
                );
            }
            if reason.is_some() || !recorded_store::storable(&exchange["response_body"]) {
                skipped += 1;
                continue;
            }
            compared += 1;
            let mut differences = Vec::new();
            session.compare(exchange, &reply, &mut differences);
            for difference in differences.iter().take(6) {
                let _ = writeln!(
                    wrong,
                    "{recording}: {} {} {}: {difference}",
                    exchange["method"], exchange["path"], exchange["query"]
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{name}: {compared} compared, {skipped} skipped; differences:\n{wrong}");
    assert!(compared >= least, "{name}: only {compared} exchanges were compared");
    println!("{name}: {compared} exchanges compared, {skipped} skipped as known deviations");
}

/// Makes the leader of the recording the leader of the fake node.
fn set_leader(node: &FakeNode, exchanges: &[Value]) {
    let shown = exchanges.iter().flat_map(|e| match &e["response_body"] {
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    });
    let leader = shown.filter(|n| n["ManagerStatus"]["Leader"] == true).find_map(|n| n["ID"].as_str());
    if let (Some(leader), Membership::Manager(info)) = (leader, &mut *node.membership.lock().unwrap()) {
        info.leader = Some(leader.into());
    }
}

#[tokio::test]
async fn replies_outside_a_swarm() {
    replay_group("nonmember", 36, |recording| {
        let node = FakeNode::new(Membership::Inactive);
        let join = match recording {
            "swarm/join-malformed-token" => Err(ControlError::malformed_token()),
            "swarm/join-no-token" | "swarm/join-wrong-secret" => Err(ControlError::wrong_token()),
            "swarm/join-wrong-ca-digest" => {
                Err(ControlError::wrong_ca("019fb75fcce69325390c030fae17ea228a17f16d81b19c703f5658c64a9b4260"))
            }
            "swarm/join-unreachable" => Err(ControlError::unavailable(
                "Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the \
                 \"docker info\" command to see the current swarm status of your node.",
            )),
            _ => Ok(()),
        };
        *node.join.lock().unwrap() = join;
        node
    })
    .await;
}

#[tokio::test]
async fn replies_of_a_worker() {
    replay_group("worker", 42, |_| FakeNode::new(Membership::Worker(FakeNode::lab2()))).await;
}

/// A list that was recorded on a worker, among those of a manager.
#[tokio::test]
async fn networks_are_listed_on_a_worker_as_recorded() {
    let (_, exchanges) = recordings("manager").into_iter().find(|(name, _)| name == "network/ls-on-worker").unwrap();
    let node = FakeNode::new(Membership::Worker(FakeNode::lab2()));
    let fixture = ApiFixture::serve(node, None);
    let mut session = Session { fixture: &fixture, ids: BTreeMap::new(), last_spec: Value::Null };
    let differences = session.differences(&exchanges).await;
    assert!(differences.is_empty() && !exchanges.is_empty(), "{differences:#?}");
}

#[tokio::test]
async fn replies_while_joining() {
    replay_group("pending", 4, |_| {
        FakeNode::new(Membership::Pending {
            node_addr: Some("10.123.0.4".parse().unwrap()),
            remotes: vec!["10.123.0.77:2377".to_owned()],
            error: String::new(),
        })
    })
    .await;
}

#[tokio::test]
async fn replies_of_a_new_swarm() {
    replay_group("fresh", 8, |_| FakeNode::new(Membership::Inactive)).await;
}

#[tokio::test]
async fn replies_of_a_manager() {
    replay_group("manager", 600, |_| FakeNode::new(Membership::Manager(FakeNode::lab1()))).await;
}

#[tokio::test]
async fn replies_about_secrets_and_configs() {
    replay_group("payloads", 50, |_| FakeNode::new(Membership::Manager(FakeNode::lab1()))).await;
}

/// What a recording says of aliases, without the options beside them that skep refuses.
#[tokio::test]
async fn aliases_are_taken_and_kept_as_recorded() {
    let name = "service/create-network-alias";
    let (_, mut exchanges) = recordings("manager").into_iter().find(|(recorded, _)| recorded == name).unwrap();
    let mut aliases = Vec::new();
    for exchange in &mut exchanges {
        let networks = exchange.pointer_mut("/request_body/TaskTemplate/Networks").and_then(Value::as_array_mut);
        for network in networks.into_iter().flatten() {
            network.as_object_mut().unwrap().remove("DriverOpts");
            aliases.extend(network["Aliases"].as_array().cloned());
        }
    }
    assert_eq!(aliases, [vec![Value::from("one"), Value::from("two")]], "the recording has them");
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    recorded_store::fill(&store, &exchanges).await;
    let fixture = ApiFixture::serve(node, None);
    let mut session = Session { fixture: &fixture, ids: BTreeMap::new(), last_spec: Value::Null };
    let differences = session.differences(&exchanges).await;
    assert!(differences.is_empty(), "{differences:#?}");
    let shown: Value = fixture.client.get("/services/nal").await.unwrap().json().unwrap();
    let networks = shown["Spec"]["TaskTemplate"]["Networks"].as_array().unwrap();
    assert_eq!(networks.iter().filter_map(|n| n["Aliases"].as_array()).collect::<Vec<_>>(), aliases.iter().collect::<Vec<_>>());
}

/// The replay of one recording.
struct Session<'a> {
    fixture: &'a ApiFixture,
    /// Recorded id → id on the fake node, for objects that were created during the replay.
    ids: BTreeMap<String, String>,
    last_spec: Value,
}

impl Session<'_> {
    /// Sends the requests, and returns what is unlike the recorded replies.
    async fn differences(&mut self, exchanges: &[Value]) -> Vec<String> {
        let mut differences = Vec::new();
        for exchange in exchanges {
            let reply = self.send(exchange).await;
            self.compare(exchange, &reply, &mut differences);
        }
        differences
    }

    /// Replaces recorded ids.
    fn with_actual_ids(&self, text: &str) -> String {
        self.ids.iter().fold(text.to_owned(), |text, (recorded, actual)| text.replace(recorded, actual))
    }

    async fn send(&mut self, exchange: &Value) -> HttpReply {
        let path = self.with_actual_ids(exchange["path"].as_str().unwrap());
        let target = format!("{path}{}", self.query(&path, exchange).await);
        let body = self.body(exchange);
        let kind = exchange["content_type"].as_str().or(exchange.get("request_body_changes").map(|_| "application/json"));
        let fields: Vec<(&str, &str)> = kind.map(|k| ("Content-Type", k)).into_iter().collect();
        let method = exchange["method"].as_str().unwrap();
        let reply = self.fixture.client.send(method, &target, &fields, body).await.unwrap();
        let actual: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        if let (201, Some(recorded), Some(actual)) = (
            reply.status.as_u16(),
            exchange["response_body"]["ID"].as_str().or(exchange["response_body"]["Id"].as_str()),
            actual["ID"].as_str().or(actual["Id"].as_str()),
        ) {
            self.ids.insert(recorded.to_owned(), actual.to_owned());
        }
        if let (true, Some(recorded), Some(actual)) =
            (path.ends_with("/swarm/init"), exchange["response_body"].as_str(), actual.as_str())
        {
            self.ids.insert(recorded.to_owned(), actual.to_owned());
        }
        if actual["Spec"].is_object() {
            self.last_spec = actual["Spec"].clone();
        }
        reply
    }

    /// The recorded query, but with the object's own version where the recorded one was accepted.
    async fn query(&self, path: &str, exchange: &Value) -> String {
        let mut parts = Vec::new();
        for (name, value) in exchange["query"].as_object().into_iter().flatten() {
            let stale = exchange["response_body"]["message"].as_str().is_some_and(|m| m.contains("out of sequence"));
            let value = match value {
                Value::String(text) if name == "version" && !stale && text.parse::<u64>().is_ok() => {
                    self.version(path, text).await
                }
                Value::String(text) => self.with_actual_ids(text),
                other => self.with_actual_ids(&other.to_string()),
            };
            let value: String = value.bytes().map(|b| format!("%{b:02X}")).collect();
            parts.push(format!("{name}={value}"));
        }
        if parts.is_empty() { String::new() } else { format!("?{}", parts.join("&")) }
    }

    async fn version(&self, path: &str, recorded: &str) -> String {
        let object = path.trim_end_matches("/update");
        let reply = self.fixture.client.get(object).await.unwrap();
        let shown: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        shown["Version"]["Index"].as_u64().map_or_else(|| recorded.to_owned(), |v| v.to_string())
    }

    fn body(&self, exchange: &Value) -> Bytes {
        if let Some(changes) = exchange.get("request_body_changes") {
            let mut spec = self.last_spec.clone();
            for (path, value) in changes.as_object().into_iter().flatten() {
                let pointer = format!("/{}", path.replace('.', "/"));
                match spec.pointer_mut(&pointer) {
                    Some(slot) => *slot = value.clone(),
                    None => set(&mut spec, path, value),
                }
            }
            return spec.to_string().into();
        }
        match exchange.get("request_body") {
            None => Bytes::new(),
            Some(Value::String(raw)) if raw.starts_with('{') => raw.clone().into(),
            Some(Value::Object(map)) if map.contains_key("stream") => {
                map["stream"].as_array().unwrap().iter().map(Value::to_string).collect::<String>().into()
            }
            Some(value) => self.with_actual_ids(&value.to_string()).into(),
        }
    }

    fn compare(&self, exchange: &Value, reply: &HttpReply, out: &mut Vec<String>) {
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        if exchange["status"] != reply.status.as_u16() {
            out.push(format!("status {} became {}: {text}", exchange["status"], reply.status.as_u16()));
            return;
        }
        for (name, value) in exchange["response_headers"].as_object().into_iter().flatten() {
            let actual = reply.headers.get(name).and_then(|v| v.to_str().ok());
            if actual != value.as_str() {
                out.push(format!("header {name}: {value} became {actual:?}"));
            }
        }
        match exchange.get("response_body") {
            None if !reply.body.is_empty() => out.push(format!("a body where none was recorded: {text}")),
            None => {}
            Some(recorded) => {
                let recorded = serde_json::from_str(&self.with_actual_ids(&recorded.to_string())).unwrap();
                let actual = serde_json::from_str(&text).unwrap_or(Value::String(text));
                compare("", &recorded, &actual, out);
            }
        }
    }
}

fn set(spec: &mut Value, path: &str, value: &Value) {
    let mut at = spec;
    for key in path.split('.') {
        at = &mut at[key];
    }
    *at = value.clone();
}

fn compare(path: &str, recorded: &Value, actual: &Value, out: &mut Vec<String>) {
    if shortened(recorded) || deviations::varies(path) {
        if std::mem::discriminant(recorded) != std::mem::discriminant(actual) && !shortened(recorded) {
            out.push(format!("{path}: {recorded} became {actual}"));
        }
        return;
    }
    match (recorded, actual) {
        (Value::Object(a), Value::Object(b)) => {
            // Shortened objects lack the times, or are marked.
            let cut = a.contains_key("ID") && !a.contains_key("CreatedAt") && !a.contains_key("Warnings");
            let partial = a.contains_key("...") || cut;
            for (key, value) in a.iter().filter(|(key, _)| *key != "..." && !(cut && *key == "Name")) {
                let path = format!("{path}.{key}");
                match b.get(key) {
                    Some(actual) => compare(&path, value, actual, out),
                    None if deviations::missing(&path) => {}
                    None => out.push(format!("{path} is missing: {value}")),
                }
            }
            for (key, value) in b {
                let path = format!("{path}.{key}");
                if !partial && !a.contains_key(key) && !deviations::added(&path, value) {
                    out.push(format!("{path} is new: {value}"));
                }
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            let whole = !a.iter().any(shortened) && a.iter().all(|v| !v.is_object() || recorded_store::storable(v));
            let a: Vec<_> = a.iter().filter(|v| !shortened(v) && recorded_store::storable(v)).collect();
            if whole && a.len() != b.len() && !deviations::length_varies(path) {
                out.push(format!("{path}: {} elements became {}: {actual}", a.len(), b.len()));
                return;
            }
            for (i, recorded) in a.into_iter().enumerate() {
                let id =
                    |v: &Value| v.get("Scope").and(v.get("Name")).or(v.get("ID")).or(v.get("NodeID")).or(v.get("Name")).cloned();
                let found = match id(recorded) {
                    None => b.get(i),
                    wanted => b.iter().find(|b| id(b) == wanted),
                };
                match found {
                    Some(actual) => compare(&format!("{path}[]"), recorded, actual, out),
                    None if deviations::length_varies(path) => {}
                    None => out.push(format!("{path}[]: {:?} is missing", id(recorded))),
                }
            }
        }
        (a, b) if a == b || deviations::equivalent(path, a, b) => {}
        (a, b) => out.push(format!("{path}: {a} became {b}")),
    }
}

/// Whether a recorded value is a placeholder for something that the recording omits.
fn shortened(value: &Value) -> bool {
    value.as_str().is_some_and(|s| {
        s.starts_with("... ")
            || s.starts_with("(the same")
            || s.starts_with("(objects shortened")
            || s.starts_with("like the ones")
    })
}
