//! Requests that skep cannot carry out yet: refused with 501 and a reason, never ignored.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::Role;
use skep::store::Action;

/// Posts a JSON body; status and error message of the reply.
async fn post(fixture: &ApiFixture, target: &str, body: &Value) -> (u16, String) {
    let reply = fixture.client.request("POST", target, Some(body)).await.unwrap();
    (reply.status.as_u16(), reply.ok().err().map(|e| e.to_string()).unwrap_or_default())
}

fn init_body(data_path_addr: &str) -> Value {
    json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1", "DataPathAddr": data_path_addr})
}

fn join_body(data_path_addr: &str) -> Value {
    json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.2", "DataPathAddr": data_path_addr,
        "RemoteAddrs": ["10.123.0.1:2377"], "JoinToken": "SWMTKN-1-a-b"})
}

#[tokio::test]
async fn init_with_another_data_path_address_is_refused() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    let (status, message) = post(&fixture, "/v1.51/swarm/init", &init_body("10.99.0.1")).await;
    assert_eq!(status, 501, "{message}");
    assert!(message.contains("DataPathAddr 10.99.0.1") && message.contains("--advertise-addr"), "{message}");
    assert_eq!(*node.last_init.lock().unwrap(), None, "the node was not asked");
}

#[tokio::test]
async fn init_with_the_advertised_data_path_address_is_accepted() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    assert_eq!(post(&fixture, "/v1.51/swarm/init", &init_body("10.123.0.1")).await, (200, String::new()));
    assert_eq!(node.last_init.lock().unwrap().as_ref().map(|i| i.advertise_addr.clone()), Some("10.123.0.1".to_owned()));
}

#[tokio::test]
async fn join_with_another_data_path_address_is_refused() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Inactive), None);
    let (status, message) = post(&fixture, "/v1.51/swarm/join", &join_body("eth1")).await;
    assert_eq!(status, 501, "{message}");
    assert!(message.contains("DataPathAddr eth1"), "{message}");
}

#[tokio::test]
async fn join_as_the_cli_sends_it_is_accepted() {
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Inactive), None);
    for data_path_addr in ["", "10.123.0.2"] {
        assert_eq!(post(&fixture, "/v1.51/swarm/join", &join_body(data_path_addr)).await, (200, String::new()));
    }
}

#[tokio::test]
async fn promotion_is_refused_while_the_managers_may_go_back_to_a_build_that_knows_one() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let worker = recorded_store::node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    // Written at the first feature level.
    let cluster = skep::model::Cluster { feature_level: 1, ..recorded_store::cluster() };
    store.write(SystemClock.now(), vec![Action::create(worker), Action::create(cluster)]).await.unwrap();
    let fixture = ApiFixture::serve(node, None);
    let spec = json!({"Role": "manager", "Availability": "active"});
    let version = store.read().nodes().find(|n| n.description.hostname == "lab2").unwrap().meta.version;
    let (status, message) = post(&fixture, &format!("/v1.51/nodes/lab2/update?version={version}"), &spec).await;
    assert_eq!(status, 501, "{message}");
    assert!(message.contains(skep::model::cluster::ONE_MANAGER), "{message}");
}
