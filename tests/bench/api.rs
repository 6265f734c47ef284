//! The Docker API: what passes through to the engine beside the engine's own socket, and the swarm part beside Docker Swarm's on the
//! same machine, in turn.

use crate::process::cpu;
use crate::report::{Report, median, nanos, spread};
use crate::swarm::kit::{get, hosts, init, ok, post};
use serde_json::json;
use skep::http::UnixClient;
use skep::lab::{Host, WHOAMI_IMAGE};
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// Bytes that a container's file has, and a log.
const SIZE: usize = 256 << 20;
const LINES: usize = 200_000;
const SERVICES: usize = 500;
/// Clients that ask all the time, and how often each.
const CLIENTS: usize = 100;
const EVERY: Duration = Duration::from_millis(200);
const POLLED: Duration = Duration::from_secs(5);

/// Both parts, or only that of the swarm.
pub async fn run(report: &mut Report, swarm_only: bool) {
    // The second host's engine is in a swarm of its own.
    let swarm = hosts("bench-api", 2, "").await;
    let (skep, docker) = (&swarm.hosts[0], &swarm.hosts[1]);
    init(skep).await;
    let engine = UnixClient::new(docker.engine_socket());
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": docker.address().to_string(), "Spec": {} });
    engine.request("POST", "/swarm/init", Some(&body)).await.unwrap().ok().unwrap();
    if !swarm_only {
        pass_through(report, skep).await;
    }
    swarm_part(report, skep, docker).await;
    swarm.stop().await;
}

/// Bytes per second of a reply.
async fn rate(client: &UnixClient, target: &str) -> f64 {
    let begin = Instant::now();
    let mut reply = client.stream(target).await.unwrap();
    assert!(reply.status.is_success(), "{target}: {}", reply.status);
    let mut bytes = 0;
    while let Some(chunk) = reply.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    assert!(bytes >= LINES, "{target}: {bytes} bytes");
    bytes as f64 / begin.elapsed().as_secs_f64()
}

async fn pass_through(report: &mut Report, host: &Host) {
    report.section(
        "What passes through the API",
        &format!(
            "A file of {} MiB out of a container (`docker cp`), and a service's log of {LINES} lines, {ROUNDS} rounds in turn.",
            SIZE >> 20
        ),
        &["", "skep ÷ engine's own socket", "goal", "engine, MB/s", "skep, MB/s"],
    );
    let script = format!(
        "head -c {SIZE} /dev/zero > /tmp/big; i=0; while [ $i -lt {LINES} ]; do echo line $i of a log; i=$((i+1)); done; sleep 1000"
    );
    let container = json!({ "Image": WHOAMI_IMAGE, "Command": ["sh", "-c", script], "StopGracePeriod": 100_000_000 });
    let spec = json!({ "Name": "big", "TaskTemplate": { "ContainerSpec": container } });
    ok(&post(host, "/services/create", &spec).await);
    let id = loop {
        let tasks = get(host, "/tasks").await;
        if let Some(id) = tasks[0]["Status"]["ContainerStatus"]["ContainerID"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (own, skep) = (UnixClient::new(host.engine_socket()), UnixClient::new(host.skep_socket()));
    let last = format!("line {} of a log\n", LINES - 1);
    loop {
        let reply = own.get(&format!("/containers/{id}/logs?stdout=1&tail=1")).await.unwrap();
        if reply.body.ends_with(last.as_bytes()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let archive = format!("/containers/{id}/archive?path=/tmp/big");
    let log = format!("/containers/{id}/logs?stdout=1");
    for (name, own_target, skep_target, goal) in [
        ("a file", &archive, &archive, "≥ 0.9"),
        ("`docker logs`", &log, &log, "≥ 0.9"),
        ("`docker service logs` beside `docker logs`", &log, &"/services/big/logs?stdout=1".to_owned(), ""),
    ] {
        let (mut owns, mut skeps) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            owns.push(rate(&own, own_target).await / 1e6);
            skeps.push(rate(&skep, skep_target).await / 1e6);
        }
        let ratios: Vec<f64> = skeps.iter().zip(&owns).map(|(skep, own)| skep / own).collect();
        let cells = [spread(&ratios, 2), goal.to_owned(), format!("{:.0}", median(&owns)), format!("{:.0}", median(&skeps))];
        report.row(&[&[name.to_owned()][..], &cells].concat());
    }
}

/// A server of the swarm's API.
struct Server {
    client: UnixClient,
    /// Of the process that serves.
    pid: u32,
}

/// The program of this name that was started with a path of the host.
fn server(host: &Host, socket: &Path, program: &str) -> Server {
    let path = host.dir().display().to_string();
    let is_it = |pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).map(|b| String::from_utf8_lossy(&b).into_owned());
        read("comm").is_ok_and(|comm| comm.trim() == program)
            && read("cmdline").is_ok_and(|line| line.contains(&path) && (program != "skep" || line.contains("\0daemon\0")))
    };
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Server { client: UnixClient::new(socket), pid: pids.into_iter().find(is_it).unwrap() }
}

async fn swarm_part(report: &mut Report, skep: &Host, docker: &Host) {
    report.section(
        "The swarm's API beside Docker Swarm's",
        &format!(
            "One manager each, the same machine, in turn: {SERVICES} services of no replicas created one after the other, then lists of all, then \
             {CLIENTS} clients that ask for one service every {} ms. Processor time of the process that serves.",
            EVERY.as_millis()
        ),
        &["", "skep ÷ Docker Swarm", "goal", "Docker Swarm", "skep"],
    );
    let docker = server(docker, &docker.engine_socket(), "dockerd");
    let skep = server(skep, &skep.skep_socket(), "skep");
    let mut row = |name: &str, goal: &str, docker: f64, skep: f64, unit: &str, digits: usize| {
        let show = |value: f64| format!("{value:.digits$} {unit}");
        report.row(&[name.to_owned(), format!("{:.2}", skep / docker), goal.to_owned(), show(docker), show(skep)]);
    };
    let (docker_wall, docker_cpu) = create(&docker).await;
    let (skep_wall, skep_cpu) = create(&skep).await;
    row("create, wall time", "≤ 0.7", docker_wall, skep_wall, "ms", 2);
    row("create, processor time", "≤ 0.5", docker_cpu, skep_cpu, "ms", 2);
    for (name, target) in [("list of 500 services", "/services"), ("with their counts", "/services?status=true")] {
        let (mut dockers, mut skeps) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS * 4 {
            dockers.push(time(&docker, target).await);
            skeps.push(time(&skep, target).await);
        }
        row(name, "≤ 0.15", median(&dockers), median(&skeps), "ms", 2);
    }
    let (docker, skep) = (polled(&docker).await, polled(&skep).await);
    row(&format!("{CLIENTS} polling clients, of a core"), "≤ 5 %", docker, skep, "%", 1);
}

async fn time(server: &Server, target: &str) -> f64 {
    let begin = Instant::now();
    server.client.get(target).await.unwrap().ok().unwrap();
    nanos(begin.elapsed()) / 1e6
}

/// Milliseconds of wall and of processor time for each service.
async fn create(server: &Server) -> (f64, f64) {
    let (begin, before) = (Instant::now(), cpu(server.pid));
    for number in 0..SERVICES {
        let spec = json!({
            "Name": format!("s{number}"), "Mode": { "Replicated": { "Replicas": 0 } }, "Labels": { "number": number.to_string() },
            "TaskTemplate": { "ContainerSpec": { "Image": "whoami", "Env": ["A=1", "B=2"] } },
        });
        server.client.request("POST", "/services/create", Some(&spec)).await.unwrap().ok().unwrap();
    }
    let each = |total: f64| total / SERVICES as f64;
    (each(nanos(begin.elapsed()) / 1e6), each((cpu(server.pid) - before) * 1e3))
}

/// Percent of a core.
async fn polled(server: &Server) -> f64 {
    let (begin, before) = (Instant::now(), cpu(server.pid));
    let clients = (0..CLIENTS).map(|number| {
        let client = server.client.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(EVERY);
            while begin.elapsed() < POLLED {
                tick.tick().await;
                client.get(&format!("/services/s{number}")).await.unwrap().ok().unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    (cpu(server.pid) - before) / begin.elapsed().as_secs_f64() * 100.0
}
