//! What a client may make the managers store is bounded, for each kind of object; what is larger from before is read and may shrink.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::manager::bounds::SPEC;
use skep::model::Role;
use skep::store::{Action, Store, StoreHandle};
use std::sync::Arc;

const LAB2: &str = "drwr0n2tcmgjuamlus2eyenpw";
/// An option that is taken and has no effect.
const VXLAN_IDS: &str = "com.docker.network.driver.overlay.vxlanid_list";
/// More than what a spec has beside its labels.
const REST: usize = 4 << 10;

async fn swarm(labels: usize) -> (ApiFixture, StoreHandle) {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let mut lab2 = recorded_store::node(LAB2, "lab2", Role::Worker);
    let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
    let mut cluster = recorded_store::cluster();
    for stored in [&mut lab2.spec.labels, &mut cluster.spec.labels] {
        *stored = [("l".to_owned(), text(labels))].into();
    }
    let objects = vec![Action::create(cluster), Action::create(lab1), Action::create(lab2)];
    store.write(SystemClock.now(), objects).await.unwrap();
    (ApiFixture::serve(node, None), store)
}

fn text(bytes: usize) -> String {
    "x".repeat(bytes)
}

fn labels(bytes: usize) -> Value {
    json!({ "l": text(bytes) })
}

async fn post(fixture: &ApiFixture, target: &str, body: &Value) -> (u16, Value) {
    let reply = fixture.client.request("POST", target, Some(body)).await.unwrap();
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default())
}

/// A node's or the swarm's update, with the version that is stored.
fn of_node(store: &Store) -> String {
    format!("/nodes/lab2/update?version={}", store.node(&LAB2.into()).unwrap().meta.version)
}
fn of_swarm(store: &Store) -> String {
    format!("/swarm/update?version={}", store.cluster().unwrap().meta.version)
}
fn of_secret(store: &Store) -> String {
    let secret = store.all::<skep::model::ClusterSecret>().find(|secret| secret.spec.name == "first").unwrap();
    format!("/secrets/{}/update?version={}", secret.id, secret.meta.version)
}

/// What is posted, with a text of so many bytes in it.
struct Case {
    target: fn(&Store) -> String,
    body: fn(usize) -> Value,
}

const CASES: [Case; 10] = [
    Case {
        target: |_| "/networks/create".to_owned(),
        body: |bytes| json!({ "Name": "labels", "Driver": "overlay", "Labels": labels(bytes) }),
    },
    Case {
        target: |_| "/networks/create".to_owned(),
        body: |bytes| json!({ "Name": "options", "Driver": "overlay", "Options": { (VXLAN_IDS): text(bytes) } }),
    },
    Case {
        target: |_| "/networks/create".to_owned(),
        body: |bytes| {
            let addresses = json!({ (text(bytes)): "10.9.0.9" });
            let config = json!([{ "Subnet": "10.9.0.0/24", "AuxiliaryAddresses": addresses }]);
            json!({ "Name": "addresses", "Driver": "overlay", "IPAM": { "Driver": "default", "Config": config } })
        },
    },
    Case { target: of_node, body: |bytes| json!({ "Role": "worker", "Availability": "active", "Labels": labels(bytes) }) },
    Case { target: of_node, body: |bytes| json!({ "Role": "worker", "Availability": "active", "Name": text(bytes) }) },
    Case { target: of_swarm, body: |bytes| json!({ "Name": "default", "Labels": labels(bytes) }) },
    Case {
        target: |_| "/secrets/create".to_owned(),
        body: |bytes| json!({ "Name": "second", "Data": STANDARD.encode("content"), "Labels": labels(bytes) }),
    },
    Case {
        target: |_| "/configs/create".to_owned(),
        body: |bytes| {
            let templating = json!({ "Name": "golang", "Options": labels(bytes) });
            json!({ "Name": "third", "Data": STANDARD.encode("content"), "Templating": templating })
        },
    },
    Case { target: of_secret, body: |bytes| json!({ "Name": "first", "Labels": labels(bytes) }) },
    Case { target: |_| "/acme".to_owned(), body: |bytes| json!({ "Profile": text(bytes) }) },
];

#[tokio::test]
async fn what_a_client_posts_is_bounded_for_each_kind_of_object() {
    let (fixture, store) = swarm(0).await;
    let first = post(&fixture, "/secrets/create", &json!({ "Name": "first", "Data": STANDARD.encode("content") })).await;
    assert_eq!(first.0, 201, "{first:?}");
    for (number, Case { target, body }) in CASES.iter().enumerate() {
        let before = store.read();
        let target = target(&before);
        for bytes in [SPEC, 2 << 20] {
            let (status, reply) = post(&fixture, &target, &body(bytes)).await;
            let message = reply["message"].as_str().unwrap_or_default();
            assert_eq!(status, 400, "{number} {target}: {message:.200}");
            let sizes: Vec<usize> = message.split(' ').filter_map(|word| word.parse().ok()).collect();
            assert!(
                matches!(&sizes[..], [size, SPEC] if (bytes + 1..bytes + REST).contains(size)),
                "{number} {target}: {message:.200}"
            );
        }
        assert!(Arc::ptr_eq(&before, &store.read()), "{number} {target}: it is written");
        let (status, reply) = post(&fixture, &target, &body(SPEC - REST)).await;
        assert!((200..300).contains(&status), "{number} {target}: {status} {:.200}", reply.to_string());
        assert!(!Arc::ptr_eq(&before, &store.read()), "{number} {target}: it is not written");
    }
    let before = store.read();
    let root = json!({ "Name": "default", "CAConfig": { "SigningCACert": text(SPEC), "SigningCAKey": "key" } });
    let (status, reply) = post(&fixture, &of_swarm(&before), &root).await;
    assert!(status == 400 && reply["message"].as_str().unwrap().contains("a root CA of"), "{:.200}", reply.to_string());
    assert!(Arc::ptr_eq(&before, &store.read()));
}

#[tokio::test]
async fn a_swarm_is_not_made_with_what_is_too_large() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    let pools: Vec<String> = (0..1 << 15).map(|n: u32| format!("10.{}.{}.0/29", n >> 8, n & 255)).collect();
    let with = |key: &str, value: Value| json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1", key: value });
    let small = |pools: Value| {
        let mut body = with("DefaultAddrPool", pools);
        body["SubnetSize"] = json!(29);
        body
    };
    for (body, expected) in [
        (with("Spec", json!({ "Labels": labels(SPEC) })), 400),
        (small(json!(pools)), 400),
        (with("Spec", json!({ "Labels": labels(SPEC - REST) })), 200),
    ] {
        let (status, reply) = post(&fixture, "/swarm/init", &body).await;
        assert_eq!(status, expected, "{:.200}", reply.to_string());
        assert_eq!(node.last_init.lock().unwrap().is_some(), expected == 200, "{:.200}", reply.to_string());
    }
}

#[tokio::test]
async fn what_an_earlier_build_stored_is_read_and_changed_and_does_not_grow() {
    let (fixture, store) = swarm(2 * SPEC).await;
    for target in ["/nodes/lab2", "/swarm"] {
        let reply = fixture.client.request("GET", target, None).await.unwrap();
        let shown: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(shown["Spec"]["Labels"]["l"].as_str().map(str::len), Some(2 * SPEC), "{target}");
    }
    for (bytes, expected) in [(2 * SPEC, 200), (2 * SPEC + 1, 400), (2 * SPEC - 1, 200), (2 * SPEC, 400)] {
        let drained = json!({ "Role": "worker", "Availability": "drain", "Labels": labels(bytes) });
        let swarm = json!({ "Name": "default", "Labels": labels(bytes), "Orchestration": { "TaskHistoryRetentionLimit": 7 } });
        for (target, body) in [(of_node(&store.read()), drained), (of_swarm(&store.read()), swarm)] {
            let (status, reply) = post(&fixture, &target, &body).await;
            assert_eq!(status, expected, "{target} {bytes}: {:.200}", reply.to_string());
        }
    }
}
