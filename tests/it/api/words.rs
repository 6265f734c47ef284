//! The words of a real swarm, as data: what it says of each spec. `words/*.txt` say how the lines are read. What is unlike the real
//! one on purpose stands beside it, with its reason.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::{Role, Timestamp};
use skep::store::{Action, StoreHandle};

/// A line of a table.
pub struct Case<'a> {
    pub number: usize,
    pub request: &'a str,
    pub real: &'a str,
    /// What is said here, and why; `None`: the same.
    pub unlike: Option<(&'a str, &'a str)>,
}

impl Case<'_> {
    /// Whether this is what is expected here. One that ends with a colon, `desc =` or `…` is the beginning of a longer one.
    pub fn matches(&self, answer: &str) -> bool {
        let expected = self.unlike.map_or(self.real, |(ours, _)| ours.trim());
        let beginning = expected.strip_suffix(" …");
        match beginning.or_else(|| Some(expected).filter(|text| text.ends_with(':') || text.ends_with("desc ="))) {
            Some(beginning) => answer.starts_with(beginning),
            None => answer == expected,
        }
    }
}

/// A table of `words`, read when the test runs.
pub fn table(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/it/api/words/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A message with its ids replaced by `ID`.
pub fn without_ids(message: &str) -> String {
    let is_id = |word: &&str| word.len() == 25 && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    let words: Vec<&str> = message.split(' ').map(|word| if is_id(&word) { "ID" } else { word }).collect();
    words.join(" ")
}

pub fn cases(table: &str) -> Vec<Case<'_>> {
    let lines = table.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            let (request, said) = line.split_once("=> ").unwrap_or_else(|| panic!("line {}: no `=>`: {line}", at + 1));
            let (real, unlike) = match said.split_once(" ~> ") {
                None => (said, None),
                Some((real, ours)) => {
                    let (ours, reason) = ours.rsplit_once(" # ").unwrap_or_else(|| panic!("line {}: no reason", at + 1));
                    (real, Some((ours, reason)))
                }
            };
            Case { number: at + 1, request: request.trim(), real: real.trim(), unlike }
        })
        .collect()
}

async fn swarm() -> (ApiFixture, StoreHandle) {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
    let mut ingress = recorded_store::network("ingressnetworkidaaaaaaaaa", "ingress", Some("10.0.0.0/24"));
    ingress.spec.ingress = true;
    let actions = vec![Action::create(recorded_store::cluster()), Action::create(lab1), Action::create(ingress)];
    store.write(SystemClock.now(), actions).await.unwrap();
    (ApiFixture::serve(node, None), store)
}

/// A merge patch (RFC 7396).
pub fn patch(target: &mut Value, change: &Value) {
    let Some(change) = change.as_object() else { return target.clone_from(change) };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in change {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            patch(&mut target[key], value);
        }
    }
}

/// `STATUS MESSAGE`, with ids and the name of the service left out.
async fn said(fixture: &ApiFixture, target: &str, body: &str, name: &str) -> String {
    let fields = [("Content-Type", "application/json")];
    let reply = fixture.client.send("POST", target, &fields, body.to_owned().into()).await.unwrap();
    let message = serde_json::from_slice::<Value>(&reply.body).unwrap_or_default();
    let message = message["message"].as_str().unwrap_or_default();
    format!("{} {}", reply.status.as_u16(), without_ids(message).replace(name, "NAME")).trim().to_owned()
}

/// Name of every service, and when it was created and updated last.
fn services(store: &StoreHandle) -> Vec<(String, Timestamp, Timestamp)> {
    store.read().services().map(|s| (s.spec.name.clone(), s.meta.created_at, s.meta.updated_at)).collect()
}

async fn version(fixture: &ApiFixture, service: &str) -> u64 {
    let shown: Value = fixture.client.get(&format!("/services/{service}")).await.unwrap().json().unwrap();
    shown["Version"]["Index"].as_u64().unwrap()
}

/// What is read back of a part of the spec: of a service that is created with the change, also with its defaults, or of one of four
/// replicas that is updated.
async fn shown(fixture: &ApiFixture, mut spec: Value, (then, path): (&str, &str), change: &Value, name: &str) -> String {
    if then == "-update" {
        spec["Mode"]["Replicated"]["Replicas"] = json!(4);
        assert_eq!(said(fixture, "/services/create", &spec.to_string(), name).await, "201");
        patch(&mut spec, change);
        let target = format!("/services/{name}/update?version={}", version(fixture, name).await);
        assert_eq!(said(fixture, &target, &spec.to_string(), name).await, "200");
    } else {
        patch(&mut spec, change);
        assert_eq!(said(fixture, "/services/create", &spec.to_string(), name).await, "201");
    }
    let query = if then == "-defaults" { "?insertDefaults=true" } else { "" };
    let service: Value = fixture.client.get(&format!("/services/{name}{query}")).await.unwrap().json().unwrap();
    service["Spec"].pointer(&format!("/{}", path.replace('.', "/"))).unwrap_or(&Value::Null).to_string()
}

/// Whether the tasks of a service of the first spec are replaced by an update to the second one: `PATCH then PATCH`.
async fn replaces(fixture: &ApiFixture, store: &StoreHandle, plain: &Value, patches: &str) -> String {
    let name = plain["Name"].as_str().unwrap();
    let [first, second] = [0, 1].map(|at| {
        let mut spec = plain.clone();
        patch(&mut spec, &serde_json::from_str(patches.split(" then ").nth(at).unwrap()).unwrap());
        spec.to_string()
    });
    assert_eq!(said(fixture, "/services/create", &first, name).await, "201", "{first}");
    let number = || store.read().service_named(name).unwrap().spec_version;
    let before = number();
    let target = format!("/services/{name}/update?version={}", version(fixture, name).await);
    assert_eq!(said(fixture, &target, &second, name).await, "200", "{second}");
    if number() == before { "no" } else { "yes" }.to_owned()
}

/// What is said of a case.
async fn answer(fixture: &ApiFixture, store: &StoreHandle, case: &Case<'_>) -> String {
    let name = format!("svc{}x", case.number);
    let plain = || json!({ "Name": name, "Mode": { "Replicated": { "Replicas": 1 } }, "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } } });
    let (verb, rest) = case.request.split_once(' ').unwrap_or((case.request, ""));
    let (verb, query) = verb.split_once('?').unwrap_or((verb, ""));
    let mut spec = plain();
    if verb == "raw" {
        return said(fixture, "/services/create", rest, &name).await;
    }
    if verb == "raw-update" {
        assert_eq!(said(fixture, "/services/create", &spec.to_string(), &name).await, "201");
        return said(fixture, &format!("/services/{name}/update?version={}", version(fixture, &name).await), rest, &name).await;
    }
    if verb == "replaces" {
        return replaces(fixture, store, &spec, rest).await;
    }
    if let Some(then) = verb.strip_prefix("shown") {
        let (path, rest) = rest.split_once(' ').unwrap_or_else(|| panic!("line {}: no patch", case.number));
        let change: Value = serde_json::from_str(rest).unwrap_or_else(|e| panic!("line {}: {e}", case.number));
        return shown(fixture, spec, (then, path), &change, &name).await;
    }
    let change: Value = serde_json::from_str(&rest.replace("UPPER", &name.to_uppercase()))
        .unwrap_or_else(|e| panic!("line {}: {e}", case.number));
    if verb == "create" {
        patch(&mut spec, &change);
        return said(fixture, "/services/create", &spec.to_string(), &name).await;
    }
    assert_eq!(said(fixture, "/services/create", &spec.to_string(), &name).await, "201");
    let shown: Value = fixture.client.get(&format!("/services/{name}")).await.unwrap().json().unwrap();
    let mut spec = shown["Spec"].clone();
    patch(&mut spec, &change);
    let version = shown["Version"]["Index"].as_u64().unwrap();
    let query = match query {
        "" => format!("version={version}"),
        query if query.starts_with("version=") => query.to_owned(),
        query => format!("version={version}&{query}"),
    };
    said(fixture, &format!("/services/{name}/update?{query}"), &spec.to_string(), &name).await
}

#[tokio::test]
async fn a_posted_spec_is_answered_as_by_a_real_swarm_or_unlike_it_for_a_reason() {
    let table = table("specs.txt");
    let (fixture, store) = swarm().await;
    let taken = json!({ "Name": "TAKEN", "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } } });
    assert_eq!(said(&fixture, "/services/create", &taken.to_string(), "-").await, "201");
    let mut wrong = Vec::new();
    let cases = cases(&table);
    for case in &cases {
        let before = services(&store);
        let answer = answer(&fixture, &store, case).await;
        let expected = case.unlike.map_or(case.real, |(ours, _)| ours.trim());
        if !case.matches(&answer) {
            wrong.push(format!("line {}: {}\n    is {answer}\n    not {expected}", case.number, case.request));
        }
        if case.unlike.is_some_and(|(ours, _)| ours.trim() == case.real) {
            wrong.push(format!("line {}: not unlike the real one", case.number));
        }
        // What is refused leaves nothing behind: of an update the service that it made before, as that was created.
        let after = services(&store).into_iter().filter(|service| !before.contains(service)).collect::<Vec<_>>();
        let made = usize::from(case.request.starts_with("update") || case.request.starts_with("raw-update"));
        if answer.starts_with(['4', '5']) && (after.len() != made || after.iter().any(|(_, created, updated)| created != updated))
        {
            wrong.push(format!("line {}: the store has changed", case.number));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
