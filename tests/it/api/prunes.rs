//! Prunes through skep: what the client spares stays, and so does what a task waits for.

use super::fixture::FakeNode;
use super::recorded_store;
use super::recording_engine::RecordingEngine;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock as _, SystemClock};
use skep::model::Timestamp;
use skep::store::Action;

const DAY: i64 = 86_400;

fn now() -> i64 {
    SystemClock.now().0 / 1_000_000_000
}

/// An engine with stopped containers and unused networks, made at these times.
fn engine(line: &str) -> Option<(u16, Value)> {
    let (method, target) = line.split_once(' ')?;
    let path = target.split('?').next()?.strip_prefix("/v1.51").unwrap_or(target);
    let container = |id: &str, labels: Value, age: i64| json!({"Id": id, "Labels": labels, "Created": now() - age, "SizeRw": 10});
    let network = |id: &str, labels: Value, age: i64| {
        let made = Timestamp((now() - age) * 1_000_000_000).to_rfc3339();
        json!({"Id": id, "Name": id, "Driver": "bridge", "Labels": labels, "Created": made})
    };
    match (method, path) {
        ("GET", "/containers/json") => Some((
            200,
            json!([
                container("kept", json!({"keep": "1"}), DAY),
                container("prepared", json!({"com.docker.swarm.task.id": "t1"}), DAY),
                container("old", json!({"other": ""}), DAY),
                container("unlabelled", Value::Null, DAY),
                container("started", json!({}), DAY),
                container("new", json!({}), 60),
            ]),
        )),
        ("DELETE", "/containers/started") => Some((409, json!({"message": "cannot remove container: container is running"}))),
        ("DELETE", _) => Some((204, Value::Null)),
        ("GET", "/networks") => Some((
            200,
            json!([
                network("oldnet", json!({}), DAY),
                network("keptnet", json!({"keep": "1"}), DAY),
                network("newnet", json!({}), 60),
                network("bridge", json!({}), DAY),
            ]),
        )),
        ("POST", "/containers/prune") => Some((200, json!({"ContainersDeleted": null, "SpaceReclaimed": 0}))),
        ("POST", "/networks/prune") => Some((200, json!({"NetworksDeleted": null}))),
        _ => None,
    }
}

fn in_front_of(membership: Membership) -> RecordingEngine {
    RecordingEngine::serve(FakeNode::new(membership), engine)
}

async fn prune(engine: &RecordingEngine, kind: &str, filters: Value) -> (u16, Value) {
    let filters = filters.to_string().replace('{', "%7B").replace('}', "%7D").replace('"', "%22");
    engine.send("POST", &format!("/v1.51/{kind}/prune?filters={filters}"), None).await
}

#[tokio::test]
async fn a_prune_of_containers_leaves_prepared_tasks_alone() {
    let engine = in_front_of(Membership::Manager(FakeNode::lab1()));
    let (status, reply) = prune(&engine, "containers", json!({"until": {"10m": true}})).await;
    assert_eq!((status, &reply["SpaceReclaimed"]), (200, &json!(0)));
    let asked = engine.asked("POST").remove(0).0;
    assert!(asked.contains("until") && asked.contains("label%21") && asked.contains("com.docker.swarm.task.id"), "{asked}");
}

#[tokio::test]
async fn a_prune_that_spares_a_label_spares_it_and_prepared_tasks() {
    let engine = in_front_of(Membership::Worker(FakeNode::lab2()));
    let (status, reply) = prune(&engine, "containers", json!({"label!": {"keep": true}, "until": {"1h": true}})).await;
    assert_eq!((status, reply), (200, json!({"ContainersDeleted": ["old", "unlabelled"], "SpaceReclaimed": 20})));
    assert!(engine.asked("POST").is_empty(), "the engine would spare only what has both labels: {:?}", engine.asked("POST"));
    let listed = &engine.asked("GET /v1.51/containers/json")[0].0;
    assert!(listed.contains("all=1") && listed.contains("exited") && !listed.contains("running"), "{listed}");
    let deleted: Vec<String> = engine.asked("DELETE").into_iter().map(|(line, _)| line).collect();
    assert!(deleted.iter().all(|line| !line.contains("force") && !line.contains("v=")), "{deleted:?}");
    let (status, message) = prune(&engine, "containers", json!({"label!": {"keep": true}, "until": {"soon": true}})).await;
    assert_eq!((status, message), (400, json!("failed to parse value as time or duration: \"soon\"")));
    let (status, message) = prune(&engine, "containers", json!({"label!": {"keep": true}, "name": {"x": true}})).await;
    assert_eq!((status, message), (400, json!("invalid filter 'name'")));
}

#[tokio::test]
async fn outside_a_swarm_prunes_are_the_engines() {
    let engine = in_front_of(Membership::Inactive);
    for kind in ["containers", "networks"] {
        let (status, _) = prune(&engine, kind, json!({"label!": {"keep": true}})).await;
        let asked: Vec<String> = engine.asked("").into_iter().map(|(line, _)| line).filter(|line| line.contains(kind)).collect();
        let sent = format!("POST /v1.51/{kind}/prune?filters=%7B%22label!%22:%7B%22keep%22:true%7D%7D");
        assert_eq!((status, asked), (200, vec![sent]));
    }
}

#[tokio::test]
async fn a_prune_of_networks_follows_until_and_labels() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let (old, new) = (SystemClock.now().0 - DAY * 1_000_000_000, SystemClock.now().0);
    for (at, id, name, label) in [(old, "aaa", "oldback", ""), (old, "bbb", "keptback", "keep"), (new, "ccc", "newback", "")] {
        let mut network = recorded_store::network(id, name, None);
        network.spec.labels = (!label.is_empty()).then(|| (label.to_owned(), String::new())).into_iter().collect();
        store.write(Timestamp(at), vec![Action::create(network)]).await.unwrap();
    }
    let engine = RecordingEngine::serve(node, engine);
    let (status, reply) = prune(&engine, "networks", json!({"until": {"24h": true}, "label": {"none": true}})).await;
    assert_eq!((status, reply), (200, json!({"NetworksDeleted": null})));
    let (status, reply) = prune(&engine, "networks", json!({"until": {"2h": true}, "label!": {"keep": true}})).await;
    assert_eq!((status, reply), (200, json!({"NetworksDeleted": ["oldnet", "oldback"]})));
    let (_, reply) = prune(&engine, "networks", json!({})).await;
    assert_eq!(reply, json!({"NetworksDeleted": ["oldnet", "keptnet", "newnet", "keptback", "newback"]}), "the old one is gone");
}
