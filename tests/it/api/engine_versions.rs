//! An engine that serves no old API versions, and what skep adds to its requests for containers.

use super::fixture::FakeNode;
use super::recording_engine::RecordingEngine;
use serde_json::{Value, json};
use skep::api::control::Membership;

/// An engine 29: its oldest API version is 1.40. It has two containers, c1 of a task.
fn engine_29(line: &str) -> Option<(u16, Value)> {
    let (method, target) = line.split_once(' ')?;
    let versioned = target.strip_prefix("/v1.").and_then(|rest| rest.split_once('/'));
    if versioned.is_some_and(|(minor, _)| minor.parse().is_ok_and(|minor: u32| minor < 40)) {
        return Some((400, json!({"message": "client version 1.30 is too old. Minimum supported API version is 1.40"})));
    }
    let path = versioned.map_or_else(|| target.to_owned(), |(_, rest)| format!("/{rest}"));
    let containers = json!([{"Id": "c2", "Labels": {}}, {"Id": "c1", "Labels": {"com.docker.swarm.task.id": "t1"}}, {"Id": "c3", "Labels": null}]);
    match (method, path.split('?').next()?) {
        ("GET", "/version") => Some((200, json!({"ApiVersion": "1.52", "MinAPIVersion": "1.40", "Version": "29.0.0"}))),
        ("GET", "/_ping") => Some((200, json!("OK"))),
        ("GET", "/info") => Some((200, json!({"ID": "x", "ServerVersion": "29.0.0"}))),
        ("GET", "/networks") => Some((200, json!([{"Id": "0dfe", "Name": "lan", "Driver": "bridge"}]))),
        ("GET", "/networks/lan") => Some((200, json!({"Id": "0dfe", "Name": "lan", "Driver": "bridge"}))),
        ("GET", "/containers/json") => Some((200, containers)),
        ("GET", "/distribution/registry.example:5000/app/json" | "/distribution/registry.example:5000/app:2/json") => {
            Some((200, json!({"Descriptor": {"mediaType": "x", "digest": DIGEST, "size": 7}})))
        }
        ("GET", "/distribution/odd:1/json") => Some((200, json!({"Descriptor": {"digest": "none"}}))),
        _ => None,
    }
}

const DIGEST: &str = "sha256:6d9f0a4f3c5c2b1e6d9f0a4f3c5c2b1e6d9f0a4f3c5c2b1e6d9f0a4f3c5c2b1e";

fn manager() -> RecordingEngine {
    RecordingEngine::serve(FakeNode::new(Membership::Manager(FakeNode::lab1())), engine_29)
}

#[tokio::test]
async fn clients_older_than_the_engine_serves_can_use_the_swarm() {
    let engine = manager();
    for target in ["/nodes", "/services", "/info", "/version", "/networks", "/networks/lan", "/networks?filters=%7B%7D"] {
        let (status, reply) = engine.send("GET", &format!("/v1.30{target}"), None).await;
        assert_eq!(status, 200, "{target}: {reply}");
    }
    let (status, reply) = engine.send("GET", "/v1.30/info", None).await;
    assert_eq!((status, &reply["ServerVersion"], &reply["Swarm"]["ControlAvailable"]), (200, &json!("29.0.0"), &json!(true)));
    let (status, _) = engine.send("GET", "/v1.30/images/json", None).await;
    assert_eq!(status, 400, "what is the engine's stays so");
}

fn ids(reply: &Value) -> Vec<&str> {
    reply.as_array().unwrap().iter().map(|c| c["Id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_filter_is_task_separates_containers_of_tasks_from_others() {
    let engine = manager();
    let list = async |query: &str| engine.send("GET", &format!("/v1.51/containers/json?{query}"), None).await;
    let (status, reply) = list("filters=%7B%22is-task%22%3A%7B%22false%22%3Atrue%7D%7D&all=1").await;
    assert_eq!((status, ids(&reply)), (200, vec!["c2", "c3"]));
    let (_, reply) = list("filters=%7B%22is-task%22%3A%5B%22false%22%5D%7D&limit=1").await;
    assert_eq!(ids(&reply), ["c2"], "the limit counts what is shown");
    let (status, _) = list("filters=%7B%22is-task%22%3A%7B%22true%22%3Atrue%7D%2C%22name%22%3A%5B%22c%22%5D%7D&size=1").await;
    assert_eq!(status, 200);
    let asked = engine.asked("GET /v1.51/containers/json");
    let last = &asked.last().unwrap().0;
    assert!(!last.contains("is-task") && last.contains("com.docker.swarm.task.id") && last.contains("size=1"), "{last}");
    assert!(asked[1].0.contains("all=1") && !asked[1].0.contains("limit"), "all are asked for: {asked:?}");
    let (status, message) = list("filters=%7B%22is-task%22%3A%7B%22maybe%22%3Atrue%7D%7D").await;
    assert_eq!((status, message.as_str().unwrap().contains("is-task")), (400, true), "{message}");
    list("all=1").await;
    let asked = engine.asked("GET /v1.51/containers/json");
    assert_eq!(asked.last().unwrap().0, "GET /v1.51/containers/json?all=1", "a list without the filter is passed through");
}

#[tokio::test]
async fn the_image_of_an_old_clients_service_gets_its_digest_or_a_warning() {
    let engine = manager();
    let create = async |version: &str, name: &str, image: &str| {
        let spec = json!({"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": image}}});
        let (status, reply) = engine.send("POST", &format!("/v{version}/services/create"), Some(&spec)).await;
        assert_eq!(status, 201, "{reply}");
        reply["Warnings"].clone()
    };
    let shown = async |name: &str| {
        let (_, service) = engine.send("GET", &format!("/services/{name}"), None).await;
        (
            service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str().unwrap().to_owned(),
            service["Version"]["Index"].clone(),
        )
    };
    let app = "registry.example:5000/app";
    assert_eq!(create("1.29", "one", app).await, Value::Null);
    let (image, version) = shown("one").await;
    assert_eq!(image, format!("{app}:latest@{DIGEST}"));
    for (name, image) in [("two", "lab:1"), ("three", "odd:1")] {
        let warnings = create("1.24", name, image).await;
        assert!(
            warnings[0].as_str().unwrap().starts_with(&format!("image {image} could not be accessed on a registry")),
            "{warnings}"
        );
        assert_eq!(shown(name).await.0, image);
    }
    let spec = json!({"Name": "one", "TaskTemplate": {"ContainerSpec": {"Image": format!("{app}:2")}}});
    let (status, reply) = engine.send("POST", &format!("/v1.28/services/one/update?version={version}"), Some(&spec)).await;
    assert_eq!((status, &reply["Warnings"]), (200, &Value::Null), "{reply}");
    assert_eq!(shown("one").await.0, format!("{app}:2@{DIGEST}"));
    let asked = engine.asked("GET /distribution").len();
    assert_eq!(create("1.30", "four", app).await, Value::Null, "such a client asks itself");
    assert_eq!(create("1.29", "five", &format!("{app}@{DIGEST}")).await, Value::Null);
    assert_eq!((shown("four").await.0.as_str(), engine.asked("GET /distribution").len()), (app, asked));
}
