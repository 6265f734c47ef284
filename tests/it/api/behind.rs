//! Requests to a manager whose store is behind: what it has checked is checked again where the request is applied, and what
//! it does not know of is not overwritten.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use async_trait::async_trait;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::model::{NodeState, Role, Timestamp};
use skep::store::{Action, FieldUpdate, Kind, LocalProposer, Propose, ProposeError, StoreHandle, StorePublisher, Transaction};
use std::sync::Arc;

/// Proposes to a store that is ahead of what the manager reads.
struct Ahead(StoreHandle);

#[async_trait]
impl Propose for Ahead {
    async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        self.0.propose(transaction).await
    }
}

/// A manager that reads the state as it is now, whatever is written.
fn behind(ahead: &StoreHandle) -> ApiFixture {
    let mut publisher = StorePublisher::default();
    publisher.publish(&ahead.read());
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    *node.store.lock().unwrap() = Some(StoreHandle::new(publisher.reader(), Arc::new(Ahead(ahead.clone()))));
    ApiFixture::serve(node, None)
}

async fn write(store: &StoreHandle, action: Action) {
    store.write(Timestamp(1), vec![action]).await.unwrap();
}

async fn store() -> StoreHandle {
    let store = LocalProposer::handle();
    write(&store, Action::create(recorded_store::cluster())).await;
    write(&store, Action::create(recorded_store::network("n1", "front", Some("172.20.1.0/24")))).await;
    write(&store, Action::create(recorded_store::network("n2", "ingress", Some("10.0.0.0/24")))).await;
    store
}

async fn request(api: &ApiFixture, method: &str, target: &str, body: Option<&Value>) -> (u16, String) {
    let reply = api.client.request(method, target, body).await.unwrap();
    (reply.status.as_u16(), reply.ok().err().map(|e| e.to_string()).unwrap_or_default())
}

fn attached(name: &str) -> Value {
    let mut spec = recorded_store::spec(name);
    spec["TaskTemplate"]["Networks"] = json!([{"Target": "n1"}]);
    spec["EndpointSpec"]["Ports"] =
        json!([{"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]);
    spec
}

#[tokio::test]
async fn a_network_that_got_a_user_stays() {
    let store = store().await;
    let api = behind(&store);
    write(&store, Action::create(recorded_store::service("s1", attached("web")).unwrap())).await;
    let (status, message) = request(&api, "DELETE", "/v1.51/networks/front", None).await;
    assert!(status == 400 && message.contains("network n1 is in use by service s1"), "{status} {message}");
    assert!(store.read().network(&"n1".into()).is_some());
}

#[tokio::test]
async fn a_service_gets_no_port_and_no_network_that_another_request_took() {
    let store = store().await;
    let api = behind(&store);
    write(&store, Action::create(recorded_store::service("s1", attached("web")).unwrap())).await;
    let (status, message) = request(&api, "POST", "/v1.51/services/create", Some(&attached("other"))).await;
    assert!(status == 400 && message.contains("port '8080' is already in use by service 'web' (s1)"), "{status} {message}");
    write(&store, Action::Remove(Kind::Service, "s1".to_owned())).await;
    write(&store, Action::Remove(Kind::Network, "n1".to_owned())).await;
    let (status, message) = request(&api, "POST", "/v1.51/services/create", Some(&attached("other"))).await;
    assert!(status == 404 && message.contains("network n1 not found"), "{status} {message}");
    assert_eq!(store.read().services().count(), 0);
}

#[tokio::test]
async fn a_node_that_came_back_is_not_removed_without_force() {
    let store = store().await;
    let mut node = recorded_store::node("w1", "lab2", Role::Worker);
    node.status.state = NodeState::Down;
    write(&store, Action::create(node)).await;
    let api = behind(&store);
    let mut node = store.read().node(&"w1".into()).unwrap().clone();
    node.status.state = NodeState::Ready;
    write(&store, Action::update(node)).await;
    let (status, _) = request(&api, "DELETE", "/v1.51/nodes/w1", None).await;
    assert!(status >= 400 && store.read().node(&"w1".into()).is_some(), "{status}");
    assert_eq!(request(&api, "DELETE", "/v1.51/nodes/w1?force=1", None).await, (200, String::new()));
    assert!(store.read().node(&"w1".into()).is_none());
}

#[tokio::test]
async fn an_update_of_the_swarm_does_not_bring_a_rotated_token_back() {
    let store = store().await;
    let api = behind(&store);
    let cluster = store.read().cluster().unwrap().clone();
    let token = FieldUpdate::JoinToken { id: cluster.id.clone(), role: Role::Worker, token: "rotated".into() };
    write(&store, Action::Set(token)).await;
    // The client has read the newest version from another manager.
    let version = store.read().cluster().unwrap().meta.version;
    let mut spec = serde_json::to_value(&cluster.spec).unwrap();
    spec["Labels"] = json!({"a": "b"});
    let (status, message) = request(&api, "POST", &format!("/v1.51/swarm/update?version={version}"), Some(&spec)).await;
    assert_eq!((status, message.as_str()), (200, ""));
    let cluster = store.read().cluster().unwrap().clone();
    assert_eq!((cluster.tokens.worker.expose().as_str(), cluster.spec.labels.len()), ("rotated", 1));
}
