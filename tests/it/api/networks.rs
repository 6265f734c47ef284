//! Networks: removed at once, also under tasks that still stop; names and references over the swarm's and the engine's
//! networks together.

use super::fixture::FakeNode;
use super::recorded_store;
use super::recording_engine::RecordingEngine;
use serde_json::{Value, json};
use skep::api::control::{KnownNetwork, Membership};
use skep::clock::{Clock, SystemClock};
use skep::model::task::Attachment;
use skep::model::view::NetworkPart;
use skep::model::{NetworkId, NodeId, NodeState, Role, ServiceId, Task, TaskId, TaskSpec, TaskState, TaskStatus, fixture};
use skep::store::{Action, Kind, StoreHandle};
use std::sync::Arc;

const SWARM_ID: &str = "dbaaaaaaaaaaaaaaaaaaaaaaa";

/// A manager with these swarm networks, as (id, name).
async fn manager(networks: &[(&str, &str)]) -> (Arc<FakeNode>, StoreHandle) {
    let node = FakeNode::new(Membership::Manager(FakeNode::lab1()));
    let store = node.store.lock().unwrap().clone().unwrap();
    let create = |(id, name): &(&str, &str)| Action::create(recorded_store::network(id, name, Some("10.0.9.0/24")));
    let cluster = std::iter::once(Action::create(recorded_store::cluster()));
    store.write(SystemClock.now(), cluster.chain(networks.iter().map(create)).collect()).await.unwrap();
    (node, store)
}

/// An engine with these networks of its own, as (id, name).
fn with_local(networks: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<(u16, Value)> {
    move |line| {
        let shown = |(id, name): &(&str, &str)| json!({"Id": id, "Name": name, "Driver": "bridge", "Scope": "local"});
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["GET", "/networks"] => Some((200, networks.iter().map(shown).collect())),
            ["GET", target] if target.starts_with("/networks?") => Some((200, json!([]))),
            ["GET", target] => {
                let reference = target.trim_start_matches("/networks/");
                networks.iter().find(|(id, name)| reference == *id || reference == *name).map(|n| (200, shown(n)))
            }
            ["DELETE", target] => {
                networks.iter().any(|(id, _)| target.trim_start_matches("/networks/") == *id).then_some((204, Value::Null))
            }
            ["POST", "/networks/create"] => Some((201, json!({"Id": "5555", "Warning": ""}))),
            _ => None,
        }
    }
}

/// A running task of the service on the network.
fn task(id: &str, service: &str, network: &str) -> Task {
    Task {
        id: TaskId::from(id),
        meta: skep::model::Meta::default(),
        spec: std::sync::Arc::new(TaskSpec::default()),
        spec_version: 1,
        service_id: ServiceId::from(service),
        service_name: "web".to_owned(),
        service_labels: std::sync::Arc::default(),
        slot: 1,
        slot_node: None,
        job_iteration: None,
        cause: None,
        end: None,
        started_at: None,
        move_to: None,
        node_id: Some(NodeId::from("lab2")),
        desired_state: TaskState::Running,
        status: TaskStatus { state: TaskState::Running, ..TaskStatus::default() },
        attachments: vec![Attachment { network_id: NetworkId::from(network), address: "10.0.9.5/24".parse().unwrap() }],
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
        failures: skep::model::task::EarlierFailures::default(),
        pull_auth: None,
        generic_resources: Vec::new(),
        attached: None,
    }
}

#[tokio::test]
async fn a_network_is_removed_right_after_its_service_while_its_tasks_still_stop() {
    let (node, store) = manager(&[(SWARM_ID, "back")]).await;
    let mut spec =
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}, "Networks": [{"Target": SWARM_ID}]}});
    spec["Mode"] = json!({"Replicated": {"Replicas": 1}});
    let service = recorded_store::service("svcaaaaaaaaaaaaaaaaaaaaaa", spec.clone()).unwrap();
    // Of a node that may never come back.
    let mut lab2 = recorded_store::node("lab2", "lab2", Role::Worker);
    lab2.status.state = NodeState::Down;
    let task = Action::create(task("t1", "svcaaaaaaaaaaaaaaaaaaaaaa", SWARM_ID));
    let actions = vec![Action::create(lab2), Action::create(service), task];
    store.write(SystemClock.now(), actions).await.unwrap();
    let engine = RecordingEngine::serve(node, with_local(&[]));

    let (status, message) = engine.send("DELETE", "/networks/back", None).await;
    assert_eq!(status, 400, "{message}");
    assert!(message.as_str().unwrap().contains("in use by service"), "{message}");
    assert_eq!(engine.send("DELETE", "/services/web", None).await.0, 200);
    assert_eq!(engine.send("DELETE", "/networks/back", None).await, (204, json!("")));

    assert_eq!(engine.send("GET", "/networks", None).await.1, json!([]), "it is listed no more");
    assert_eq!(engine.send("GET", "/networks/back", None).await.0, 404);
    assert_eq!(engine.send("DELETE", &format!("/networks/{SWARM_ID}"), None).await.0, 404);
    spec["Name"] = json!("late");
    assert_eq!(engine.send("POST", "/services/create", Some(&spec)).await.0, 500, "no service can be attached to it");
    let held = store.read();
    assert!(held.network(&NetworkId::from(SWARM_ID)).is_some_and(|n| n.removing), "the task still has its address");
    let shown = engine.send("GET", "/tasks/t1", None).await.1;
    assert_eq!(shown["NetworksAttachments"][0]["Addresses"][0], "10.0.9.5/24", "{shown}");

    let again = json!({"Name": "back", "Driver": "overlay"});
    let (status, created) = engine.send("POST", "/networks/create", Some(&again)).await;
    assert_eq!(status, 201, "its name is free: {created}");
    let listed = engine.send("GET", "/networks", None).await.1;
    assert_eq!(listed[0]["Id"], created["Id"], "{listed}");
    assert_eq!(engine.send("POST", "/networks/prune", None).await.1, json!({"NetworksDeleted": ["back"]}), "the new one, once");
}

/// Managers of the release before would show it again, and give its name to none.
#[tokio::test]
async fn below_level_2_a_network_stays_until_its_last_container_has_ended() {
    let (node, store) = manager(&[(SWARM_ID, "back")]).await;
    let cluster = skep::model::Cluster { feature_level: 1, ..store.read().cluster().unwrap().clone() };
    let stopping = Task { desired_state: TaskState::Remove, ..task("t1", "gone", SWARM_ID) };
    store.write(SystemClock.now(), vec![Action::update(cluster), Action::create(stopping)]).await.unwrap();
    let engine = RecordingEngine::serve(node, with_local(&[]));
    let (status, message) = engine.send("DELETE", "/networks/back", None).await;
    assert_eq!((status, message.as_str().unwrap().ends_with("in use by task t1")), (400, true), "{message}");
    store.write(SystemClock.now(), vec![Action::Remove(Kind::Task, "t1".to_owned())]).await.unwrap();
    assert_eq!(engine.send("DELETE", "/networks/back", None).await.0, 204);
    assert_eq!(store.read().network(&NetworkId::from(SWARM_ID)), None);
}

#[tokio::test]
async fn a_network_without_addresses_is_removed_whole() {
    let (node, store) = manager(&[(SWARM_ID, "back")]).await;
    let engine = RecordingEngine::serve(node, with_local(&[]));
    assert_eq!(engine.send("DELETE", "/networks/back", None).await.0, 204);
    assert_eq!(store.read().network(&NetworkId::from(SWARM_ID)), None);
}

#[tokio::test]
async fn a_task_that_is_to_run_keeps_its_network_although_its_service_has_left_it() {
    let (node, store) = manager(&[(SWARM_ID, "back")]).await;
    let service = recorded_store::service("svcaaaaaaaaaaaaaaaaaaaaaa", json!({"Name": "web"})).unwrap();
    let running = task("t1", "svcaaaaaaaaaaaaaaaaaaaaaa", SWARM_ID);
    store.write(SystemClock.now(), vec![Action::create(service), Action::create(running.clone())]).await.unwrap();
    let engine = RecordingEngine::serve(node, with_local(&[]));
    let (status, message) = engine.send("DELETE", "/networks/back", None).await;
    assert_eq!((status, message.as_str().unwrap().ends_with("in use by task t1")), (400, true), "{message}");
    let version = Kind::Task.stored_meta(&store.read(), "t1").unwrap();
    let stopping = Task { desired_state: TaskState::Shutdown, meta: version, ..running };
    store.write(SystemClock.now(), vec![Action::update(stopping)]).await.unwrap();
    assert_eq!(engine.send("DELETE", "/networks/back", None).await.0, 204);
}

/// The id of the swarm's network begins with the name of the engine's.
#[tokio::test]
async fn the_engines_network_of_that_name_is_removed_and_not_the_swarms_of_such_an_id() {
    let (node, store) = manager(&[(SWARM_ID, "front")]).await;
    let engine = RecordingEngine::serve(node, with_local(&[("0dfe", "db")]));
    assert_eq!(engine.send("GET", "/networks/db", None).await.1["Driver"], "bridge");
    assert_eq!(engine.send("DELETE", "/networks/db", None).await.0, 204);
    assert_eq!(engine.asked("DELETE"), [("DELETE /networks/0dfe".to_owned(), Value::Null)]);
    assert!(store.read().network(&NetworkId::from(SWARM_ID)).is_some());
    assert_eq!(engine.send("DELETE", "/networks/dba", None).await.0, 204, "a prefix of one id only");
    assert_eq!(store.read().network(&NetworkId::from(SWARM_ID)), None);
}

#[tokio::test]
async fn a_name_that_two_networks_have_removes_neither() {
    let (node, store) = manager(&[(SWARM_ID, "both")]).await;
    let engine = RecordingEngine::serve(node, with_local(&[("0dfe", "both")]));
    for (method, target) in [("DELETE", "/networks/both"), ("GET", "/networks/both"), ("POST", "/networks/both/connect")] {
        let (status, message) = engine.send(method, target, Some(&json!({"Container": "c1"}))).await;
        assert_eq!((status, message.as_str().unwrap().contains("ambiguous")), (400, true), "{method} {message}");
    }
    assert!(engine.asked("DELETE").is_empty() && store.read().network(&NetworkId::from(SWARM_ID)).is_some());
}

#[tokio::test]
async fn a_name_is_taken_whichever_kind_of_network_has_it() {
    let (node, _) = manager(&[(SWARM_ID, "front")]).await;
    let engine = RecordingEngine::serve(node, with_local(&[("0dfe", "lan")]));
    for (name, driver) in [("front", "bridge"), ("front", ""), ("lan", "overlay"), ("front", "overlay")] {
        let (status, message) = engine.send("POST", "/networks/create", Some(&json!({"Name": name, "Driver": driver}))).await;
        assert_eq!((status, message), (409, json!(format!("network with name {name} already exists"))), "{driver}");
    }
    assert!(engine.asked("POST /networks/create").is_empty());
    for (name, driver) in [("lan2", "overlay"), ("front2", "bridge")] {
        assert_eq!(engine.send("POST", "/networks/create", Some(&json!({"Name": name, "Driver": driver}))).await.0, 201);
    }
}

#[tokio::test]
async fn options_without_an_effect_are_taken_with_a_warning_and_ipv4_cannot_be_left_out() {
    let (node, _) = manager(&[]).await;
    let engine = RecordingEngine::serve(node, with_local(&[]));
    let option = "com.docker.network.driver.overlay.vxlanid_list";
    let posted = json!({"Name": "front", "Driver": "overlay", "Options": { option: "4097" }});
    let (status, created) = engine.send("POST", "/networks/create", Some(&posted)).await;
    assert!(status == 201 && created["Warning"].as_str().unwrap().contains(option), "{created}");
    assert_eq!(engine.send("GET", "/networks/front", None).await.1["Options"][option], "4097");
    let posted = json!({"Name": "six", "Driver": "overlay", "EnableIPv4": false, "EnableIPv6": true});
    let refused = engine.send("POST", "/networks/create", Some(&posted)).await;
    assert_eq!(refused, (400, json!("IPv4 cannot be disabled in a Swarm scoped network")));
}

/// Clients that force a removal disconnect everything first.
#[tokio::test]
async fn a_container_of_a_task_is_disconnected_on_the_engine() {
    let (node, _) = manager(&[(SWARM_ID, "front")]).await;
    let engine = RecordingEngine::serve(node, |line| {
        let part = json!({"Id": "77aa", "Name": "front", "Driver": "skep", "Options": {"skep.network": SWARM_ID}});
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["GET", target] if target.starts_with("/networks/77aa") => Some((200, part)),
            ["GET", target] if target.starts_with("/networks") => Some((200, json!([part]))),
            ["POST", "/networks/77aa/disconnect"] => Some((200, Value::Null)),
            _ => None,
        }
    });
    let posted = json!({"Container": "web.1.t1", "Force": true});
    assert_eq!(engine.send("POST", "/networks/front/disconnect", Some(&posted)).await.0, 200);
    assert_eq!(engine.asked("POST"), [("POST /networks/77aa/disconnect".to_owned(), posted)]);
}

/// A manager's swarm network, attachable.
async fn attachable() -> Arc<FakeNode> {
    let (node, store) = manager(&[(SWARM_ID, "back"), ("shutaaaaaaaaaaaaaaaaaaaaa", "shut")]).await;
    let mut back = store.read().network(&NetworkId::from(SWARM_ID)).unwrap().clone();
    back.spec.attachable = true;
    store.write(SystemClock.now(), vec![Action::update(back)]).await.unwrap();
    node
}

#[tokio::test]
async fn a_plain_container_is_created_and_connected_on_a_network_that_is_prepared_for_it() {
    let node = attachable().await;
    let engine = RecordingEngine::serve(node.clone(), |line| match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["GET", "/networks"] => Some((200, json!([{"Id": "0dfe", "Name": "lan", "Driver": "bridge"}]))),
        ["POST", "/containers/create"] => Some((201, json!({"Id": "c1", "Warnings": []}))),
        ["POST", "/networks/back/connect" | "/networks/lan/connect"] => Some((200, Value::Null)),
        _ => None,
    });
    let endpoint = json!({"IPAMConfig": {"IPv4Address": "10.0.9.7"}, "Aliases": ["db"]});
    let posted = json!({
        "Image": "x", "HostConfig": {"NetworkMode": SWARM_ID}, "NetworkingConfig": {"EndpointsConfig": {SWARM_ID: endpoint}},
    });
    assert_eq!(engine.send("POST", "/containers/create", Some(&posted)).await.0, 201);
    let sent = engine.asked("POST /containers/create").pop().unwrap().1;
    assert_eq!(
        sent["HostConfig"],
        json!({"NetworkMode": "back", "Dns": ["10.66.0.1", "192.0.2.53"]}),
        "by the engine's name of it"
    );
    assert_eq!(sent["NetworkingConfig"]["EndpointsConfig"], json!({"back": endpoint}));
    assert_eq!(node.prepared.lock().unwrap().pop(), Some((SWARM_ID.to_owned(), "10.0.9.7".parse().ok())));

    let posted = json!({"Container": "c2", "EndpointConfig": {"Aliases": []}});
    assert_eq!(engine.send("POST", "/networks/back/connect", Some(&posted)).await.0, 200);
    assert_eq!(node.prepared.lock().unwrap().pop(), Some((SWARM_ID.to_owned(), None)));
    // The engine's own networks are not the swarm's business.
    assert_eq!(engine.send("POST", "/networks/lan/connect", Some(&posted)).await.0, 200);
    let plain = json!({"Image": "x", "HostConfig": {"NetworkMode": "lan"}});
    assert_eq!(engine.send("POST", "/containers/create", Some(&plain)).await.0, 201);
    assert_eq!(engine.asked("POST /containers/create").pop().unwrap().1, plain, "unchanged");
    assert!(node.prepared.lock().unwrap().is_empty());
}

/// Copying an image's files into a volume, or another driver, may take longer than what skep itself asks for.
#[tokio::test]
async fn what_the_engine_creates_or_connects_may_take_longer_than_what_skep_asks_for_itself() {
    let engine = RecordingEngine::serve(attachable().await, |line| match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["GET", "/networks"] => Some((200, json!([{"Id": "0dfe", "Name": "lan", "Driver": "bridge"}]))),
        ["POST", "/containers/create"] => Some((201, json!({"Id": "c1", "Warnings": []}))),
        ["POST", "/networks/back/connect" | "/networks/lan/connect" | "/networks/create"] => Some((201, json!({"Id": "5555"}))),
        _ => None,
    });
    let container = |network: &str| json!({"Image": "x", "HostConfig": {"NetworkMode": network}});
    let connect = json!({"Container": "c2", "EndpointConfig": {}});
    for (target, body) in [
        ("/containers/create", container("back")),
        ("/containers/create", container("lan")),
        ("/networks/back/connect", connect.clone()),
        ("/networks/lan/connect", connect),
        ("/networks/create", json!({"Name": "plain", "Driver": "bridge"})),
    ] {
        let line = format!("POST {target}");
        let before = engine.asked(&line).len();
        // What skep asks before is answered.
        let asked = async {
            while engine.asked(&line).len() == before {
                tokio::task::yield_now().await;
            }
            tokio::time::pause();
            tokio::time::advance(std::time::Duration::from_hours(1)).await;
            engine.holds.send_replace(false);
            tokio::time::resume();
        };
        engine.holds.send_replace(true);
        let posts = engine.send("POST", target, Some(&body));
        let ((status, reply), ()) = tokio::join!(posts, asked);
        assert_eq!(status, 201, "{target} {body}: {reply}");
    }
}

#[tokio::test]
async fn what_is_not_attachable_or_has_no_such_address_is_refused_before_the_engine_is_asked() {
    let node = attachable().await;
    let engine = RecordingEngine::serve(node.clone(), with_local(&[]));
    let words =
        "Could not attach to network shut: rpc error: code = PermissionDenied desc = network shut not manually attachable";
    let posted = json!({"Container": "c1", "EndpointConfig": {}});
    assert_eq!(engine.send("POST", "/networks/shut/connect", Some(&posted)).await, (500, json!(words)));
    let posted = json!({"Image": "x", "HostConfig": {"NetworkMode": "shut"}});
    let (status, message) = engine.send("POST", "/containers/create", Some(&posted)).await;
    assert_eq!((status, message.as_str().unwrap().ends_with(words)), (500, true), "{message}");
    let bad = json!({"Container": "c1", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.0.9"}}});
    assert_eq!(engine.send("POST", "/networks/back/connect", Some(&bad)).await.0, 400);
    assert!(engine.asked("POST").is_empty() && node.prepared.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_worker_shows_its_networks_as_a_manager_does() {
    let part = |id: &str, name: &str| {
        json!({"Id": format!("{id:0>64}"), "Name": name, "Driver": "skep", "Scope": "local", "Attachable": false, "Labels": {},
            "Options": {"skep.network": id, "mtu": "1420"}, "IPAM": {"Driver": "skep", "Config": [{"Subnet": "10.0.9.0/24"}]}})
    };
    let node = FakeNode::new(Membership::Worker(FakeNode::lab2()));
    let known = |name: &str, change: &dyn Fn(&mut NetworkPart)| {
        let mut part = fixture::network_part(name, "10.0.9.0/24".parse().unwrap(), Vec::new());
        change(&mut part);
        KnownNetwork { part, peers: [(NodeId::from("drwr0n2tcmgjuamlus2eyenpw"), Some([192, 0, 2, 7].into()))].into() }
    };
    let back = known("back", &|part| {
        part.attachable = true;
        part.labels.insert("team".to_owned(), "a".to_owned());
        part.options.insert("com.docker.network.driver.mtu".to_owned(), "1300".to_owned());
    });
    let edge = known("edge", &|part| part.ingress = true);
    *node.networks.lock().unwrap() = [(NetworkId::from("back1"), back), (NetworkId::from("edge1"), edge)].into();
    let parts = json!([part("back1", "back"), part("edge1", "edge"), part("gone1", "gone")]);
    let engine = RecordingEngine::serve(node, move |line| line.starts_with("GET /networks").then(|| (200, parts.clone())));
    let (_, list) = engine.send("GET", "/networks", None).await;
    let of = |name: &str| list.as_array().unwrap().iter().find(|n| n["Name"] == name).cloned().unwrap();
    let (back, edge, gone) = (of("back"), of("edge"), of("gone"));
    assert_eq!((&back["Attachable"], &back["Ingress"], &back["Labels"]), (&json!(true), &json!(false), &json!({"team": "a"})));
    assert_eq!(back["Options"], json!({"com.docker.network.driver.mtu": "1300"}));
    assert_eq!(back["Peers"], json!([{"Name": "drwr0n2tcmgj", "IP": "192.0.2.7"}]));
    assert_eq!((&edge["Ingress"], &edge["Attachable"]), (&json!(true), &json!(false)), "by what it is, not by its name");
    assert_eq!((&gone["Ingress"], &gone["Labels"]), (&json!(false), &json!({})), "the view has it no more");
    for (filters, names) in [
        (r#"{"type":["builtin"]}"#, vec!["edge"]),
        (r#"{"label":["team=a"]}"#, vec!["back"]),
        (r#"{"name":["^back$"]}"#, vec!["back"]),
        (r#"{"name":["^ac"]}"#, vec![]),
        (r#"{"name":["back|edge"],"scope":["swarm"]}"#, vec!["back", "edge"]),
    ] {
        let target = format!(
            "/networks?filters={}",
            filters.replace('"', "%22").replace('{', "%7B").replace('}', "%7D").replace('^', "%5E").replace('|', "%7C")
        );
        let (_, list) = engine.send("GET", &target, None).await;
        let found: Vec<&str> = list.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
        assert_eq!(found, names, "{filters}");
    }
}

#[tokio::test]
async fn a_filter_of_networks_is_a_regular_expression() {
    let (node, _) = manager(&[(SWARM_ID, "back"), ("eeeaaaaaaaaaaaaaaaaaaaaaa", "back2")]).await;
    let engine = RecordingEngine::serve(node, with_local(&[]));
    for (filter, names) in [
        ("%22name%22:[%22%5Eback$%22]", vec!["back"]),
        ("%22name%22:[%22back%22]", vec!["back", "back2"]),
        ("%22name%22:[%22k2%7Cnone%22]", vec!["back2"]),
        ("%22name%22:[%22%5Eack%22]", vec![]),
        ("%22id%22:[%22%5Edba%22]", vec!["back"]),
        ("%22name%22:[%22back[%22]", vec![]),
    ] {
        let (status, list) = engine.send("GET", &format!("/networks?filters=%7B{filter}%7D"), None).await;
        let found: Vec<&str> = list.as_array().unwrap().iter().map(|n| n["Name"].as_str().unwrap()).collect();
        assert_eq!((status, found), (200, names), "{filter}");
    }
}

#[tokio::test]
async fn on_a_worker_the_name_of_a_network_is_more_than_the_beginning_of_a_local_ones_id() {
    let node = FakeNode::new(Membership::Worker(FakeNode::lab2()));
    let engine = RecordingEngine::serve(node.clone(), with_local(&[("att1beef", "lan"), ("cafe0000", "other")]));
    for (reference, sent) in [("att1", "att1"), ("lan", "lan"), ("cafe", "cafe")] {
        let posted = json!({"Image": "x", "HostConfig": {"NetworkMode": reference}});
        engine.send("POST", "/containers/create", Some(&posted)).await;
        let (_, forwarded) = engine.asked("POST /containers/create").pop().unwrap();
        assert_eq!(forwarded["HostConfig"]["NetworkMode"], sent);
        assert_eq!(forwarded["HostConfig"]["Dns"].is_null(), reference != "att1", "{reference}: {forwarded}");
    }
}
