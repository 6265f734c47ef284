//! The stock docker CLI against skep's socket: pass-through in front of a real engine, swarm commands with a store.

use super::fixture::{ApiFixture, FakeNode};
use super::recorded_store;
use crate::lab::{engine_root, lab_dir};
use skep::api::control::Membership;
use skep::clock::{Clock, SystemClock};
use skep::lab::{Host, Lab, WHOAMI_IMAGE, whoami_image};
use skep::model::{Role, Task, TaskState};
use skep::store::{Action, StoreHandle};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::timeout;

/// Bound on every command.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs `docker ARGS…` with this standard input; exit code, standard output, standard error.
pub async fn run_docker(api: &ApiFixture, args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new("docker")
        .args(["-H", &format!("unix://{}", api.socket.display())])
        .args(args)
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
    let out = timeout(TIMEOUT, child.wait_with_output()).await.unwrap_or_else(|_| panic!("docker {args:?} hangs")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code(), text(&out.stdout), text(&out.stderr))
}

/// Runs `docker LINE` (split at blanks) with this standard input; exit code, standard output, standard error.
async fn docker_with_input(api: &ApiFixture, line: &str, input: &str) -> (Option<i32>, String, String) {
    run_docker(api, &line.split_whitespace().collect::<Vec<_>>(), input).await
}

/// Runs `docker LINE`, which must succeed; its standard output.
pub async fn docker(api: &ApiFixture, line: &str) -> String {
    let (code, out, err) = docker_with_input(api, line, "").await;
    assert_eq!(code, Some(0), "docker {line}: {out}{err}");
    out
}

/// Runs `docker LINE`, which must fail; its standard error.
pub async fn docker_refused(api: &ApiFixture, line: &str) -> String {
    let (code, out, err) = docker_with_input(api, line, "").await;
    assert_ne!(code, Some(0), "docker {line} succeeded: {out}");
    err
}

/// The API in front of a real engine, on a node outside a swarm.
struct EngineFixture {
    lab: Lab,
    host: Host,
    api: ApiFixture,
}

impl EngineFixture {
    async fn start(name: &str) -> Self {
        let lab = Lab::new(lab_dir(name)).await.expect("lab");
        let mut host = lab.host("api", 1).await.expect("host");
        host.start_engine(&engine_root()).await.expect("engine");
        whoami_image(&host).await.expect("image");
        let api = ApiFixture::serve(FakeNode::new(Membership::Inactive), Some(&host.engine_socket()));
        Self { lab, host, api }
    }

    async fn stop(self) {
        self.host.stop().await;
        self.lab.stop().await.expect("nothing stays");
    }
}

#[tokio::test]
async fn container_streams_pass_through() {
    let engine = EngineFixture::start("api-stream").await;
    let api = &engine.api;
    let container = |verb: &str, command: &str| format!("{verb} --network none {WHOAMI_IMAGE} {command}");

    assert_eq!(docker(api, &container("run --rm", "echo hello")).await, "hello\n");
    let (code, out, err) = docker_with_input(api, &container("run --rm -i", "cat"), "through and back\n").await;
    assert_eq!((code, out.as_str()), (Some(0), "through and back\n"), "{err}");

    docker(api, &container("run -d --name c1", "sleep 1000")).await;
    let (_, out, err) = docker_with_input(api, "exec -i c1 cat", "into exec").await;
    assert_eq!(out, "into exec", "{err}");
    let terminal = format!("docker -H unix://{} exec -it c1 echo on-a-terminal", api.socket.display());
    let out = Command::new("script").args(["-qec", &terminal, "/dev/null"]).stdin(Stdio::null()).output().await.unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("on-a-terminal"), "{out:?}");

    attach_without_upgrade(api).await;
    follow_logs(api).await;

    docker(api, "rm -f c1 c3").await;
    assert!(docker(api, "events --since 10m --until 0s").await.contains("destroy"));
    engine.stop().await;
}

/// Attaches as older clients and some SDKs do: the connection is hijacked without the header `Upgrade`.
async fn attach_without_upgrade(api: &ApiFixture) {
    let create = format!("create -i --name c4 --network none {WHOAMI_IMAGE} cat");
    docker(api, &create).await;
    let mut stream = UnixStream::connect(&api.socket).await.unwrap();
    let head = "POST /v1.41/containers/c4/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: docker\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    while !reply.ends_with(b"\r\n\r\n") {
        reply.push(timeout(TIMEOUT, stream.read_u8()).await.expect("a reply").unwrap());
    }
    assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
    docker(api, "start c4").await;
    stream.write_all(b"to the container").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(TIMEOUT, stream.read_to_end(&mut back)).await.expect("cat ends with its input").unwrap();
    assert!(back.ends_with(b"to the container"), "{}", String::from_utf8_lossy(&back));
    docker(api, "rm -f c4").await;
}

async fn follow_logs(api: &ApiFixture) {
    let script = "echo one; sleep 1; echo two";
    let args = ["run", "-d", "--name", "c3", "--network", "none", WHOAMI_IMAGE, "sh", "-c", script];
    let (code, id, err) = run_docker(api, &args, "").await;
    assert_eq!(code, Some(0), "{err}");
    assert!(id.len() > 60, "an id: {id}");
    assert_eq!(docker(api, "logs -f c3").await, "one\ntwo\n", "logs are followed to the end");
}

#[tokio::test]
async fn images_larger_than_the_body_bound_pass_through() {
    let engine = EngineFixture::start("api-image").await;
    let api = &engine.api;
    let dir = engine.host.dir().join("context");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("Dockerfile"), format!("FROM {WHOAMI_IMAGE}\nCOPY big /big\nLABEL a=b\n")).unwrap();
    std::fs::write(dir.join("big"), vec![7; 6 << 20]).unwrap();
    docker(api, &format!("build -t built:1 {}", dir.display())).await;
    assert!(docker(api, "images built").await.contains("built"));
    let saved = engine.host.dir().join("built.tar");
    docker(api, &format!("save built:1 -o {}", saved.display())).await;
    assert!(std::fs::metadata(&saved).unwrap().len() > 6 << 20, "no bound applies in either direction");
    engine.stop().await;
}

#[tokio::test]
async fn the_engines_networks_and_information_pass_through() {
    let engine = EngineFixture::start("api-net").await;
    let api = &engine.api;
    let version = docker(api, "version").await;
    assert!(version.contains("skep:") && version.contains("Engine:"), "{version}");
    let info = docker(api, "info").await;
    assert!(info.contains("Swarm: inactive") && info.contains("Network: ") && !info.contains("skep"), "{info}");

    docker(api, "network create -d bridge local1").await;
    assert!(docker(api, "network ls").await.contains("local1"));
    docker(api, "network inspect local1").await;
    let refusal = docker_refused(api, "network create -d overlay ov1").await;
    assert!(refusal.contains("This node is not a swarm manager"), "{refusal}");
    docker(api, &format!("run --rm --network local1 {WHOAMI_IMAGE} echo hi")).await;
    assert!(docker(api, "network prune -f").await.contains("local1"));
    engine.stop().await;
}

/// A minimal orchestrator: keeps one running task per slot on lab1. Tasks that are to go never stop.
async fn run_tasks(handle: StoreHandle) {
    let mut changes = handle.watch();
    loop {
        let store = changes.borrow_and_update().clone();
        let mut actions = Vec::new();
        for service in store.services() {
            for slot in 1..=service.spec.mode.replicas() {
                if !store.tasks().any(|t| t.service_id == service.id && t.slot == slot) {
                    actions.push(Action::create(recorded_store::running_task(service, slot, "ej9fe8a4i12wa7r06tdh2hha7")));
                }
            }
        }
        for task in store.tasks() {
            let wanted = store.service(&task.service_id).is_some_and(|s| task.slot <= s.spec.mode.replicas());
            if !wanted && task.desired_state != TaskState::Remove {
                actions.push(Action::update(Task { desired_state: TaskState::Remove, ..task.clone() }));
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

/// A swarm created with `docker swarm init` on lab1, with the ingress network, the worker lab2 and running tasks.
async fn new_swarm() -> ApiFixture {
    let node = FakeNode::new(Membership::Inactive);
    let api = ApiFixture::serve(node.clone(), None);
    let out = docker(&api, "swarm init --advertise-addr 10.123.0.1").await;
    assert!(out.contains("ej9fe8a4i12wa7r06tdh2hha7") && out.contains("docker swarm join --token SWMTKN-1-"), "{out}");
    let handle = node.store.lock().unwrap().clone().unwrap();
    let ingress = recorded_store::network("cznjbon83xpib6n5udkd4hhku", "ingress", Some("10.0.0.0/24"));
    let lab2 = recorded_store::node("drwr0n2tcmgjuamlus2eyenpw", "lab2", Role::Worker);
    handle.write(SystemClock.now(), vec![Action::create(ingress), Action::create(lab2)]).await.unwrap();
    tokio::spawn(run_tasks(handle));
    api
}

/// A swarm with the network net1 and the service web of three replicas on it.
async fn swarm_with_service() -> ApiFixture {
    let api = new_swarm().await;
    docker(&api, "network create -d overlay --attachable net1").await;
    let create =
        "service create --no-resolve-image --name web --replicas 3 --network net1 --publish 8080:80 --env A=b lab:1 sleep 1000";
    let created = docker(&api, create).await;
    assert!(created.contains("converged"), "{created}");
    api
}

#[tokio::test]
async fn swarm_commands_outside_a_swarm_are_refused() {
    let api = ApiFixture::serve(FakeNode::new(Membership::Inactive), None);
    assert!(docker_refused(&api, "node ls").await.contains("This node is not a swarm manager"));
}

#[tokio::test]
async fn swarm_settings_and_tokens_change_until_it_is_left() {
    let api = new_swarm().await;
    assert!(docker_refused(&api, "swarm init").await.contains("already part of a swarm"));
    let before = docker(&api, "swarm join-token -q worker").await;
    let rotated = docker(&api, "swarm join-token --rotate -q worker").await;
    assert_ne!(before, rotated);
    docker(&api, "swarm update --task-history-limit 3").await;
    assert!(docker_refused(&api, "swarm leave").await.contains("Removing the last manager"));
    docker(&api, "swarm leave --force").await;
    assert!(docker(&api, "info").await.contains("Swarm: inactive"));
}

#[tokio::test]
async fn nodes_are_listed_updated_and_removed() {
    let api = new_swarm().await;
    let nodes = docker(&api, "node ls").await;
    assert!(nodes.contains("lab1") && nodes.contains("Leader") && nodes.contains(" * "), "{nodes}");
    docker(&api, "node update --availability drain --label-add zone=a lab2").await;
    let lab2 = docker(&api, "node inspect --pretty lab2").await;
    assert!(lab2.contains("Drain") && lab2.contains("zone=a"), "{lab2}");
    assert!(docker_refused(&api, "node rm lab2").await.contains("is not down"));
    docker(&api, "node rm --force lab2").await;
}

#[tokio::test]
async fn networks_are_created_and_removed_once_unused() {
    let api = swarm_with_service().await;
    let networks = docker(&api, "network ls").await;
    assert!(networks.contains("net1") && networks.contains("overlay") && networks.contains("swarm"), "{networks}");
    assert!(docker_refused(&api, "network rm net1").await.contains("is in use by service"));
    docker(&api, "network create -d overlay shut").await;
    let refusal = docker_refused(&api, "run --rm --network shut lab:1 true").await;
    assert!(refusal.contains("network shut not manually attachable"), "{refusal}");
    docker(&api, "network rm shut").await;
    assert!(docker(&api, "service rm web").await.contains("web"));
    docker(&api, "network rm net1").await;
}

#[tokio::test]
async fn services_are_created_scaled_and_removed() {
    let api = swarm_with_service().await;
    let listed = docker(&api, "service ls").await;
    assert!(listed.contains("web") && listed.contains("3/3"), "{listed}");
    let tasks = docker(&api, "service ps web").await;
    assert!(tasks.contains("web.3") && tasks.contains("lab1") && tasks.contains("Running"), "{tasks}");
    assert!(docker(&api, "node ps lab1").await.contains("web.1"));
    let shown = docker(&api, "service inspect --pretty web").await;
    assert!(shown.contains("Replicas:\t3") && shown.contains("net1"), "{shown}");
    docker(&api, "service scale web=5").await;
    assert!(docker(&api, "service ls").await.contains("5/5"));
    docker(&api, "service update -d --replicas 2 --label-add x=y web").await;
    assert!(docker(&api, "service rm web").await.contains("web"));
}

#[tokio::test]
async fn unsupported_options_of_services_are_refused() {
    let api = swarm_with_service().await;
    let refusal = docker_refused(&api, "service create -d --no-resolve-image --secret s1 lab:1").await;
    assert!(refusal.contains("secret not found: s1"), "{refusal}");
}

/// The CLI updates every service of a stack on each deployment, also when nothing has changed.
#[tokio::test]
async fn a_stack_is_deployed_again_and_removed() {
    let api = new_swarm().await;
    let file = api.socket.with_file_name("stack.yml");
    let text = |replicas| {
        format!(
            "services:\n  web:\n    image: lab:1\n    networks: [front]\n    ports: ['8090:80']\n    environment: {{A: b}}\n    deploy:\n      \
             replicas: {replicas}\nnetworks:\n  front: {{}}\n"
        )
    };
    let deploy = format!("stack deploy -d --resolve-image never -c {} shop", file.display());
    for replicas in [1, 1, 2] {
        std::fs::write(&file, text(replicas)).unwrap();
        docker(&api, &deploy).await;
    }
    let services = docker(&api, "stack services shop").await;
    assert!(services.contains("shop_web") && services.contains("/2"), "{services}");
    assert!(docker(&api, "stack ls").await.contains("shop"));
    assert!(docker(&api, "stack ps shop").await.contains("shop_web.1"));
    docker(&api, "stack rm shop").await;
    assert!(!docker(&api, "network ls").await.contains("shop_front"));
}
