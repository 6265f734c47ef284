//! Secrets and configs, and services that name them: what is refused, in the real swarm's words.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::{ServiceUpdate, UpdateState};
use skep::store::Action;
use std::sync::Arc;

async fn send(fixture: &ApiFixture, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
    let reply = fixture.client.request(method, target, body).await.unwrap();
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default())
}

async fn manager_node() -> Arc<FakeNode> {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    store.write(SystemClock.now(), vec![Action::create(recorded_store::cluster())]).await.unwrap();
    node
}

async fn manager() -> ApiFixture {
    ApiFixture::serve(manager_node().await, None)
}

fn secret(id: &str, name: &str, target: &str) -> Value {
    let file = json!({"Name": target, "UID": "0", "GID": "0", "Mode": 0o444});
    json!({"SecretID": id, "SecretName": name, "File": file})
}

/// Creates a secret or config; its id.
async fn create(fixture: &ApiFixture, kind: &str, name: &str, content: &[u8]) -> String {
    let body = json!({ "Name": name, "Data": STANDARD.encode(content) });
    let (status, reply) = send(fixture, "POST", &format!("/{kind}/create"), Some(&body)).await;
    assert_eq!(status, 201, "{reply}");
    reply["ID"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn contents_are_bounded_and_a_config_is_shown_as_it_was_posted() {
    let fixture = manager().await;
    for (kind, word, limit) in [("secrets", "secret", 512_000), ("configs", "config", 1_024_000)] {
        let largest: Vec<u8> = (0..limit - 1).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let id = create(&fixture, kind, "largest", &largest).await;
        let (_, shown) = send(&fixture, "GET", &format!("/{kind}/{id}"), None).await;
        let expected = if kind == "configs" { json!(STANDARD.encode(&largest)) } else { Value::Null };
        assert_eq!(shown["Spec"]["Data"], expected);
        let refusal =
            format!("rpc error: code = InvalidArgument desc = {word} data must be larger than 0 and less than {limit} bytes");
        for content in [vec![], vec![0; limit]] {
            let body = json!({ "Name": "other", "Data": STANDARD.encode(content) });
            let reply = send(&fixture, "POST", &format!("/{kind}/create"), Some(&body)).await;
            assert_eq!(reply, (400, json!({ "message": refusal })));
        }
    }
}

/// Drivers are plugins that are asked for the content of a secret; skep has none.
#[tokio::test]
async fn a_secret_of_a_driver_is_refused_by_name_and_options_alone_have_no_effect() {
    let fixture = manager().await;
    let body = json!({ "Name": "s1", "Driver": { "Name": "vault", "Options": { "a": "b" } } });
    let (status, reply) = send(&fixture, "POST", "/secrets/create", Some(&body)).await;
    assert!(status >= 400 && reply["message"].as_str().unwrap().contains("plugin \"vault\" not found"), "{status} {reply}");
    assert_eq!(send(&fixture, "GET", "/secrets/s1", None).await.0, 404);
    let body = json!({ "Name": "s1", "Data": STANDARD.encode("x"), "Driver": { "Options": { "a": "b" } } });
    assert_eq!(send(&fixture, "POST", "/secrets/create", Some(&body)).await.0, 201);
}

#[tokio::test]
async fn labels_may_change_and_nothing_else() {
    let fixture = manager().await;
    create(&fixture, "secrets", "s1", b"one").await;
    let version = |shown: &Value| shown["Version"]["Index"].as_u64().unwrap();
    let (_, before) = send(&fixture, "GET", "/secrets/s1", None).await;
    let target = format!("/secrets/s1/update?version={}", version(&before));
    let only_labels = json!({"message": "rpc error: code = InvalidArgument desc = only updates to Labels are allowed"});
    for body in [json!({"Name": "s1", "Data": STANDARD.encode("two")}), json!({"Name": "s2"}), json!({"Labels": {"a": "b"}})] {
        assert_eq!(send(&fixture, "POST", &target, Some(&body)).await, (400, only_labels.clone()), "{body}");
    }
    // As stacks do: with the content that it has.
    let body = json!({"Name": "s1", "Labels": {"a": "b"}, "Data": STANDARD.encode("one")});
    assert_eq!(send(&fixture, "POST", &target, Some(&body)).await.0, 200);
    let (_, after) = send(&fixture, "GET", "/secrets/s1", None).await;
    assert_eq!(after["Spec"], json!({"Name": "s1", "Labels": {"a": "b"}}));
    assert!(version(&after) > version(&before) && after["CreatedAt"] == before["CreatedAt"]);
    let stale = json!({"message": "rpc error: code = Unknown desc = update out of sequence"});
    assert_eq!(send(&fixture, "POST", &target, Some(&body)).await, (500, stale));
    for version in ["", "?version=", "?version=x"] {
        let reply = send(&fixture, "POST", &format!("/secrets/s1/update{version}"), Some(&body)).await;
        assert_eq!(reply, (400, json!({"message": "invalid secret version"})));
    }
}

#[tokio::test]
async fn what_a_service_names_is_checked_as_swarm_does() {
    let fixture = manager().await;
    let (s1, s2) = (create(&fixture, "secrets", "s1", b"1").await, create(&fixture, "secrets", "s2", b"2").await);
    let c1 = create(&fixture, "configs", "c1", b"3").await;
    let config = json!({"ConfigID": c1, "ConfigName": "c1", "File": {"Name": "t", "UID": "0", "GID": "0", "Mode": 0o444}});
    let with = |key: &str, value: Value| json!({ key: value });
    let secrets = |list: Value| json!({ "Secrets": list });
    let go = "template: expansion:1:2: executing \"expansion\" at";
    let refused = [
        (
            secrets(json!([secret(&s1, "s1", "t"), secret(&s2, "s2", "t")])),
            "secret references 's1' and 's2' have a conflicting target: 't'".to_owned(),
        ),
        (secrets(json!([{"SecretID": s1, "SecretName": "s1"}])), "malformed secret reference, no target provided".to_owned()),
        (secrets(json!([secret("", "s1", "t")])), "malformed secret reference".to_owned()),
        (
            secrets(json!([secret(&s1, "s1", "")])),
            "malformed file secret reference, invalid target file name provided".to_owned(),
        ),
        (secrets(json!([secret(&s1, "s2", "t")])), "secret not found: s2".to_owned()),
        (secrets(json!([secret("no", "a", "t"), secret("no", "b", "u")])), "secrets not found: a, b".to_owned()),
        (
            with("Configs", json!([{"ConfigID": s1, "ConfigName": "s1", "File": {"Name": "t"}}])),
            "config not found: s1".to_owned(),
        ),
        (
            with("Env", json!(["A={{.Foo}}"])),
            format!(
                "expanding env failed: expanding env \"A={{{{.Foo}}}}\": {go} <.Foo>: can't evaluate field Foo in type *template.Context"
            ),
        ),
        (
            with("Hostname", json!("{{.Service.Labels.other}}")),
            format!("expanding hostname failed: {go} <.Service.Labels.other>: map has no entry for key \"other\""),
        ),
    ];
    let post = async |name: &str, container: &Value| {
        let mut spec = recorded_store::spec(name);
        spec["Labels"] = json!({"color": "red"});
        for (key, value) in container.as_object().unwrap() {
            spec["TaskTemplate"]["ContainerSpec"][key] = value.clone();
        }
        send(&fixture, "POST", "/services/create", Some(&spec)).await
    };
    for (container, message) in refused {
        let message = format!("rpc error: code = InvalidArgument desc = {message}");
        assert_eq!(post("web", &container).await, (400, json!({ "message": message })), "{container}");
    }
    // One secret at two targets, a config at a secret's target; a label of the service by its name.
    let accepted = [
        secrets(json!([secret(&s1, "s1", "t"), secret(&s1, "s1", "u")])),
        json!({"Secrets": [secret(&s1, "s1", "t")], "Configs": [config]}),
        with("Hostname", json!("{{.Service.Labels.color}}")),
    ];
    for (number, container) in accepted.iter().enumerate() {
        assert_eq!(post(&format!("web{number}"), container).await.0, 201, "{container}");
    }
    let (status, reply) = send(&fixture, "DELETE", "/secrets/s1", None).await;
    let in_use = "rpc error: code = InvalidArgument desc = secret 's1' is in use by the following services: web0, web1";
    assert_eq!((status, &reply["message"]), (400, &json!(in_use)));
    assert_eq!(send(&fixture, "DELETE", "/secrets/s2", None).await.0, 204);
}

/// The update may go back to the spec of before, which needs it.
#[tokio::test]
async fn a_secret_of_the_spec_before_stays_while_an_update_is_not_over() {
    let node = manager_node().await;
    let store = node.store.lock().unwrap().clone().unwrap();
    let fixture = ApiFixture::serve(node, None);
    let (s1, s2) = (create(&fixture, "secrets", "s1", b"1").await, create(&fixture, "secrets", "s2", b"2").await);
    let spec = |id: &str, name: &str| {
        let mut spec = recorded_store::spec("web");
        spec["TaskTemplate"]["ContainerSpec"]["Secrets"] = json!([secret(id, name, "t")]);
        spec
    };
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&spec(&s1, "s1"))).await.0, 201);
    let version = send(&fixture, "GET", "/services/web", None).await.1["Version"]["Index"].clone();
    let target = format!("/services/web/update?version={version}");
    assert_eq!(send(&fixture, "POST", &target, Some(&spec(&s2, "s2"))).await.0, 200);
    for (state, removed) in [(UpdateState::Updating, 400), (UpdateState::Paused, 400), (UpdateState::Completed, 204)] {
        let mut web = store.read().service_named("web").unwrap().clone();
        web.update = Some(ServiceUpdate { state, ..ServiceUpdate::requested(false) });
        store.write(SystemClock.now(), vec![Action::update(web)]).await.unwrap();
        let (status, reply) = send(&fixture, "DELETE", "/secrets/s1", None).await;
        assert_eq!(status, removed, "{state:?} {reply}");
    }
}
