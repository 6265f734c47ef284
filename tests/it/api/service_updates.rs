//! Updates of services as clients post them: with everything that they were shown, or with what they name alone.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::Role;
use skep::store::{Action, StoreHandle};

async fn swarm() -> (ApiFixture, StoreHandle) {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let lab1 = recorded_store::node("ej9fe8a4i12wa7r06tdh2hha7", "lab1", Role::Manager);
    store.write(SystemClock.now(), vec![Action::create(recorded_store::cluster()), Action::create(lab1)]).await.unwrap();
    (ApiFixture::serve(node, None), store)
}

async fn send(fixture: &ApiFixture, method: &str, target: &str, body: Option<&Value>) -> (u16, Value) {
    let reply = fixture.client.request(method, target, body).await.unwrap();
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default())
}

/// What docker-py's `service.scale` does: it reads with the defaults filled in and posts all of it back.
#[tokio::test]
async fn what_is_shown_with_defaults_is_accepted_back_and_touches_no_task() {
    let (fixture, store) = swarm().await;
    let posted =
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Args": null, "Command": ["sleep", "9"]}}});
    assert_eq!(send(&fixture, "POST", "/v1.41/services/create", Some(&posted)).await.0, 201);
    for replicas in [3, 3] {
        let (_, shown) = send(&fixture, "GET", "/v1.41/services/web?insertDefaults=True", None).await;
        let mut spec = shown["Spec"].clone();
        assert_eq!(spec["UpdateConfig"]["Monitor"], 5_000_000_000_u64, "{spec}");
        spec["Mode"] = json!({"replicated": {"Replicas": replicas}});
        let target = format!("/v1.41/services/web/update?version={}", shown["Version"]["Index"]);
        let (status, reply) = send(&fixture, "POST", &target, Some(&spec)).await;
        assert_eq!((status, reply), (200, json!({"Warnings": null})), "{replicas}");
    }
    let store = store.read();
    let service = store.services().next().unwrap();
    assert_eq!((service.spec.mode.replicas(), service.spec_version), (3, 1), "the tasks run the current template");
}

#[tokio::test]
async fn an_update_with_another_way_of_updating_is_refused_by_name() {
    let (fixture, _) = swarm().await;
    for (key, value) in
        [("Parallelism", json!(2)), ("FailureAction", json!("rollback")), ("Delay", json!(1)), ("Order", json!("start-first"))]
    {
        let posted =
            json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}, "RollbackConfig": { key: value }});
        let (status, reply) = send(&fixture, "POST", "/services/create", Some(&posted)).await;
        let message = reply["message"].as_str().unwrap();
        assert!(status == 501 && message.contains(&format!("RollbackConfig.{key}")), "{message}");
    }
}

#[tokio::test]
async fn a_stale_version_is_said_before_what_skep_cannot_do() {
    let (fixture, _) = swarm().await;
    let posted = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}});
    send(&fixture, "POST", "/services/create", Some(&posted)).await;
    let stale = json!({"message": "rpc error: code = Unknown desc = update out of sequence"});
    let privileges = json!({"CredentialSpec": {"File": "x"}});
    let windows = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Privileges": privileges}}});
    let other = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:2"}}});
    for (target, body) in [
        ("/services/web/update?version=99", &windows),
        ("/services/web/update?version=99", &other),
        ("/nodes/lab1/update?version=99", &json!({"Role": "worker", "Availability": "active"})),
        ("/swarm/update?version=99", &json!({"EncryptionConfig": {"AutoLockManagers": true}})),
    ] {
        assert_eq!(send(&fixture, "POST", target, Some(body)).await, (500, stale.clone()), "{target}");
    }
}

/// What stacks always send, and the real server shows again.
#[tokio::test]
async fn privileges_and_the_default_way_of_updating_are_shown_as_posted() {
    let (fixture, _) = swarm().await;
    let privileges = json!({"CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false});
    let container = json!({"Image": "lab:1", "Privileges": privileges});
    let posted = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": container}, "EndpointSpec": {},
        "UpdateConfig": {"Parallelism": 1, "MaxFailureRatio": 0, "Order": ""}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&posted)).await.0, 201);
    let (_, shown) = send(&fixture, "GET", "/services/web", None).await;
    assert_eq!(shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Privileges"], privileges);
    let update = json!({"Parallelism": 1, "FailureAction": "pause", "MaxFailureRatio": 0, "Order": "stop-first"});
    assert_eq!((&shown["Spec"]["UpdateConfig"], &shown["Spec"]["RollbackConfig"]), (&update, &Value::Null));
}

/// Creates or updates with credentials, as `--with-registry-auth` does.
async fn send_with_auth(fixture: &ApiFixture, target: &str, body: &Value, auth: &str) -> (u16, Value) {
    let fields = [("Content-Type", "application/json"), ("X-Registry-Auth", auth)];
    let reply = fixture.client.send("POST", target, &fields, body.to_string().into()).await.unwrap();
    (reply.status.as_u16(), serde_json::from_slice(&reply.body).unwrap_or_default())
}

#[tokio::test]
async fn credentials_are_stored_kept_exchanged_and_never_shown() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE};
    let (fixture, store) = swarm().await;
    let [first, second] = ["one", "two"].map(|p| URL_SAFE.encode(json!({"username": "ann", "password": p}).to_string()));
    let mut spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "registry.example/app:1"}}});
    assert_eq!(send_with_auth(&fixture, "/services/create", &spec, &first).await.0, 201);
    let stored = || {
        let store = store.read();
        let service = store.services().next().unwrap().clone();
        let header = |auth: &Option<skep::model::PullAuth>| auth.as_ref().map(|a| a.header().to_owned());
        (service.meta.version, header(&service.pull_auth), header(&service.previous_pull_auth))
    };
    assert_eq!(stored().1.as_ref(), Some(&first));
    let none = URL_SAFE.encode("{}");
    for (step, auth, query, expected, previous) in [
        ("an update without a login keeps them", none.as_str(), "", &first, &first),
        ("a new login replaces them", second.as_str(), "&registryAuthFrom=spec", &second, &first),
        ("those before are used again", none.as_str(), "&registryAuthFrom=previous-spec", &first, &second),
        ("what cannot be read counts as none", "!!", "&registryAuthFrom=spec", &first, &first),
    ] {
        spec["Labels"] = json!({ "step": step });
        let target = format!("/services/web/update?version={}{query}", stored().0);
        let (status, reply) = send_with_auth(&fixture, &target, &spec, auth).await;
        assert_eq!(status, 200, "{step}: {reply}");
        assert_eq!((stored().1.as_ref(), stored().2.as_ref()), (Some(expected), Some(previous)), "{step}");
    }
    for target in ["/services", "/services/web", "/services/web?insertDefaults=1", "/tasks"] {
        let shown = send(&fixture, "GET", target, None).await.1.to_string();
        assert!(
            !shown.contains(&first) && !shown.contains(&second) && !shown.to_lowercase().contains("pull"),
            "{target}: {shown}"
        );
    }
    assert!(!format!("{:?}", store.read()).contains(&first), "not in a log either");
    let long = URL_SAFE.encode(json!({"username": "ann", "password": "x".repeat(20_000)}).to_string());
    spec["Name"] = json!("other");
    assert_eq!(send_with_auth(&fixture, "/services/create", &spec, &long).await.0, 400);
}

#[tokio::test]
async fn tasks_on_nodes_that_are_down_do_not_count_as_running() {
    use skep::model::NodeState;
    let (fixture, store) = swarm().await;
    let posted =
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}, "Mode": {"Replicated": {"Replicas": 3}}});
    send(&fixture, "POST", "/services/create", Some(&posted)).await;
    let service = store.read().services().next().unwrap().clone();
    let mut down = recorded_store::node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    down.status.state = NodeState::Down;
    let mut actions = vec![Action::create(down)];
    for (slot, node) in [(1, "ej9fe8a4i12wa7r06tdh2hha7"), (2, "drwr0n2tcmgjuamlus2eyenpw"), (3, "removednodeaaaaaaaaaaaaaa")] {
        actions.push(Action::create(recorded_store::running_task(&service, slot, node)));
    }
    store.write(SystemClock.now(), actions).await.unwrap();
    let (_, listed) = send(&fixture, "GET", "/v1.41/services?status=1", None).await;
    assert_eq!(listed[0]["ServiceStatus"], json!({"RunningTasks": 1, "DesiredTasks": 3, "CompletedTasks": 0}));
}
