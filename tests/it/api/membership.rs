//! Init, join and leave as clients post them.

use super::fixture::{ApiFixture, FakeNode};
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::{ClusterSpec, Role, Timestamp};
use skep::store::Action;
use std::time::Duration;

async fn post(fixture: &ApiFixture, target: &str, body: &Value) -> (u16, Value) {
    let reply = fixture.client.request("POST", target, Some(body)).await.unwrap();
    let value: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    (reply.status.as_u16(), if value["message"].is_string() { value["message"].clone() } else { value })
}

/// Ansible posts it whenever it is to force something.
#[tokio::test]
async fn a_forced_new_cluster_keeps_the_cluster_of_its_only_manager_and_is_a_new_one_outside() {
    let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1", "ForceNewCluster": true});
    let outside = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(outside.clone(), None);
    let id = json!(FakeNode::lab1().node_id);
    assert_eq!(post(&fixture, "/swarm/init", &body).await, (200, id.clone()));
    outside.last_init.lock().unwrap().take();
    let before = outside.store.lock().unwrap().as_ref().unwrap().read();
    assert_eq!(post(&fixture, "/swarm/init", &body).await, (200, id), "inside, the same node");
    assert!(outside.last_init.lock().unwrap().is_none(), "nothing is created");
    assert_eq!(*outside.store.lock().unwrap().as_ref().unwrap().read(), *before);

    let several = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = several.store.lock().unwrap().clone().unwrap();
    let managers = ["ej9fe8a4i12wa7r06tdh2hha7", "ymrqj25p8la8xztehs0leksm4"];
    let create = |id: &str| Action::create(super::recorded_store::node(id, "lab1", Role::Manager));
    store.write(SystemClock.now(), managers.map(create).to_vec()).await.unwrap();
    let fixture = ApiFixture::serve(several.clone(), None);
    assert_eq!(post(&fixture, "/swarm/init", &body).await, (200, json!(FakeNode::lab1().node_id)));
    assert_eq!(several.new_cluster.lock().unwrap().take().as_deref(), Some("10.123.0.1"), "with others that may be lost");
    let pending = Membership::Pending { node_addr: None, remotes: Vec::new(), error: "damaged".to_owned() };
    for node in [FakeNode::new(pending), FakeNode::new(Membership::Worker(FakeNode::lab2()))] {
        let (status, message) = post(&ApiFixture::serve(node, None), "/swarm/init", &body).await;
        assert!(status == 503 && !message.to_string().contains("leave"), "{status} {message}");
    }
}

#[tokio::test]
async fn an_address_of_no_host_is_refused_and_every_form_of_a_managers_address_is_understood() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    for data_path in ["0.0.0.0", "0.0.0.0:2000", "::", "10.123.0.1:2000", "eth0:2000", "[2001:db8::1]:4789"] {
        let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "", "DataPathAddr": data_path});
        let (status, message) = post(&fixture, "/swarm/init", &body).await;
        assert_eq!(status, 400, "{data_path}: {message}");
        assert!(message.as_str().unwrap().contains("data path address must be a non-zero IP address"), "{message}");
    }
    let join = |addresses: Value| json!({"ListenAddr": "", "RemoteAddrs": addresses, "JoinToken": "SWMTKN-1-a-b"});
    let refused = post(&fixture, "/swarm/join", &join(json!([""]))).await;
    assert_eq!(refused, (400, json!("invalid remoteAddr \"\": invalid empty address")));
    assert_eq!(post(&fixture, "/swarm/join", &join(json!(["[2001:db8::1]", "lab1"]))).await.0, 200);
    let joined = node.last_join.lock().unwrap().take().unwrap();
    assert_eq!(joined.remote_addrs, ["[2001:db8::1]:2377", "lab1:2377"]);
}

#[tokio::test]
async fn a_history_limit_of_zero_is_kept_at_init() {
    let node = FakeNode::new(Membership::Inactive);
    let fixture = ApiFixture::serve(node.clone(), None);
    let spec = json!({"Orchestration": {"TaskHistoryRetentionLimit": 0}, "Raft": {}, "Dispatcher": {}, "Labels": null});
    let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "10.123.0.1", "Spec": spec});
    assert_eq!(post(&fixture, "/swarm/init", &body).await.0, 200);
    let spec = node.last_init.lock().unwrap().take().unwrap().spec;
    assert_eq!(spec.orchestration.task_history_retention_limit, Some(0));
}

/// Tasks may take as long to stop as their grace period; the node is in no swarm before.
#[tokio::test]
async fn a_leave_answers_when_the_membership_has_ended_and_on_request_when_everything_is_taken_down() {
    let bound = Duration::from_secs(30);
    let node = FakeNode::new(Membership::Worker(FakeNode::lab2()));
    node.taken_down.forget_permits(1);
    let fixture = ApiFixture::serve(node.clone(), None);
    let left = tokio::time::timeout(bound, post(&fixture, "/swarm/leave", &json!({}))).await;
    assert_eq!(left.expect("an answer while tasks stop").0, 200);

    *node.membership.lock().unwrap() = Membership::Worker(FakeNode::lab2());
    let body = json!({});
    let waiting = post(&fixture, "/swarm/leave?wait=1", &body);
    tokio::pin!(waiting);
    tokio::select! {
        answer = &mut waiting => panic!("answered before everything was taken down: {answer:?}"),
        () = async { while *node.membership.lock().unwrap() != Membership::Inactive { tokio::task::yield_now().await } } => {}
    }
    node.taken_down.add_permits(2);
    assert_eq!(tokio::time::timeout(bound, waiting).await.expect("an answer").0, 200);
}

/// Scripts and Ansible set these: they are kept and shown, at init and later.
#[tokio::test]
async fn settings_of_raft_and_dispatcher_are_kept_and_shown() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    store.write(SystemClock.now(), vec![Action::create(super::recorded_store::cluster())]).await.unwrap();
    let fixture = ApiFixture::serve(node, None);
    let target = || format!("/swarm/update?version={}", store.read().cluster().unwrap().meta.version);
    let wanted = json!({
        "Name": "default", "Labels": {"a": "b"}, "Dispatcher": {"HeartbeatPeriod": 10_000_000_000_u64},
        "Raft": {"SnapshotInterval": 5000, "KeepOldSnapshots": 2, "LogEntriesForSlowFollowers": 9, "ElectionTick": 3, "HeartbeatTick": 2},
    });
    let (status, message) = post(&fixture, &target(), &wanted).await;
    assert_eq!(status, 200, "{message}");
    let shown: Value = fixture.client.get("/swarm").await.unwrap().json().unwrap();
    for key in ["Dispatcher", "Raft"] {
        assert_eq!(shown["Spec"][key], wanted[key]);
    }
    let spec = store.read().cluster().unwrap().spec.clone();
    assert_eq!(spec.snapshot_every(), Some(5000));
    assert!((spec.patience() - 2.0).abs() < 1e-9, "the node-down bound is twice as long");
    assert_eq!(post(&fixture, &target(), &shown["Spec"]).await.0, 200, "posted back");
    for (period, status) in [(-1, 400), (0, 200)] {
        let posted = json!({"Name": "default", "Dispatcher": {"HeartbeatPeriod": period}});
        assert_eq!(post(&fixture, &target(), &posted).await.0, status);
    }
    // As Ansible posts it: all that the playbook does not name has its default, and zero is one too.
    for raft in [json!({}), json!({ "SnapshotInterval": 0 })] {
        assert_eq!(post(&fixture, &target(), &json!({"Name": "default", "Labels": {}, "Raft": raft})).await.0, 200);
        let spec = store.read().cluster().unwrap().spec.clone();
        assert_eq!((spec.raft.snapshot_interval, spec.snapshot_every()), (Some(10_000), None), "that of the daemon's settings");
        assert_eq!(spec, ClusterSpec::default());
    }
}

/// Ansible and the CLI post both at once: what is refused must not leave half of it.
#[tokio::test]
async fn a_rotation_and_the_spec_beside_it_are_written_together_or_not_at_all() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    store.write(SystemClock.now(), vec![Action::create(super::recorded_store::cluster())]).await.unwrap();
    let fixture = ApiFixture::serve(node, None);
    let cluster = || store.read().cluster().unwrap().clone();
    let token = |role| cluster().tokens.of(role).to_owned();
    let before = cluster();
    let wanted = json!({"Name": "default", "Labels": {"rotated": "yes"}, "Raft": {}});
    let target = |version: u64| format!("/swarm/update?version={version}&rotateWorkerToken=1");
    let version = before.meta.version;

    let (status, message) = post(&fixture, &target(version + 1), &wanted).await;
    assert!(status == 500 && message.as_str().unwrap().contains("update out of sequence"), "{status} {message}");
    assert_eq!(cluster(), before, "neither is changed");

    let index = store.read().index();
    assert_eq!(post(&fixture, &target(version), &wanted).await.0, 200);
    assert_eq!((cluster().meta.version, store.read().index()), (index + 1, index + 1), "one entry");
    assert_eq!(cluster().spec.labels, [("rotated".to_owned(), "yes".to_owned())].into());
    assert_ne!(token(Role::Worker), before.tokens.of(Role::Worker));
    assert_eq!(token(Role::Manager), before.tokens.of(Role::Manager), "the other one stays");

    // As two managers that post at once: the second one is not applied.
    let now = token(Role::Worker);
    assert_eq!(post(&fixture, &target(version), &wanted).await.0, 500);
    assert_eq!(token(Role::Worker), now);
}

#[tokio::test]
async fn what_a_manager_reads_that_knows_no_leader_is_marked_as_old() {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let fixture = ApiFixture::serve(node.clone(), None);
    let stale = async || {
        let reply = fixture.client.get("/nodes").await.unwrap();
        assert_eq!(reply.status.as_u16(), 200);
        reply.headers.get("skep-stale-since").map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(stale().await, None);
    *node.leaderless.lock().unwrap() = Some(SystemClock.now());
    assert_eq!(stale().await, None, "an election takes a moment");
    *node.leaderless.lock().unwrap() = Some(Timestamp(1_700_000_000_000_000_000));
    assert!(stale().await.is_some_and(|since| since.starts_with("2023-11-14T22:13:20")));
    let info: Value = fixture.client.get("/info").await.unwrap().json().unwrap();
    let text = "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. \
                Make sure more than half of the managers are online.";
    assert_eq!(info["Swarm"]["Error"], text);
}
