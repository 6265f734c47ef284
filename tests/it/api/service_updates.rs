//! Updates of services as clients post them: with everything that they were shown, or with what they name alone.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use serde_json::{Value, json};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::model::autoscale::Scaling;
use skep::model::service::Replicated;
use skep::model::{Role, ServiceUpdate, UpdateState};
use skep::store::{Action, FieldUpdate, StoreHandle};

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
    let target = format!("/services/web/update?version={}&registryAuthFrom=previous-spec", stored().0);
    let (status, reply) = send_with_auth(&fixture, &target, &spec, &none).await;
    assert_eq!((status, reply["message"].as_str()), (500, Some("service does not have a previous spec")), "{reply}");
    assert_eq!(stored().1.as_ref(), Some(&first), "they are not lost");
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

/// docker-py and shell scripts post what they change and nothing else.
#[tokio::test]
async fn an_update_that_leaves_out_name_or_mode_keeps_them() {
    let (fixture, store) = swarm().await;
    let task = json!({"ContainerSpec": {"Image": "lab:1"}});
    let posted = json!({"Name": "web", "TaskTemplate": task, "Mode": {"Replicated": {"Replicas": 4}}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&posted)).await.0, 201);
    let global = json!({"Name": "all", "TaskTemplate": task, "Mode": {"Global": {}}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&global)).await.0, 201);
    for body in [
        json!({"TaskTemplate": task}),
        json!({"Name": "", "TaskTemplate": task, "Mode": {}}),
        json!({"Name": "web", "TaskTemplate": task, "Mode": {"Replicated": {}}}),
        json!({"TaskTemplate": task, "Mode": null, "Labels": {"a": "b"}}),
    ] {
        let version = store.read().service_named("web").unwrap().meta.version;
        let (status, reply) = send(&fixture, "POST", &format!("/services/web/update?version={version}"), Some(&body)).await;
        assert_eq!((status, reply), (200, json!({"Warnings": null})), "{body}");
        let service = store.read().service_named("web").unwrap().clone();
        assert_eq!((service.spec.mode.replicas(), service.spec_version), (4, 1), "{body}");
    }
    let version = store.read().service_named("all").unwrap().meta.version;
    let target = format!("/services/all/update?version={version}");
    for (mode, status, message) in [
        (
            json!({"Replicated": {"Replicas": 1}}),
            501,
            "rpc error: code = Unimplemented desc = service mode change is not allowed",
        ),
        (json!({"Replicated": {}, "Global": {}}), 400, "must specify only one service mode"),
    ] {
        let body = json!({"Name": "all", "TaskTemplate": task, "Mode": mode});
        let reply = send(&fixture, "POST", &target, Some(&body)).await;
        assert_eq!((reply.0, reply.1["message"].as_str().unwrap()), (status, message));
    }
    let renamed = json!({"Name": "others", "TaskTemplate": task});
    assert_eq!(send(&fixture, "POST", &target, Some(&renamed)).await.0, 501);
    assert_eq!(send(&fixture, "POST", &target, Some(&json!({"TaskTemplate": task}))).await.0, 200);
    assert!(store.read().service_named("all").unwrap().spec.mode.is_global());
}

/// Words and statuses of a real swarm.
#[tokio::test]
async fn modes_and_ways_of_updating_are_refused_in_swarms_words() {
    let (fixture, store) = swarm().await;
    let invalid = "rpc error: code = InvalidArgument desc = ";
    for (more, status, message) in [
        (
            json!({"UpdateConfig": {"MaxFailureRatio": 1.5}}),
            400,
            format!("{invalid}TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        ),
        (
            json!({"RollbackConfig": {"MaxFailureRatio": -1}}),
            400,
            format!("{invalid}TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"),
        ),
        (json!({"UpdateConfig": {"Delay": -1}}), 400, format!("{invalid}TaskSpec: update-delay cannot be negative")),
        (json!({"UpdateConfig": {"Monitor": -1}}), 400, format!("{invalid}TaskSpec: update-monitor cannot be negative")),
        (json!({"UpdateConfig": {"FailureAction": "foo"}}), 400, "unrecognized update failure action foo".to_owned()),
        (json!({"UpdateConfig": {"Order": "foo"}}), 400, "unrecognized update order foo".to_owned()),
        (
            json!({"UpdateConfig": {"Parallelism": -1}}),
            400,
            "invalid JSON: json: cannot unmarshal number -1 into Go struct field \
            ServiceSpec.UpdateConfig.Parallelism of type uint64"
                .to_owned(),
        ),
        (json!({"Mode": {"ReplicatedJob": {}}, "UpdateConfig": {}}), 400, format!("{invalid}Jobs may not have an update config")),
        (
            json!({"Mode": {"ReplicatedJob": {"MaxConcurrent": -1}}}),
            400,
            "invalid JSON: json: cannot unmarshal number -1 into Go struct \
            field ServiceSpec.Mode.ReplicatedJob.MaxConcurrent of type uint64"
                .to_owned(),
        ),
        (json!({"Mode": {"Replicated": {}, "Global": {}}}), 400, "must specify only one service mode".to_owned()),
    ] {
        let mut posted = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}});
        posted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (found, reply) = send(&fixture, "POST", "/services/create", Some(&posted)).await;
        assert_eq!((found, reply["message"].as_str().unwrap()), (status, message.as_str()), "{posted}");
        assert_eq!(store.read().services().count(), 0, "{posted}");
    }
    let rollback = json!({"Name": "job", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}},
        "Mode": {"GlobalJob": {}}, "RollbackConfig": {"FailureAction": "rollback"}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&rollback)).await.0, 201);
}

/// What the CLI's progress and `service ps` read of jobs.
#[tokio::test]
async fn a_job_is_shown_with_its_run_and_its_counts() {
    let (fixture, store) = swarm().await;
    let mut posted = json!({"Name": "job", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}},
        "Mode": {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 5}}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&posted)).await.0, 201);
    let (_, shown) = send(&fixture, "GET", "/services/job", None).await;
    assert_eq!(shown["JobStatus"]["JobIteration"], json!({}));
    assert!(shown["JobStatus"]["LastExecution"].is_string() && shown.get("UpdateStatus").is_none(), "{shown}");
    let service = store.read().service_named("job").unwrap().clone();
    let mut tasks = Vec::new();
    for (slot, state) in [(0, skep::model::TaskState::Complete), (1, skep::model::TaskState::Running)] {
        let mut task = recorded_store::running_task(&service, slot, "ej9fe8a4i12wa7r06tdh2hha7");
        (task.status.state, task.desired_state, task.job_iteration) = (state, skep::model::TaskState::Complete, Some(0));
        tasks.push(Action::create(task));
    }
    store.write(SystemClock.now(), tasks).await.unwrap();
    let (_, listed) = send(&fixture, "GET", "/services?status=1", None).await;
    assert_eq!(listed[0]["ServiceStatus"], json!({"RunningTasks": 1, "DesiredTasks": 2, "CompletedTasks": 1}));
    let (_, tasks) = send(&fixture, "GET", "/tasks", None).await;
    for task in tasks.as_array().unwrap() {
        assert_eq!((&task["JobIteration"], &task["DesiredState"]), (&json!({}), &json!("complete")));
        assert_eq!(task.get("Slot").is_none(), task["Status"]["State"] == "complete", "slot 0 is left out: {task}");
    }
    // Any update runs it again.
    posted["Labels"] = json!({"a": "b"});
    let version = store.read().service_named("job").unwrap().meta.version;
    assert_eq!(send(&fixture, "POST", &format!("/services/job/update?version={version}"), Some(&posted)).await.0, 200);
    let (_, shown) = send(&fixture, "GET", "/services/job", None).await;
    assert_eq!(shown["JobStatus"]["JobIteration"], json!({"Index": 1}));
    let (_, listed) = send(&fixture, "GET", "/services?status=1", None).await;
    assert_eq!(listed[0]["ServiceStatus"], json!({"RunningTasks": 0, "DesiredTasks": 2, "CompletedTasks": 0}));
    // A rollback runs it again as well, and ends.
    let target = format!("/services/job/update?version={}&rollback=previous", shown["Version"]["Index"]);
    assert_eq!(send(&fixture, "POST", &target, Some(&posted)).await.0, 200);
    let (_, shown) = send(&fixture, "GET", "/services/job", None).await;
    assert_eq!(
        (&shown["JobStatus"]["JobIteration"], &shown["UpdateStatus"]["State"]),
        (&json!({"Index": 2}), &json!("rollback_completed"))
    );
    for (filter, count) in [("replicated-job", 1), ("replicated", 0), ("global", 0)] {
        let target = format!("/services?filters=%7B%22mode%22%3A%5B%22{filter}%22%5D%7D");
        assert_eq!(send(&fixture, "GET", &target, None).await.1.as_array().unwrap().len(), count, "{filter}");
    }
}

#[tokio::test]
async fn a_global_service_counts_the_nodes_that_should_run_it() {
    use skep::model::{Availability, NodeState};
    let (fixture, store) = swarm().await;
    let posted = json!({"Name": "all", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}, "Mode": {"Global": {}}});
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&posted)).await.0, 201);
    let mut lab2 = recorded_store::node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    store.write(SystemClock.now(), vec![Action::create(lab2.clone())]).await.unwrap();
    let desired = async || send(&fixture, "GET", "/services?status=1", None).await.1[0]["ServiceStatus"]["DesiredTasks"].clone();
    assert_eq!(desired().await, 2, "none of them runs it yet");
    for (availability, state, expected) in [
        (Availability::Active, NodeState::Down, 1),
        (Availability::Drain, NodeState::Ready, 1),
        (Availability::Pause, NodeState::Ready, 1),
        (Availability::Active, NodeState::Ready, 2),
    ] {
        lab2.meta = store.read().node(&lab2.id).unwrap().meta;
        (lab2.spec.availability, lab2.status.state) = (availability, state);
        store.write(SystemClock.now(), vec![Action::update(lab2.clone())]).await.unwrap();
        assert_eq!(desired().await, expected, "{availability:?} {state:?}");
    }
}

#[tokio::test]
async fn a_change_that_replaces_no_task_leaves_a_paused_update_and_the_way_back() {
    let (fixture, store) = swarm().await;
    let spec = |image: &str, replicas: u64| json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": replicas}}});
    let update = async |query: &str, body: &Value| {
        let version = store.read().service_named("web").unwrap().meta.version;
        send(&fixture, "POST", &format!("/services/web/update?version={version}{query}"), Some(body)).await
    };
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&spec("good:1", 2))).await.0, 201);
    assert_eq!(update("", &spec("bad:1", 2)).await, (200, json!({"Warnings": null})));
    let mut paused = store.read().service_named("web").unwrap().clone();
    assert_eq!(paused.spec_version, 2);
    let message = "update paused due to failure or early termination of task x".to_owned();
    let at = Some(SystemClock.now());
    paused.update = Some(ServiceUpdate { state: UpdateState::Paused, started_at: at, message, ..paused.update.clone().unwrap() });
    store.write(SystemClock.now(), vec![Action::update(paused)]).await.unwrap();
    for body in
        [spec("bad:1", 5), spec("bad:1", 5), json!({"Labels": {"a": "b"}, "TaskTemplate": {"ContainerSpec": {"Image": "bad:1"}}})]
    {
        let (status, reply) = update("", &body).await;
        let warning = reply["Warnings"][0].as_str().unwrap_or_default();
        assert!(status == 200 && warning.contains("stays paused") && warning.contains("rollback"), "{reply}");
        let (_, shown) = send(&fixture, "GET", "/services/web", None).await;
        assert_eq!(shown["UpdateStatus"]["State"], "paused");
        assert_eq!(shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"], "good:1");
        assert_eq!(store.read().service_named("web").unwrap().spec_version, 2);
    }
    // An attempt to mend it is no spec that has worked either.
    assert_eq!(update("", &spec("worse:1", 5)).await.0, 200);
    let mut worse = store.read().service_named("web").unwrap().clone();
    assert_eq!(worse.spec_version, 3);
    let (_, shown) = send(&fixture, "GET", "/services/web", None).await;
    assert_eq!(shown["PreviousSpec"]["TaskTemplate"]["ContainerSpec"]["Image"], "good:1");
    worse.update = Some(ServiceUpdate { state: UpdateState::Paused, started_at: at, ..worse.update.clone().unwrap() });
    store.write(SystemClock.now(), vec![Action::update(worse)]).await.unwrap();
    assert_eq!(update("&rollback=previous", &spec("bad:1", 5)).await.0, 200);
    let (_, shown) = send(&fixture, "GET", "/services/web", None).await;
    let shown = &shown["UpdateStatus"];
    assert_eq!((&shown["State"], &shown["Message"]), (&json!("rollback_started"), &json!("manually requested rollback")));
    assert!(shown["StartedAt"].as_str().is_some_and(|at| at.starts_with("20")), "before the leader has looked at it: {shown}");
    let service = store.read().service_named("web").unwrap().clone();
    assert_eq!(
        (service.spec.task_template.container_spec.image.as_str(), service.spec_version),
        ("good:1", 1),
        "its tasks do again"
    );
    let update_state = service.update.as_ref().unwrap();
    assert_eq!(
        (update_state.state, update_state.message.as_str()),
        (UpdateState::RollbackStarted, "manually requested rollback")
    );
    // Back and forth: each spec has its own number again, and a new one has a new one.
    assert_eq!(update("&rollback=previous", &spec("x", 1)).await.0, 200);
    let service = store.read().service_named("web").unwrap().clone();
    assert_eq!((service.spec.task_template.container_spec.image.as_str(), service.spec_version), ("worse:1", 3));
    assert_eq!(update("", &spec("good:2", 2)).await.0, 200);
    assert_eq!(store.read().service_named("web").unwrap().spec_version, 4);
}

#[tokio::test]
async fn a_change_that_replaces_no_task_leaves_a_paused_rollback_and_advises_what_helps() {
    let (fixture, store) = swarm().await;
    let spec = |image: &str, replicas: u64| json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": replicas}}});
    let update = async |query: &str, body: &Value| {
        let version = store.read().service_named("web").unwrap().meta.version;
        send(&fixture, "POST", &format!("/services/web/update?version={version}{query}"), Some(body)).await
    };
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&spec("good:1", 2))).await.0, 201);
    let mut paused = store.read().service_named("web").unwrap().clone();
    let message = "update paused due to failure or early termination of task x".to_owned();
    let state = UpdateState::RollbackPaused;
    paused.update = Some(ServiceUpdate { state, started_at: Some(SystemClock.now()), message, ..ServiceUpdate::requested(true) });
    store.write(SystemClock.now(), vec![Action::update(paused)]).await.unwrap();
    let (status, reply) = update("", &spec("good:1", 5)).await;
    let warning = reply["Warnings"][0].as_str().unwrap_or_default();
    assert!(status == 200 && warning.contains("--force goes on with it"), "{reply}");
    assert!(!warning.contains("rollback"), "there is no previous spec: {warning}");
    let (_, shown) = send(&fixture, "GET", "/services/web", None).await;
    assert_eq!((&shown["UpdateStatus"]["State"], &shown["PreviousSpec"]), (&json!("rollback_paused"), &Value::Null));
    assert_eq!(update("&rollback=previous", &spec("good:1", 5)).await.0, 400);
}

#[tokio::test]
async fn a_rollback_keeps_what_the_service_was_scaled_to_by_its_load() {
    let (fixture, store) = swarm().await;
    let spec = |image: &str, replicas: u64| {
        json!({"Name": "web", "Labels": {"skep.autoscale": "1..10", "skep.autoscale.connections": "20"},
               "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": replicas}},
               "Networks": [{"Target": "back"}]})
    };
    let update = async |query: &str, body: &Value| {
        let version = store.read().service_named("web").unwrap().meta.version;
        send(&fixture, "POST", &format!("/services/web/update?version={version}{query}"), Some(body)).await
    };
    let network = json!({"Name": "back", "Driver": "overlay", "Attachable": true});
    assert_eq!(send(&fixture, "POST", "/networks/create", Some(&network)).await.0, 201);
    // Idle when it was updated, and under load since.
    let (status, reply) = send(&fixture, "POST", "/services/create", Some(&spec("good:1", 1))).await;
    assert_eq!(status, 201, "{reply}");
    assert_eq!(update("", &spec("bad:1", 1)).await.0, 200);
    let mut scaled = store.read().service_named("web").unwrap().clone();
    scaled.spec.mode.replicated = Some(Replicated { replicas: Some(7) });
    store.write(SystemClock.now(), vec![Action::update(scaled)]).await.unwrap();
    assert_eq!(update("&rollback=previous", &spec("bad:1", 7)).await.0, 200);
    let service = store.read().service_named("web").unwrap().clone();
    assert_eq!((service.spec.task_template.container_spec.image.as_str(), service.spec.mode.replicas()), ("good:1", 7));
}

/// `docker stack deploy` sends the number of its file each time.
#[tokio::test]
async fn a_spec_that_is_sent_again_keeps_what_the_service_was_scaled_to_by_its_load_and_another_number_does_not() {
    let (fixture, store) = swarm().await;
    let spec = |image: &str, replicas: u64| {
        json!({"Name": "web", "Labels": {"skep.autoscale": "1..10", "skep.autoscale.connections": "20"},
               "TaskTemplate": {"ContainerSpec": {"Image": image}}, "Mode": {"Replicated": {"Replicas": replicas}},
               "Networks": [{"Target": "back"}]})
    };
    let update = async |body: &Value| {
        let version = store.read().service_named("web").unwrap().meta.version;
        let (status, reply) = send(&fixture, "POST", &format!("/services/web/update?version={version}"), Some(body)).await;
        assert_eq!(status, 200, "{reply}");
        (store.read().service_named("web").unwrap().spec.mode.replicas(), reply["Warnings"].to_string())
    };
    let network = json!({"Name": "back", "Driver": "overlay"});
    assert_eq!(send(&fixture, "POST", "/networks/create", Some(&network)).await.0, 201);
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&spec("shop:1", 2))).await.0, 201);
    let by_load = async |from: u64, to: u64| {
        let id = store.read().service_named("web").unwrap().id.clone();
        let scaling = Scaling { at: SystemClock.now(), from, to, connections: 100, per_replica: 20, reason: None };
        let write = Action::Set(FieldUpdate::ServiceReplicas { id, scaling: Box::new(scaling) });
        store.write(SystemClock.now(), vec![write]).await.unwrap();
    };
    by_load(2, 4).await;
    by_load(4, 7).await;
    for image in ["shop:1", "shop:2"] {
        let (replicas, warnings) = update(&spec(image, 2)).await;
        assert_eq!(replicas, 7);
        assert!(warnings.contains("service web keeps the 7 replicas"), "{warnings}");
    }
    assert_eq!(update(&spec("shop:2", 3)).await.0, 3, "a user has another number in mind");
    by_load(3, 5).await;
    assert_eq!(update(&spec("shop:2", 3)).await.0, 5);
    assert_eq!(update(&spec("shop:2", 2)).await, (2, "null".to_owned()));
    assert_eq!(update(&spec("shop:2", 2)).await.0, 2);
}

#[tokio::test]
async fn one_digit_too_many_is_refused_before_there_are_a_billion_tasks() {
    let (fixture, store) = swarm().await;
    let spec = |mode: Value| json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}}, "Mode": mode});
    for (mode, field) in [
        (json!({"Replicated": {"Replicas": 100_001}}), "Mode.Replicated.Replicas: 100001"),
        (json!({"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": u64::MAX}}), "Mode.ReplicatedJob.TotalCompletions"),
        (json!({"ReplicatedJob": {"MaxConcurrent": 1_000_000, "TotalCompletions": 2}}), "Mode.ReplicatedJob.MaxConcurrent"),
    ] {
        let (status, reply) = send(&fixture, "POST", "/services/create", Some(&spec(mode))).await;
        let said = reply["message"].as_str().unwrap_or_default();
        assert!(status == 400 && said.contains(field) && said.ends_with("100000 are the most"), "{reply}");
    }
    assert_eq!(send(&fixture, "POST", "/services/create", Some(&spec(json!({"Replicated": {"Replicas": 3}})))).await.0, 201);
    let version = store.read().service_named("web").unwrap().meta.version;
    let scaled = spec(json!({"Replicated": {"Replicas": 1_000_000_000}}));
    let (status, reply) = send(&fixture, "POST", &format!("/services/web/update?version={version}"), Some(&scaled)).await;
    assert_eq!(status, 400, "{reply}");
    assert_eq!(store.read().service_named("web").unwrap().spec.mode.replicas(), 3);
}

/// Each request is smaller than the largest body, and a service has two specs.
#[tokio::test]
async fn a_spec_that_could_not_be_stored_beside_the_one_before_is_refused() {
    let (fixture, store) = swarm().await;
    let posted = |name: &str, text: usize, ports: usize| {
        let label = "x".repeat(text);
        let ports: Vec<Value> =
            (10_001..).take(ports).map(|port| json!({"TargetPort": port, "PublishedPort": port, "Protocol": "tcp"})).collect();
        json!({"Name": name, "Labels": {"text": label}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}},
            "EndpointSpec": {"Ports": ports, "Mode": "dnsrr"}})
    };
    let size = |value: &Value| value.to_string().len();
    let host_mode = |mut value: Value| {
        for port in value["EndpointSpec"]["Ports"].as_array_mut().unwrap() {
            port["PublishMode"] = json!("host");
        }
        value
    };
    // The largest one with few and with many ports, and one beyond.
    for (name, ports, fits, beyond) in [("text", 0, 3_990_000, 4_190_000), ("ports", 9_000, 2_400_000, 3_000_000)] {
        let (fits, beyond) = (host_mode(posted(name, fits, ports)), host_mode(posted(name, beyond, ports)));
        assert!(size(&beyond) < 4 << 20, "{} bytes: it is refused for its body", size(&beyond));
        let (status, said) = send(&fixture, "POST", "/services/create", Some(&beyond)).await;
        let said = said["message"].as_str().unwrap_or_default().to_owned();
        assert!(status == 400 && said.contains("are the most") && said.contains("configs"), "{name}: {status} {said}");
        let (status, said) = send(&fixture, "POST", "/services/create", Some(&fits)).await;
        assert_eq!(status, 201, "{name}: {said}");
        let update = async |body: &Value, rollback: &str| {
            let version = store.read().services().find(|s| s.spec.name == name).unwrap().meta.version;
            let target = format!("/services/{name}/update?version={version}&rollback={rollback}");
            send(&fixture, "POST", &target, Some(body)).await
        };
        let (status, said) = update(&beyond, "").await;
        assert!(status == 400 && said["message"].to_string().contains("are the most"), "{name}: {status} {said}");
        let mut other = fits.clone();
        other["TaskTemplate"]["ContainerSpec"]["Image"] = json!("lab:2");
        let (status, said) = update(&other, "").await;
        assert_eq!(status, 200, "{name}: {said}");
        let (status, said) = update(&other, "previous").await;
        assert_eq!(status, 200, "{name}: {said}");
        let whole = serde_json::to_vec(store.read().services().find(|s| s.spec.name == name).unwrap()).unwrap().len();
        assert!(whole < skep::manager::transaction_limits::OBJECT, "{name}: {whole}");
    }
}
