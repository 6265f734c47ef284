//! Updates, global services and jobs as a user sees them: through the stock CLI, on real engines.

use super::super::ebpf_lifecycle::vip;
use super::super::load::{self, ByName, Load, Target, host_of, of_host, of_task, server};
use super::super::ports::client;
use super::kit::*;
use serde_json::{Value, json};
use skep::lab::Host;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

async fn docker(swarm: &Swarm, line: &str) -> String {
    swarm.hosts[0].docker_run(line).await.unwrap_or_else(|error| panic!("docker {line}: {error:#}"))
}

/// What a test of rollouts puts on the swarm.
struct Rollouts {
    swarm: Swarm,
    client: Host,
    /// By kind: new connections, kept connections, datagrams.
    loads: Vec<(&'static str, Load)>,
    by_name: Vec<ByName>,
}

/// Services with two replicas (stop-first) and with one (start-first), asked by port on every node and by virtual address. Each
/// client pauses for so long between two requests.
async fn under_load(name: &str, pause: Duration) -> Rollouts {
    let swarm = swarm(name, 3, "").await;
    let client = client(&swarm).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!([{ "Target": "back" }]);
    for (service, replicas, port, order) in [("two", 2, 8080, "stop-first"), ("one", 1, 8081, "start-first")] {
        let mut template = server::template(&networks);
        template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
        let ports = json!([
            { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port },
            { "Protocol": "udp", "TargetPort": server::DATAGRAMS, "PublishedPort": port },
        ]);
        let spec = json!({
            "Name": service, "Mode": { "Replicated": { "Replicas": replicas } }, "EndpointSpec": { "Ports": ports },
            "TaskTemplate": template, "UpdateConfig": { "Parallelism": 1, "Monitor": 1_000_000_000, "Order": order },
        });
        ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
    }
    swarm.service("caller", 1, None, json!({ "Networks": networks })).await;
    let caller = swarm.running("caller", 1).await.remove(0);
    for (service, count, port) in [("two", 2, 8080), ("one", 1, 8081)] {
        swarm.running(service, count).await;
        for protocol in ["tcp", "udp"] {
            wait_for_backends(&swarm.hosts, &format!("{port}/{protocol}"), count).await;
        }
    }
    let (outside, inside) = (of_host(&client), of_task(&swarm, &caller).await);
    let mut targets = Vec::new();
    for (service, port) in [("two", 8080), ("one", 8081)] {
        let by_port =
            swarm.hosts.iter().map(|h| (&outside, SocketAddr::from((h.address(), port)), format!("by {}", h.name()), port));
        let vip = vip(&swarm, service).await;
        let by_address = (&inside, SocketAddr::from((vip, 80)), "by virtual address".to_owned(), server::DATAGRAMS);
        targets.extend(by_port.chain([by_address]).map(|(from, to, how, udp)| (from, to, format!("{service} {how}"), udp)));
    }
    let tcp = |what: &'static str| {
        targets.iter().map(move |(from, to, label, _)| Target::new(from, *to, format!("{what}, {label}"))).collect::<Vec<_>>()
    };
    // A connected socket on a virtual address gets an error when its task goes (README): there each datagram is on its own.
    let udp = |by_address: bool| {
        let chosen = targets.iter().filter(move |(.., port)| (*port == server::DATAGRAMS) == by_address);
        chosen.map(|(from, to, label, port)| Target::new(from, (to.ip(), *port).into(), format!("datagrams, {label}")))
    };
    let loads = vec![
        ("new connections", Load::http(tcp("new"), pause, false)),
        ("kept connections", Load::http(tcp("kept"), pause, true)),
        ("flows of datagrams by port", Load::flows(udp(false), pause)),
        ("datagrams by virtual address", Load::datagrams(udp(true), pause)),
    ];
    let (host, container) = (host_of(&swarm, &caller).await, caller["Status"]["ContainerStatus"]["ContainerID"].as_str());
    let by_name = ["two", "one"].map(|service| ByName::start(host, container.expect("container"), service)).into();
    Rollouts { swarm, client, loads, by_name }
}

impl Rollouts {
    /// Rolls both services out so many times, and says what the clients saw: requests, lost, reset, slowest, by kind of load.
    async fn roll_out(self, rounds: usize) -> Swarm {
        let begin = std::time::Instant::now();
        for round in 0..rounds {
            for service in ["two", "one"] {
                let said = docker(&self.swarm, &format!("service update --env-add ROUND={round} {service}")).await;
                assert!(said.contains("converged"), "{said}");
                let shown = get(&self.swarm.hosts[0], &format!("/services/{service}")).await;
                let state = shown["UpdateStatus"]["State"].as_str().expect("state");
                assert!(["updating", "completed"].contains(&state), "{shown:#}");
            }
        }
        let took = begin.elapsed();
        let (mut lost, mut all) = (0, 0);
        for (what, load) in self.loads {
            let tallies = load.stop().await;
            let (requests, failed) = tallies.iter().fold((0, 0), |(a, f), t| (a + t.answers(), f + t.failed.len()));
            let reset = tallies.iter().flat_map(|t| &t.failed).filter(|f| f.why.contains("reset")).count();
            let slowest = tallies.iter().map(|t| t.slowest).max().unwrap_or_default();
            eprintln!("{what}: {requests} requests, {failed} lost, of these {reset} reset, slowest {slowest:.0?}");
            (lost, all) = (lost + failed, all + requests);
            assert!(tallies.iter().all(|t| t.answers() > 20), "every client is answered: {what}");
            // Each rollout makes new tasks: that of one replica had one more than there were rollouts.
            assert!(tallies.iter().all(|t| t.answered.len() > rounds), "every task is reached: {what}");
        }
        let (mut named, mut unnamed) = (0, 0);
        for by_name in self.by_name {
            let (answered, failed) = by_name.stop().await;
            assert!(answered > 10, "{answered} by name");
            (named, unnamed) = (named + answered, unnamed + failed);
        }
        let rate = all / usize::try_from(took.as_secs().max(1)).expect("few");
        eprintln!("{rounds} rollouts of each service in {took:.0?}, {rate} requests/s; by name {named}, {unnamed} lost");
        assert_eq!((lost, unnamed), (0, 0), "no request is lost");
        self.client.stop().await;
        self.swarm
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_loses_no_request_and_the_cli_sees_it_end() {
    let swarm = under_load("ro", Duration::from_millis(40)).await.roll_out(2).await;
    let history =
        skep::lab::output(swarm.hosts[0].command(SKEP).args(["history", "--run-dir"]).arg(swarm.hosts[0].run_dir()).arg("two"))
            .await
            .expect("history");
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[1].contains("created") && history.contains("the service wants another task"), "{history}");
    assert!(history.contains("replaced by an update or rollback") && history.contains("update completed"), "{history}");
    swarm.stop().await;
}

/// Services that publish no port and have no health check, whose program listens a second after its start: the next task takes over
/// when it listens as the one before it did.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_by_name_waits_until_each_task_listens() {
    let swarm = swarm("rn", 3, "").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!([{ "Target": "back" }]);
    for (service, replicas, order) in [("two", 2, "stop-first"), ("one", 1, "start-first")] {
        let mut template = server::unchecked(&networks, Duration::from_secs(1));
        template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
        let spec = json!({
            "Name": service, "Mode": { "Replicated": { "Replicas": replicas } }, "TaskTemplate": template,
            "UpdateConfig": { "Parallelism": 1, "Monitor": 1_000_000_000, "Order": order },
        });
        ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
    }
    swarm.service("caller", 1, None, json!({ "Networks": networks })).await;
    let caller = swarm.running("caller", 1).await.remove(0);
    let inside = of_task(&swarm, &caller).await;
    let (mut targets, mut services, mut before) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (service, count) in [("two", 2), ("one", 1)] {
        swarm.running(service, count).await;
        let to = SocketAddr::from((vip(&swarm, service).await, 80));
        targets.push(Target::new(&inside, to, service));
        // Every task is seen to listen: from then on all requests are answered, by each of them.
        before.extend(answers(&inside, to, count, &before).await);
        services.push((service, to, count));
    }
    let load = Load::http(targets, Duration::from_millis(10), false);
    let (host, container) = (host_of(&swarm, &caller).await, caller["Status"]["ContainerStatus"]["ContainerID"].as_str());
    let by_name = ["two", "one"].map(|service| ByName::start(host, container.expect("container"), service));
    for (service, to, count) in services {
        let said = docker(&swarm, &format!("service update --env-add ROUND=1 {service}")).await;
        assert!(said.contains("converged"), "{said}");
        answers(&inside, to, count, &before).await;
    }
    let tallies = load.stop().await;
    assert!(tallies.iter().all(|tally| tally.failed.is_empty() && tally.answers() > 100), "requests by virtual address");
    for by_name in by_name {
        let (answered, lost) = by_name.stop().await;
        assert!(lost == 0 && answered > 10, "by name: {answered} answers, {lost} lost");
    }
    swarm.stop().await;
}

/// The tasks that answer at an address, once so many do and none of those of before.
async fn answers(inside: &File, to: SocketAddr, count: usize, before: &BTreeSet<String>) -> BTreeSet<String> {
    within(30, "these tasks to answer, and no other ones", || async {
        let mut answered = BTreeSet::new();
        for _ in 0..12 {
            answered.insert(load::inside(inside.try_clone()?, move || load::request(to)).await?);
        }
        anyhow::ensure!(answered.len() == count && answered.is_disjoint(before), "{answered:?}, before {before:?}");
        Ok(answered)
    })
    .await
}

/// The figure of the README. Prints what each client saw.
#[ignore = "minutes: `make soak`"]
#[tokio::test(flavor = "multi_thread")]
async fn twenty_rollouts_lose_nothing_at_full_load() {
    under_load("rz", Duration::from_millis(4)).await.roll_out(20).await.stop().await;
}

/// The same rollouts by the swarm of the engines themselves, for the README: with two replicas, by name. Without IPVS in the kernel
/// that has neither virtual addresses nor ports on every node: what it says to them is printed too.
#[ignore = "minutes: a figure"]
#[tokio::test(flavor = "multi_thread")]
async fn twenty_rollouts_of_the_engines_own_swarm_by_name() {
    let lab = skep::lab::Lab::new(super::super::lab::lab_dir("own")).await.expect("lab");
    let mut hosts = Vec::new();
    for number in 1..=3 {
        let mut host = lab.host(&format!("n{number}"), number).await.expect("host");
        host.start_engine(&super::super::lab::engine_root()).await.expect("engine");
        skep::lab::whoami_image(&host).await.expect("image");
        hosts.push(host);
    }
    let engine = |host: &Host| skep::http::UnixClient::new(host.engine_socket());
    let cli = async |host: &Host, line: String| {
        skep::lab::output(host.engine_cli().args(line.split_whitespace())).await.unwrap_or_else(|e| panic!("{line}: {e:#}"))
    };
    cli(&hosts[0], format!("swarm init --advertise-addr {}", hosts[0].address())).await;
    let token = cli(&hosts[0], "swarm join-token -q worker".to_owned()).await;
    for host in &hosts[1..] {
        let (own, manager) = (host.address(), hosts[0].address());
        cli(host, format!("swarm join --advertise-addr {own} --token {} {manager}:2377", token.trim())).await;
    }
    cli(&hosts[0], "network create -d overlay back".to_owned()).await;
    let create = async |name: &str, replicas: usize, mut template: Value, endpoint: Value| {
        template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
        template["Networks"] = json!([{ "Target": "back" }]);
        let spec = json!({
            "Name": name, "Mode": { "Replicated": { "Replicas": replicas } }, "EndpointSpec": endpoint, "TaskTemplate": template,
            "UpdateConfig": { "Parallelism": 1, "Monitor": 1_000_000_000, "Order": "stop-first" },
        });
        let reply = engine(&hosts[0]).request("POST", "/services/create", Some(&spec)).await.expect("the engine answers");
        assert!(reply.status.is_success(), "{}", said(&reply));
    };
    let running = async |name: &str, count: usize| {
        within(60, "running tasks", || async {
            let filter = format!("%7B%22service%22%3A%7B%22{name}%22%3Atrue%7D%7D");
            let tasks: Value = engine(&hosts[0]).get(&format!("/tasks?filters={filter}")).await?.json()?;
            let running: Vec<Value> =
                tasks.as_array().into_iter().flatten().filter(|t| t["Status"]["State"] == "running").cloned().collect();
            anyhow::ensure!(running.len() == count, "{tasks:#}");
            Ok(running)
        })
        .await
    };
    create("two", 2, server::template(&json!([])), json!({ "Mode": "dnsrr" })).await;
    create("caller", 1, json!({ "ContainerSpec": {} }), json!({ "Mode": "dnsrr" })).await;
    running("two", 2).await;
    let caller = running("caller", 1).await.remove(0);
    let mut at = &hosts[0];
    for host in &hosts {
        let id = cli(host, "info --format {{.Swarm.NodeID}}".to_owned()).await;
        at = if caller["NodeID"] == id.trim() { host } else { at };
    }
    let container = caller["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("a container");
    let by_name = ByName::start(at, container, "two");
    let begin = std::time::Instant::now();
    for round in 0..20 {
        let said = cli(&hosts[0], format!("service update --env-add ROUND={round} two")).await;
        assert!(said.contains("converged"), "{said}");
    }
    let took = begin.elapsed();
    let (named, lost) = by_name.stop().await;
    eprintln!("20 rollouts by the engines' own swarm in {took:.0?}; by name {named} answers, {lost} lost");

    // What it has for published ports and virtual addresses.
    create("mesh", 1, json!({ "ContainerSpec": {} }), json!({ "Ports": [{ "TargetPort": 80, "PublishedPort": 8080 }] })).await;
    let mesh = within(20, "a task", || async {
        let shown = cli(&hosts[0], "service ps --no-trunc --format {{.CurrentState}}|{{.Error}} mesh".to_owned()).await;
        anyhow::ensure!(shown.contains("Running") || shown.contains("Failed") || shown.contains("Rejected"), "{shown}");
        Ok(shown)
    })
    .await;
    eprintln!("a service with a published port: {mesh}");
    for host in &hosts {
        let answer = ask(host, (host.address(), 8080).into()).await.map_err(|error| format!("{error:#}"));
        eprintln!("its port on {}: {answer:?}", host.name());
    }
    for line in std::fs::read_to_string(hosts[0].dir().join("engine.log")).unwrap_or_default().lines() {
        if line.to_lowercase().contains("ipvs") || line.contains("ip_vs") {
            eprintln!("its engine: {line}");
        }
    }
    for host in &hosts {
        let _ = skep::lab::output(host.engine_cli().args(["swarm", "leave", "--force"])).await;
    }
    for host in hosts {
        host.stop().await;
    }
    lab.stop().await.expect("removes its files");
}

#[tokio::test]
async fn a_failing_update_is_paused_and_rolled_back_by_the_stock_cli() {
    let swarm = swarm("rf", 2, "").await;
    docker(
        &swarm,
        &format!(
            "service create -d --no-resolve-image --name web --replicas 2 --update-monitor 2s --rollback-monitor 1s \
        --restart-delay 1s {} sleep 1000",
            skep::lab::WHOAMI_IMAGE
        ),
    )
    .await;
    let before: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    // An image that no node has: nothing that runs is stopped for it.
    let refused = swarm.hosts[0].docker_run("service update --no-resolve-image --image nowhere.invalid/x:1 web").await;
    let refused = format!("{:#}", refused.expect_err("paused"));
    assert!(refused.contains("service update paused: update paused due to failure or early termination of task"), "{refused}");
    let now: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    assert_eq!(now, before, "the tasks of before run on");
    let said = docker(&swarm, "service rollback web").await;
    assert!(said.contains("converged"), "{said}");
    within(20, "the rollback to be over", || async {
        let shown = get(&swarm.hosts[0], "/services/web").await;
        anyhow::ensure!(shown["UpdateStatus"]["State"] == "rollback_completed", "{shown:#}");
        Ok(())
    })
    .await;
    let now: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    assert_eq!(now, before);
    // One that is rolled back by itself ends well for the CLI, as with a real swarm.
    let said =
        docker(&swarm, "service update --no-resolve-image --update-failure-action rollback --image nowhere.invalid/x:1 web")
            .await;
    assert!(said.contains("converged"), "{said}");
    let now: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    assert_eq!(now, before);
    // A real swarm lets it wait for ever.
    let refused = swarm.hosts[0].docker_run("service update --no-resolve-image --constraint-add node.labels.zone==b web").await;
    let refused = format!("{:#}", refused.expect_err("paused"));
    assert!(
        refused.contains("service update paused: ")
            && refused.contains("no suitable node (scheduling constraints not satisfied on 2 nodes)"),
        "{refused}"
    );
    swarm.stop().await;
}

#[tokio::test]
async fn a_global_service_and_jobs_run_as_the_stock_cli_expects() {
    let swarm = swarm("rg", 3, "").await;
    let image = skep::lab::WHOAMI_IMAGE;
    let said = docker(&swarm, &format!("service create --no-resolve-image --name all --mode global {image} sleep 1000")).await;
    assert!(said.contains("converged"), "{said}");
    assert!(docker(&swarm, "service ls").await.contains("3/3"));
    let ps = docker(&swarm, "service ps --no-trunc all").await;
    for host in &swarm.hosts {
        let id = swarm.node_id(host).await;
        assert!(ps.contains(&format!("all.{id}")), "{ps}");
    }
    docker(&swarm, "node update --availability drain n3").await;
    within(30, "the drained node's task to stop", || async {
        let running = swarm.tasks("all").await.iter().filter(|t| t["Status"]["State"] == "running").count();
        anyhow::ensure!(running == 2, "{running}");
        Ok(())
    })
    .await;
    assert!(docker(&swarm, "service ls").await.contains("2/2"));
    docker(&swarm, "node update --availability active n3").await;
    swarm.running("all", 3).await;

    let job = format!(
        "service create --no-resolve-image --name job --mode replicated-job --replicas 3 --max-concurrent 2 {image} sleep 1"
    );
    let said = docker(&swarm, &job).await;
    assert!(said.contains("job complete"), "{said}");
    let listed = docker(&swarm, "service ls").await;
    assert!(listed.contains("0/2 (3/3 completed)"), "{listed}");
    let said = docker(&swarm, "service update --force job").await;
    assert!(said.contains("job complete"), "{said}");
    let said = docker(&swarm, &format!("service create --no-resolve-image --name each --mode global-job {image} sleep 1")).await;
    assert!(said.contains("job complete"), "{said}");
    let listed = docker(&swarm, "service ls --filter mode=global-job").await;
    assert!(listed.contains("0/0 (3/3 completed)"), "{listed}");
    assert_eq!(swarm.tasks("each").await.len(), 3);
    swarm.stop().await;
}
