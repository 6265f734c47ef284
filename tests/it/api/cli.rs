//! The stock docker CLI against our socket: with an engine behind it for what passes through, with a store for the rest.

use super::fake::{self, FakeNode, Served};
use super::seed;
use crate::lab::lab_dir;
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::lab::{EngineRoot, Lab, WHOAMI_IMAGE, whoami_image};
use skep::model::{NodeId, Role, Task, TaskId, TaskState};
use skep::store::{Action, StoreHandle};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `docker …` (words split at blanks) and gives exit code, standard output and standard error.
async fn docker_with(served: &Served, line: &str, input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new("docker")
        .args(["-H", &format!("unix://{}", served.socket.display())])
        .args(line.split_whitespace())
        .env("DOCKER_BUILDKIT", "0")
        .env("DOCKER_CONFIG", "/nonexistent")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("docker CLI");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let out = timeout(PATIENCE, child.wait_with_output()).await.unwrap_or_else(|_| panic!("docker {line} hangs")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// The same, which must succeed; gives its standard output.
async fn docker(served: &Served, line: &str) -> String {
    let (code, out, err) = docker_with(served, line, "").await;
    assert_eq!(code, Some(0), "docker {line}: {out}{err}");
    out
}

/// The same, which must fail; gives its standard error.
async fn refused(served: &Served, line: &str) -> String {
    let (code, out, err) = docker_with(served, line, "").await;
    assert_ne!(code, Some(0), "docker {line} went through: {out}");
    err
}

#[tokio::test]
async fn what_is_the_engines_passes_through() {
    let lab = Lab::new(lab_dir("api")).await.expect("lab");
    let mut host = lab.host("api", 1).await.expect("host");
    // The same engine as the other rooms' tests: the machine's, or a newer one in a root directory.
    let root = std::env::var_os("SKEP_TEST_ENGINE_ROOT").map_or(EngineRoot::Machine, |dir| EngineRoot::Directory(dir.into()));
    host.start_engine(&root).await.expect("engine");
    whoami_image(&host).await.expect("image");
    let served = fake::serve(FakeNode::new(Membership::Inactive), Some(&host.engine_socket()));

    let version = docker(&served, "version").await;
    assert!(version.contains("skep:") && version.contains("Engine:"), "{version}");
    let info = docker(&served, "info").await;
    assert!(info.contains("Swarm: inactive") && info.contains("Network: ") && !info.contains("skep"), "{info}");
    let on = |verb: &str, rest: &str| format!("{verb} --network none {WHOAMI_IMAGE} {rest}");

    assert_eq!(docker(&served, &on("run --rm", "echo hello")).await, "hello\n");
    let (code, out, err) = docker_with(&served, &on("run --rm -i", "cat"), "through and back\n").await;
    assert_eq!((code, out.as_str()), (Some(0), "through and back\n"), "{err}");

    docker(&served, &on("run -d --name c1", "sleep 1000")).await;
    let (_, out, err) = docker_with(&served, "exec -i c1 cat", "into exec").await;
    assert_eq!(out, "into exec", "{err}");
    let terminal = format!("docker -H unix://{} exec -it c1 echo on-a-terminal", served.socket.display());
    let out = Command::new("script").args(["-qec", &terminal, "/dev/null"]).stdin(Stdio::null()).output().await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("on-a-terminal"), "{out:?}");

    attach_without_upgrade(&served).await;

    let said = sh(&served, "run -d --name c3", "echo one; sleep 1; echo two").await;
    assert!(said.len() > 60, "an id: {said}");
    assert_eq!(docker(&served, "logs -f c3").await, "one\ntwo\n", "logs are followed to the end");

    let dir = host.dir().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), format!("FROM {WHOAMI_IMAGE}\nCOPY big /big\nLABEL a=b\n")).unwrap();
    std::fs::write(dir.join("big"), vec![7; 6 << 20]).unwrap();
    docker(&served, &format!("build -t built:1 {}", dir.display())).await;
    assert!(docker(&served, "images built").await.contains("built"));
    let saved = host.dir().join("built.tar");
    docker(&served, &format!("save built:1 -o {}", saved.display())).await;
    assert!(std::fs::metadata(&saved).unwrap().len() > 6 << 20, "more than our own bound passes, both ways");

    docker(&served, "network create -d bridge local1").await;
    assert!(docker(&served, "network ls").await.contains("local1"));
    docker(&served, "network inspect local1").await;
    let nosuch = refused(&served, "network create -d overlay ov1").await;
    assert!(nosuch.contains("This node is not a swarm manager"), "{nosuch}");
    docker(&served, &format!("run --rm --network local1 {WHOAMI_IMAGE} echo hi")).await;
    assert!(docker(&served, "network prune -f").await.contains("local1"));
    docker(&served, "rm -f c1 c3").await;
    assert!(docker(&served, "events --since 10m --until 0s").await.contains("destroy"));

    host.stop().await;
    lab.stop().await.expect("everything goes");
}

/// `docker VERB IMAGE sh -c SCRIPT`.
async fn sh(served: &Served, verb: &str, script: &str) -> String {
    let out = Command::new("docker")
        .args(["-H", &format!("unix://{}", served.socket.display())])
        .args(verb.split_whitespace())
        .args(["--network", "none", WHOAMI_IMAGE, "sh", "-c", script])
        .output()
        .await
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// As older clients and some SDKs do it: no `Upgrade`, and the connection is theirs all the same.
async fn attach_without_upgrade(served: &Served) {
    let create = format!("create -i --name c4 --network none {WHOAMI_IMAGE} cat");
    docker(served, &create).await;
    let mut stream = UnixStream::connect(&served.socket).await.unwrap();
    let head = "POST /v1.41/containers/c4/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        reply.push(timeout(PATIENCE, stream.read_u8()).await.expect("a reply").unwrap());
    }
    assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
    docker(served, "start c4").await;
    stream.write_all(b"to the container").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut back)).await.expect("cat ends with its input").unwrap();
    assert!(back.ends_with(b"to the container"), "{}", String::from_utf8_lossy(&back));
    docker(served, "rm -f c4").await;
}

/// An orchestrator of three lines: every slot has a running task on lab1.
async fn run_tasks(handle: StoreHandle) {
    let mut changes = handle.watch();
    loop {
        let store = changes.borrow_and_update().clone();
        let mut actions = Vec::new();
        for service in store.services() {
            for slot in 1..=service.spec.mode.replicas() {
                if !store.tasks().any(|t| t.service_id == service.id && t.slot == slot) {
                    actions.push(Action::create(running(service, slot)));
                }
            }
        }
        for task in store.tasks() {
            let wanted = store.service(&task.service_id).is_some_and(|s| task.slot <= s.spec.mode.replicas());
            if !wanted {
                actions.push(Action::Remove(skep::store::Kind::Task, task.id.to_string()));
            }
        }
        if actions.is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        } else {
            handle.write(SystemClock.now(), actions).await.unwrap();
        }
    }
}

fn running(service: &skep::model::Service, slot: u64) -> Task {
    Task {
        id: TaskId::draw(&mut rand::rng()),
        meta: skep::model::Meta::default(),
        spec: service.spec.task_template.clone(),
        spec_version: service.spec_version,
        service_id: service.id.clone(),
        service_name: service.spec.name.clone(),
        service_labels: service.spec.labels.clone(),
        slot,
        node_id: Some(NodeId::from("ej9fe8a4i12wa7r06tdh2hha7")),
        desired_state: TaskState::Running,
        status: skep::model::TaskStatus {
            timestamp: SystemClock.now(),
            state: TaskState::Running,
            message: "started".to_owned(),
            ..Default::default()
        },
        attachments: Vec::new(),
        not_before: None,
        ports: Vec::new(),
        listens: Vec::new(),
    }
}

/// A stack of what is carried out: the CLI updates its services each time, also when nothing changed.
async fn stack(served: &Served) {
    let file = served.socket.with_file_name("stack.yml");
    let text = |replicas| {
        format!(
            "services:\n  web:\n    image: lab:1\n    networks: [front]\n    ports: ['8090:80']\n    environment: {{A: b}}\n    deploy:\n      \
             replicas: {replicas}\nnetworks:\n  front: {{}}\n"
        )
    };
    let deploy = format!("stack deploy -d --resolve-image never -c {} shop", file.display());
    for replicas in [1, 1, 2] {
        std::fs::write(&file, text(replicas)).unwrap();
        docker(served, &deploy).await;
    }
    let services = docker(served, "stack services shop").await;
    assert!(services.contains("shop_web") && services.contains("/2"), "{services}");
    assert!(docker(served, "stack ls").await.contains("shop"));
    assert!(docker(served, "stack ps shop").await.contains("shop_web.1"));
    docker(served, "stack rm shop").await;
    assert!(!docker(served, "network ls").await.contains("shop_front"));
}

#[tokio::test]
async fn the_cli_drives_a_swarm() {
    let node = FakeNode::new(Membership::Inactive);
    let served = fake::serve(node.clone(), None);
    assert!(refused(&served, "node ls").await.contains("This node is not a swarm manager"));
    let said = docker(&served, "swarm init --advertise-addr 10.123.0.1").await;
    assert!(said.contains("ej9fe8a4i12wa7r06tdh2hha7") && said.contains("docker swarm join --token SWMTKN-1-"), "{said}");
    assert!(refused(&served, "swarm init").await.contains("already part of a swarm"));
    let handle = node.store.lock().unwrap().clone().unwrap();
    let ingress = seed::network("cznjbon83xpib6n5udkd4hhku", "ingress", Some("10.0.0.0/24"));
    let lab2 = seed::node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    handle.write(SystemClock.now(), vec![Action::create(ingress), Action::create(lab2)]).await.unwrap();
    tokio::spawn(run_tasks(handle));

    let before = docker(&served, "swarm join-token -q worker").await;
    let rotated = docker(&served, "swarm join-token --rotate -q worker").await;
    assert_ne!(before, rotated);
    docker(&served, "swarm update --task-history-limit 3").await;
    let nodes = docker(&served, "node ls").await;
    assert!(nodes.contains("lab1") && nodes.contains("Leader") && nodes.contains(" * "), "{nodes}");
    docker(&served, "node update --availability drain --label-add zone=a lab2").await;
    let lab2 = docker(&served, "node inspect --pretty lab2").await;
    assert!(lab2.contains("Drain") && lab2.contains("zone=a"), "{lab2}");

    docker(&served, "network create -d overlay --attachable net1").await;
    let networks = docker(&served, "network ls").await;
    assert!(networks.contains("net1") && networks.contains("overlay") && networks.contains("swarm"), "{networks}");

    let create =
        "service create --no-resolve-image --name web --replicas 3 --network net1 --publish 8080:80 --env A=b lab:1 sleep 1000";
    let created = docker(&served, create).await;
    assert!(created.contains("converged"), "{created}");
    let listed = docker(&served, "service ls").await;
    assert!(listed.contains("web") && listed.contains("3/3"), "{listed}");
    let tasks = docker(&served, "service ps web").await;
    assert!(tasks.contains("web.3") && tasks.contains("lab1") && tasks.contains("Running"), "{tasks}");
    let shown = docker(&served, "service inspect --pretty web").await;
    assert!(shown.contains("Replicas:\t3") && shown.contains("net1"), "{shown}");
    assert!(refused(&served, "network rm net1").await.contains("is in use by service"));
    docker(&served, "service scale web=5").await;
    assert!(docker(&served, "service ls").await.contains("5/5"));
    docker(&served, "service update -d --replicas 2 --label-add x=y web").await;
    let refusal = refused(&served, "service update -d --image lab:2 --no-resolve-image web").await;
    assert!(refusal.contains("TaskTemplate.ContainerSpec.Image") && refusal.contains("rolling updates"), "{refusal}");
    let refusal = refused(&served, "service create -d --no-resolve-image --mode global lab:1").await;
    assert!(refusal.contains("Mode.Global"), "{refusal}");
    let refusal = refused(&served, "service create -d --no-resolve-image --secret s1 lab:1").await;
    assert!(refusal.contains("secret not found: s1"), "{refusal}");
    assert!(docker(&served, "node ps lab1").await.contains("web.1"));
    assert!(refused(&served, "service logs web").await.contains("not built into skep yet"));
    assert!(refused(&served, "run --rm --network net1 lab:1 true").await.contains("attachable network of the swarm"));

    stack(&served).await;

    assert!(docker(&served, "service rm web").await.contains("web"));
    docker(&served, "network rm net1").await;
    assert!(refused(&served, "node rm lab2").await.contains("is not down"));
    docker(&served, "node rm --force lab2").await;
    assert!(refused(&served, "swarm leave").await.contains("Removing the last manager"));
    docker(&served, "swarm leave --force").await;
    assert!(docker(&served, "info").await.contains("Swarm: inactive"));
}
