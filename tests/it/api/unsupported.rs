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
async fn init_and_join_take_an_address_of_its_own_for_the_tunnel() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    assert_eq!(post(&fixture, "/v1.51/swarm/init", &init_body("10.99.0.1")).await, (200, String::new()));
    let asked = node.last_init.lock().unwrap().clone().expect("asked");
    assert_eq!((asked.advertise_addr.as_str(), asked.data_path_addr.as_str()), ("10.123.0.1", "10.99.0.1"));
    let fixture = ApiFixture::serve(FakeNode::new(Membership::Inactive), None);
    for data_path_addr in ["", "10.123.0.2", "eth1"] {
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
