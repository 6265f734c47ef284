//! Swarms for tests, and a user's requests to them.

use super::super::lab::engine_root;
use serde_json::{Value, json};
use skep::datapath::netns;
use skep::http::{HttpReply, UnixClient};
use skep::lab::{Host, Lab, WHOAMI_IMAGE, eventually, whoami_image};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

pub const SKEP: &str = env!("CARGO_BIN_EXE_skep");

pub struct Swarm {
    pub lab: Lab,
    pub hosts: Vec<Host>,
}

/// Hosts with engines, the image and daemons, in no swarm. `settings` is the daemons' settings file.
pub async fn hosts(name: &str, count: u8, settings: &str) -> Swarm {
    hosts_of(name, count, settings, Path::new(SKEP)).await
}

/// Hosts with daemons of another build.
pub async fn hosts_of(name: &str, count: u8, settings: &str, program: &Path) -> Swarm {
    let lab = Lab::new(super::super::lab::lab_dir(name)).await.expect("lab");
    let mut hosts = Vec::new();
    for number in 1..=count {
        let mut host = lab.host(&format!("n{number}"), number).await.expect("host");
        host.start_engine(&engine_root()).await.expect("engine");
        whoami_image(&host).await.expect("image");
        std::fs::write(host.dir().join("skep.toml"), settings).expect("settings");
        start_as(&mut host, program).await;
        hosts.push(host);
    }
    Swarm { lab, hosts }
}

pub async fn start(host: &mut Host) {
    start_as(host, Path::new(SKEP)).await;
}

/// Starts a daemon of another build.
pub async fn start_as(host: &mut Host, program: &Path) {
    let file = host.dir().join("skep.toml");
    host.start_daemon(program, &["--config", file.to_str().expect("path")]).await.expect("daemon");
}

/// A swarm of `count` hosts, the first one the manager.
pub async fn swarm(name: &str, count: u8, settings: &str) -> Swarm {
    swarm_of(name, count, settings, Path::new(SKEP)).await
}

/// A swarm of another build.
pub async fn swarm_of(name: &str, count: u8, settings: &str, program: &Path) -> Swarm {
    let swarm = hosts_of(name, count, settings, program).await;
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(usize::from(count)).await;
    swarm
}

pub async fn init(host: &Host) {
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": host.address().to_string(), "Spec": {} });
    ok(&post(host, "/swarm/init", &body).await);
}

pub async fn join(host: &Host, manager: Ipv4Addr, token: &str) -> HttpReply {
    let body = json!({
        "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": host.address().to_string(),
        "RemoteAddrs": [format!("{manager}:2377")], "JoinToken": token,
    });
    post(host, "/swarm/join", &body).await
}

pub async fn worker_token(manager: &Host) -> String {
    get(manager, "/swarm").await["JoinTokens"]["Worker"].as_str().expect("token").to_owned()
}

pub async fn post(host: &Host, target: &str, body: &Value) -> HttpReply {
    UnixClient::new(host.skep_socket()).request("POST", target, Some(body)).await.expect("skep answers")
}

pub async fn get(host: &Host, target: &str) -> Value {
    UnixClient::new(host.skep_socket()).get(target).await.expect("skep answers").json().expect("success")
}

pub async fn status(host: &Host) -> Value {
    UnixClient::new(host.run_dir().join("admin.sock")).get("/status").await.expect("answers").json().expect("status")
}

/// The tasks of a service, as a manager shows them.
pub async fn tasks_on(manager: &Host, service: &str) -> Vec<Value> {
    let filter = format!("%7B%22service%22%3A%7B%22{service}%22%3Atrue%7D%7D");
    get(manager, &format!("/tasks?filters={filter}")).await.as_array().cloned().unwrap_or_default()
}

/// The daemon's whole state; `ebpf` is the state of the eBPF datapath in the kernel.
pub async fn dump(host: &Host) -> anyhow::Result<Value> {
    UnixClient::new(host.run_dir().join("admin.sock")).get("/dump").await?.json()
}

/// Waits until the ledger, which is written behind the view, has what the node serves: for tests that kill the daemon and look at
/// what it does from its ledger.
pub async fn ledger_is_written(host: &Host) {
    within(15, "the ledger to have what the node serves", || async {
        let served = status(host).await["view_revision"]["index"].as_u64();
        let ledger: Value = serde_json::from_slice(&std::fs::read(host.data_dir().join("ledger.json"))?)?;
        anyhow::ensure!(
            served.is_some() && ledger["view"]["revision"]["index"].as_u64() >= served,
            "{}",
            ledger["view"]["revision"]
        );
        Ok(())
    })
    .await;
}

/// Waits until a port has so many backends on every host: tasks that listen.
pub async fn wait_for_backends(hosts: &[Host], port: &str, count: usize) {
    for host in hosts {
        within(30, "every task to listen", || async {
            let backends = dump(host).await?["ebpf"]["ports"][port]["backends"].take();
            anyhow::ensure!(backends.as_object().is_some_and(|all| all.len() == count), "{}: {port} {backends}", host.name());
            Ok(())
        })
        .await;
    }
}

pub fn ok(reply: &HttpReply) {
    assert!(reply.status.is_success(), "{} {}", reply.status, said(reply));
}

/// The error's message.
pub fn said(reply: &HttpReply) -> String {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    body["message"].as_str().unwrap_or_default().to_owned()
}

pub async fn within<T, F: Future<Output = anyhow::Result<T>>>(seconds: u64, what: &str, condition: impl FnMut() -> F) -> T {
    eventually(what, Duration::from_secs(seconds), condition).await.unwrap_or_else(|e| panic!("{e:#}"))
}

/// One HTTP request from inside a host's network namespace: `BACKEND CLIENT`.
pub async fn ask(from: &Host, to: SocketAddr) -> anyhow::Result<String> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", from.pid()))?;
    tokio::task::spawn_blocking(move || {
        netns::run(namespace.as_fd(), || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            write!(stream, "GET / HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
            body.filter(|b| !b.is_empty()).ok_or_else(|| anyhow::anyhow!("no HTTP answer: {answer:?}"))
        })?
    })
    .await?
}

impl Swarm {
    pub async fn ready(&self, count: usize) {
        self.ready_on(0, count).await;
    }

    /// Waits until a manager sees so many ready nodes.
    pub async fn ready_on(&self, manager: usize, count: usize) {
        within(15, "ready nodes", || async {
            let nodes = get(&self.hosts[manager], "/nodes").await;
            let ready = nodes.as_array().into_iter().flatten().filter(|n| n["Status"]["State"] == "ready").count();
            anyhow::ensure!(ready == count, "{ready} of {count} are ready: {nodes:#}");
            Ok(())
        })
        .await;
    }

    /// Creates a service of the demo's image, published if there is a port. `more` has further parts of the task template.
    pub async fn service(&self, name: &str, replicas: usize, port: Option<u16>, more: Value) {
        let mut container = json!({ "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 });
        if let (Some(into), Some(from)) = (container.as_object_mut(), more["ContainerSpec"].as_object()) {
            into.extend(from.clone());
        }
        let mut template = json!({ "ContainerSpec": container });
        for key in ["Networks", "RestartPolicy"] {
            if !more[key].is_null() {
                template[key] = more[key].clone();
            }
        }
        let mut spec = json!({ "Name": name, "TaskTemplate": template, "Mode": { "Replicated": { "Replicas": replicas } } });
        if let Some(port) = port {
            spec["EndpointSpec"] = json!({ "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port }] });
        }
        ok(&post(&self.hosts[0], "/services/create", &spec).await);
    }

    /// The service's running tasks, once there are `count`.
    pub async fn running(&self, service: &str, count: usize) -> Vec<Value> {
        within(40, "running tasks", || async {
            let tasks = self.tasks(service).await;
            let running: Vec<Value> =
                tasks.iter().filter(|t| t["Status"]["State"] == "running" && t["DesiredState"] == "running").cloned().collect();
            anyhow::ensure!(running.len() == count, "{} of {count} run: {tasks:#?}", running.len());
            Ok(running)
        })
        .await
    }

    pub async fn tasks(&self, service: &str) -> Vec<Value> {
        tasks_on(&self.hosts[0], service).await
    }

    pub async fn node_id(&self, host: &Host) -> String {
        get(host, "/info").await["Swarm"]["NodeID"].as_str().expect("node id").to_owned()
    }

    pub async fn stop(self) {
        for host in self.hosts {
            host.stop().await;
        }
        self.lab.stop().await.expect("removes its files");
    }
}
