//! Updates, filters and descriptions of nodes, and refused placements, request by request: the words of a real swarm where it has any.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::node::ManagerStatus;
use skep::model::task::GenericResource;
use skep::model::{Availability, Node, Role};
use skep::store::{Action, StoreHandle};

const LAB2: &str = "drwr0n2tcmgjuamlus2eyenpw";

async fn swarm() -> (ApiFixture, StoreHandle) {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let mut lab2 = recorded_store::node(LAB2, "lab2", Role::Worker);
    lab2.description.engine_labels = [("disk".to_owned(), "ssd".to_owned())].into();
    lab2.description.generic_resources = vec![GenericResource::named("gpu", "G1"), GenericResource::discrete("ssd", 3)];
    let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
    let objects = vec![Action::create(recorded_store::cluster()), Action::create(lab1), Action::create(lab2)];
    store.write(SystemClock.now(), objects).await.unwrap();
    (ApiFixture::serve(node, None), store)
}

async fn send(fixture: &ApiFixture, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
    let reply = fixture.client.request(method, target, body).await.unwrap();
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default())
}

#[tokio::test]
async fn refused_updates_change_nothing() {
    let (fixture, store) = swarm().await;
    let before = store.read();
    let fine = json!({"Role": "worker", "Availability": "active"});
    for (target, body, status, message) in [
        ("lab2/update?version=99", &fine, 500, "rpc error: code = Unknown desc = update out of sequence"),
        ("lab2/update", &fine, 400, "invalid node version '': strconv.ParseUint: parsing \"\": invalid syntax"),
        ("lab2/update?version=x", &fine, 400, "invalid node version 'x': strconv.ParseUint: parsing \"x\": invalid syntax"),
        ("nosuch/update?version=1", &json!({"Role": "boss"}), 404, "node nosuch not found"),
        ("lab2/update?version=1", &json!({"Role": "boss", "Availability": "active"}), 400, "invalid Role: \"boss\""),
        ("lab2/update?version=1", &json!({"Availability": "active"}), 400, "invalid Role: \"\""),
        ("lab2/update?version=1", &json!({"Role": "worker", "Availability": "away"}), 400, "invalid Availability: \"away\""),
        ("lab2/update?version=1", &json!({"Role": "worker"}), 400, "invalid Availability: \"\""),
    ] {
        let (found, reply) = send(&fixture, "POST", &format!("/nodes/{target}"), Some(body)).await;
        assert_eq!((found, reply["message"].as_str().unwrap()), (status, message), "{target} {body}");
    }
    assert!(store.read().nodes().eq(before.nodes()));
}

#[tokio::test]
async fn labels_and_availability_are_written_in_any_case_and_null_labels_are_none() {
    let (fixture, store) = swarm().await;
    for (body, availability, labels) in [
        (json!({"Role": "Worker", "Availability": "Drain", "Labels": {"zone": "a", "": "x y"}}), Availability::Drain, 2),
        (json!({"role": "worker", "availability": "PAUSE", "labels": {"zone": "b"}, "Name": "its name"}), Availability::Pause, 1),
        (json!({"Role": "worker", "Availability": "active", "Labels": null}), Availability::Active, 0),
    ] {
        let version = store.read().node(&LAB2.into()).unwrap().meta.version;
        let (status, _) = send(&fixture, "POST", &format!("/nodes/{LAB2}/update?version={version}"), Some(&body)).await;
        assert_eq!(status, 200, "{body}");
        let store = store.read();
        let spec = &store.node(&LAB2.into()).unwrap().spec;
        assert_eq!((spec.availability, spec.labels.len()), (availability, labels), "{body}");
        let (_, shown) = send(&fixture, "GET", "/nodes/lab2", None).await;
        assert_eq!(shown["Spec"]["Availability"], availability.as_str());
        assert!(shown["Spec"]["Labels"].is_object());
    }
}

#[tokio::test]
async fn filters_and_generic_resources_of_nodes() {
    let (fixture, store) = swarm().await;
    let version = store.read().node(&LAB2.into()).unwrap().meta.version;
    let spec = json!({"Role": "worker", "Availability": "active", "Labels": {"zone": "a"}, "Name": "second"});
    assert_eq!(send(&fixture, "POST", &format!("/nodes/lab2/update?version={version}"), Some(&spec)).await.0, 200);
    for (filters, expected) in [
        (json!({"label": ["disk=ssd"]}), &["lab2"][..]),
        (json!({"label": ["disk"]}), &["lab2"]),
        (json!({"label": ["zone"]}), &[]),
        (json!({"node.label": ["zone=a"]}), &["lab2"]),
        (json!({"node.label": ["zone=A"]}), &[]),
        (json!({"role": ["Worker"]}), &["lab2"]),
        (json!({"name": ["lab"]}), &["lab2", "lab1"]),
        (json!({"name": ["second"]}), &[]),
        (json!({"id": [&LAB2[..4]]}), &["lab2"]),
    ] {
        let (_, nodes) = send(&fixture, "GET", &format!("/nodes?filters={}", encoded(&filters)), None).await;
        let names: Vec<&str> = nodes.as_array().unwrap().iter().map(|n| n["Description"]["Hostname"].as_str().unwrap()).collect();
        assert_eq!(names, expected, "{filters}");
    }
    let (_, nodes) = send(&fixture, "GET", "/nodes", None).await;
    let resources: Vec<&Value> =
        nodes.as_array().unwrap().iter().map(|n| &n["Description"]["Resources"]["GenericResources"]).collect();
    let expected =
        json!([{"NamedResourceSpec": {"Kind": "gpu", "Value": "G1"}}, {"DiscreteResourceSpec": {"Kind": "ssd", "Value": 3}}]);
    assert_eq!(resources, [&expected, &Value::Null], "a node without any does not show the field");
}

fn encoded(filters: &Value) -> String {
    filters.to_string().bytes().map(|byte| format!("%{byte:02x}")).collect()
}

#[tokio::test]
async fn refused_placements_leave_the_store_as_it_is() {
    let (fixture, store) = swarm().await;
    let before = store.read();
    let rpc = "rpc error: code = ";
    for (part, value, status, message) in [
        ("Placement", json!({"Constraints": ["a>1"]}), 500, format!("{rpc}Unknown desc = constraint expected one operator from ==, !=")),
        ("Placement", json!({"Constraints": ["node.id=={{.Node.ID}}"]}), 500, format!("{rpc}Unknown desc = value '{{{{.Node.ID}}}}' is invalid")),
        ("Placement", json!({"MaxReplicas": -1}), 400,
            "invalid JSON: json: cannot unmarshal number -1 into Go struct field ServiceSpec.TaskTemplate.Placement.MaxReplicas of type uint64".to_owned()),
        ("Resources", json!({"Reservations": {"NanoCPUs": 1}}), 400, format!("{rpc}InvalidArgument desc = invalid cpu value 1e-09: Must be at least 0.001")),
        ("Resources", json!({"Reservations": {"MemoryBytes": "1"}}), 400,
            "invalid JSON: json: cannot unmarshal string into Go struct field ServiceSpec.TaskTemplate.Resources.Reservations.MemoryBytes of type int64".to_owned()),
        ("Resources", json!({"Reservations": {"GenericResources": [{"DiscreteResourceSpec": {"Kind": "gpu", "Value": 0}}]}}), 400,
            format!("{rpc}InvalidArgument desc = TaskTemplate.Resources.Reservations.GenericResources[0]: cannot ask for 0 of resource gpu")),
    ] {
        let mut spec = recorded_store::spec("web");
        spec["TaskTemplate"][part] = value;
        let (found, reply) = send(&fixture, "POST", "/services/create", Some(&spec)).await;
        assert_eq!((found, reply["message"].as_str().unwrap()), (status, message.as_str()), "{spec}");
    }
    assert_eq!(*store.read(), *before);
}

#[tokio::test]
async fn a_node_that_was_demoted_a_moment_ago_is_removed_once_it_has_left_raft() {
    let (fixture, store) = swarm().await;
    let mut lab2 = store.read().node(&LAB2.into()).unwrap().clone();
    lab2.manager = Some(ManagerStatus { raft_id: 7, addr: "10.123.0.2:2377".parse().unwrap() });
    store.write(SystemClock.now(), vec![Action::update(lab2)]).await.unwrap();
    let removal = send(&fixture, "DELETE", "/nodes/lab2?force=1", None);
    let leaves = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let node = store.read().node(&LAB2.into()).unwrap().clone();
        store.write(SystemClock.now(), vec![Action::update(Node { manager: None, ..node })]).await.unwrap();
    };
    let ((status, reply), ()) = tokio::join!(removal, leaves);
    assert_eq!((status, reply), (200, Value::Null));
    assert!(store.read().node(&LAB2.into()).is_none());
}
