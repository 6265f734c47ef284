//! Replicas that follow connections and requests, from 0 and to 0, on real engines.

use super::super::load::{Load, Target, of_host};
use super::http;
use super::kit::{Swarm, get, status, swarm, wait_for_backends, within};
use serde_json::json;
use skep::datapath::netns;
use skep::lab::{Host, WHOAMI_IMAGE};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// Why a service was scaled, in order.
async fn scalings(host: &Host, service: &str) -> Vec<String> {
    let history = get(host, &format!("/services/{service}/history")).await;
    let scaled = history.as_array().into_iter().flatten().filter(|entry| entry["Event"] == "scaled");
    scaled.filter_map(|entry| entry["Why"].as_str().map(str::to_owned)).collect()
}

/// The server keeps a connection on which nothing is asked.
#[tokio::test]
async fn connections_that_tasks_have_accepted_make_replicas_and_history_says_why() {
    let swarm = swarm("scaled", 1, "").await;
    let host = &swarm.hosts[0];
    let create = format!(
        "service create -d --name web --publish 8080:80 --label skep.autoscale=1..3 --label skep.autoscale.connections=2 {WHOAMI_IMAGE}"
    );
    host.docker_run(&create).await.expect("created");
    swarm.running("web", 1).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 1).await;

    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).expect("a namespace");
    let to = std::net::SocketAddr::from((host.address(), 8080));
    let connect = move || netns::run(namespace.as_fd(), || TcpStream::connect_timeout(&to, Duration::from_secs(3)));
    let connections = tokio::task::spawn_blocking(move || (0..5).map(|_| connect()).collect::<Vec<_>>()).await.expect("connects");
    let open = connections.iter().filter(|connection| matches!(connection, Ok(Ok(_)))).count();
    assert_eq!(open, 5);

    swarm.running("web", 3).await;
    within(10, "the reason", || async {
        let reasons = scalings(host, "web").await;
        anyhow::ensure!(
            reasons.last().is_some_and(|why| why.contains("to 3 replicas by load: 5 connections, 2 per replica")),
            "{reasons:?}"
        );
        Ok(())
    })
    .await;
    let refused = host.docker_run("service scale -d web=9").await.expect_err("outside of the range").to_string();
    assert!(refused.contains("9 replicas are outside"), "{refused}");
    drop(connections);
    swarm.stop().await;
}

/// A request that may have to wait for a task: the answer of the image's server, or what curl says.
async fn asked(from: &Host, what: &str) -> anyhow::Result<String> {
    let answer = from.run(&format!("curl -sS --fail-with-body --max-time 55 {what}")).await?;
    anyhow::ensure!(answer.split_whitespace().count() == 2, "not HOSTNAME CLIENT: {answer}");
    Ok(answer)
}

/// Waits until no task of a service is wanted or runs.
async fn has_none(swarm: &Swarm, service: &str) {
    within(60, "no task", || async {
        let tasks = swarm.tasks(service).await;
        let left = tasks.iter().filter(|t| t["DesiredState"] == "running" || t["Status"]["State"] == "running");
        anyhow::ensure!(left.count() == 0, "{tasks:#?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_clients_wait_for_a_task_an_idle_service_has_none_and_requests_make_replicas() {
    let swarm = swarm("zero", 2, "").await;
    let [host, other] = &swarm.hosts[..] else { panic!("two hosts") };
    let labels = "--label skep.autoscale=0..1 --label skep.autoscale.idle=10s --label skep.http=web.example.com";
    let create = format!("service create -d --name web --replicas 0 --publish 8080:80 {labels} {WHOAMI_IMAGE}");
    host.docker_run(&create).await.expect("created");
    for host in &swarm.hosts {
        within(20, "its port and its route", || async {
            let status = status(host).await;
            let has = |list: &serde_json::Value| list.as_array().is_some_and(|list| list.len() == 1);
            anyhow::ensure!(has(&status["ports"]) && has(&status["http"]["routes"]), "{status:#}");
            Ok(())
        })
        .await;
    }
    has_none(&swarm, "web").await;
    assert_eq!(scalings(host, "web").await, [""; 0]);

    // The first connections, one on each node.
    let by_port = |to: &Host| format!("http://{}:8080/", to.address());
    let (here, there) = (by_port(host), by_port(other));
    let (a, b) = tokio::join!(asked(other, &there), asked(host, &here));
    let (a, b) = (a.expect("answered"), b.expect("answered"));
    assert_eq!(a.split(' ').next(), b.split(' ').next(), "one task");
    swarm.running("web", 1).await;
    let why = scalings(host, "web").await;
    assert!(why.len() == 1 && why[0].starts_with("0 to 1 replicas for "), "{why:?}");

    // Meanwhile another service gets replicas for its requests.
    let labels = json!({ "skep.http": "test", "skep.autoscale": "1..3", "skep.autoscale.requests": "10" });
    http::create(&swarm, "api", 1, labels, json!({})).await;
    swarm.running("api", 1).await;
    let outside = of_host(other);
    let targets = swarm.hosts.iter().map(|host| Target::new(&outside, SocketAddr::from((host.address(), 80)), host.name()));
    within(20, "its route", || asked_api(other, host)).await;
    let load = Load::http(targets, Duration::from_millis(20), true);
    swarm.running("api", 3).await;
    for tally in load.stop().await {
        assert!(tally.failed.is_empty(), "{}: {:?}", tally.label, tally.failed.iter().map(|f| &f.why).collect::<Vec<_>>());
    }
    let why = scalings(host, "api").await;
    assert!(
        why.last().is_some_and(|why| why.contains("to 3 replicas by load: ") && why.ends_with(", 10 per replica")),
        "{why:?}"
    );

    has_none(&swarm, "web").await;
    let why = scalings(host, "web").await;
    assert_eq!(why.last().map(String::as_str), Some("1 to 0 replicas after 10 s without a connection"), "{why:?}");

    // The first requests of the route: with a body, and without.
    let by_route = |to: &Host| format!("-H Host:web.example.com http://{}", to.address());
    let (without, with) = (by_route(other) + "/", by_route(host) + "/cgi-bin/index.cgi -d body=1");
    let (a, b) = tokio::join!(asked(other, &without), asked(host, &with));
    a.and(b).expect("answered");
    assert_eq!(scalings(host, "web").await.len(), 3);
    swarm.stop().await;
}

/// The route of the service `api`.
async fn asked_api(from: &Host, to: &Host) -> anyhow::Result<()> {
    let answer = http::curl(from, &format!("-H Host:test http://{}/", to.address())).await;
    anyhow::ensure!(answer.contains(" ok "), "{answer}");
    Ok(())
}
