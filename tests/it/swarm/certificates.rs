//! Certificates that live for seconds: a swarm outlives many of them.

use super::kit::*;
use serde_json::Value;
use skep::model::Timestamp;
use std::time::{Duration, Instant};

/// Life of the swarm's certificates, in seconds.
const LIFE: u64 = 12;

/// The end of a node's certificate, as its daemon has it.
async fn end(host: &skep::lab::Host) -> Timestamp {
    let status = status(host).await;
    Timestamp::parse(status["certificate"]["expires"].as_str().expect("a certificate")).expect("a time")
}

fn now() -> Timestamp {
    skep::clock::Clock::now(&skep::clock::SystemClock)
}

async fn until(end: Timestamp) {
    skep::clock::reached(&skep::clock::SystemClock, end).await;
}

async fn ready(swarm: &Swarm) -> usize {
    let nodes = get(&swarm.hosts[0], "/nodes").await;
    nodes.as_array().into_iter().flatten().filter(|n| n["Status"]["State"] == "ready").count()
}

fn ids(tasks: &[Value]) -> Vec<String> {
    let mut ids: Vec<String> = tasks.iter().filter_map(|t| t["ID"].as_str().map(str::to_owned)).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_swarm_outlives_its_certificates_and_daemons_return_after_theirs_have_expired() {
    let mut swarm = swarm("certificates", 2, &format!("[manager]\ncertificate_life_s = {LIFE}\n")).await;
    swarm.service("web", 2, Some(8080), serde_json::json!({})).await;
    let tasks = ids(&swarm.running("web", 2).await);
    within(20, "the port to answer", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;

    // Two lives: the nodes stay ready and the port is served all the time.
    let first = [end(&swarm.hosts[0]).await, end(&swarm.hosts[1]).await];
    let stop = Instant::now() + Duration::from_secs(2 * LIFE);
    while Instant::now() < stop {
        for host in &swarm.hosts {
            ask(host, (host.address(), 8080).into()).await.expect("the port is served");
            assert!(end(host).await > now(), "{}: its certificate is over", host.name());
        }
        assert_eq!(ready(&swarm).await, 2);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for (host, first) in swarm.hosts.iter().zip(first) {
        let renewed = end(host).await;
        assert!(renewed > first.plus(Duration::from_secs(LIFE)), "{}: it is not the first one's successor", host.name());
    }
    assert_eq!(ids(&swarm.running("web", 2).await), tasks, "no task was replaced");

    // The manager is down across the end of its certificate.
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    until(now().plus(Duration::from_secs(LIFE + 1))).await;
    start(&mut swarm.hosts[0]).await;
    within(20, "a certificate for the manager", || async {
        anyhow::ensure!(end(&swarm.hosts[0]).await > now(), "{:#}", status(&swarm.hosts[0]).await["certificate"]);
        Ok(())
    })
    .await;
    // Meanwhile the worker's has expired as well: it says so, and what helps.
    let advice = within(20, "the worker's status", || async {
        let status = status(&swarm.hosts[1]).await;
        let warning = status["certificate"]["warning"].as_str().unwrap_or_default().to_owned();
        anyhow::ensure!(warning.contains("skep recover-certificates"), "{warning:?}, {}", status["session"]);
        Ok(warning)
    })
    .await;
    assert!(advice.contains("has expired"), "{advice}");
    ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into()).await.expect("its port is served without a session");

    let recover = |host: &skep::lab::Host| {
        let mut command = tokio::process::Command::new(SKEP);
        command.args(["recover-certificates", "--run-dir"]).arg(host.run_dir());
        async move { skep::lab::output(&mut command).await }
    };
    let refused = recover(&swarm.hosts[1]).await.expect_err("a worker cannot").to_string();
    assert!(refused.contains("not a manager"), "{refused}");
    recover(&swarm.hosts[0]).await.expect("on the manager");
    swarm.ready(2).await;

    // Allowed now: a worker's daemon that was down across the end.
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    until(now().plus(Duration::from_secs(LIFE + 1))).await;
    start(&mut swarm.hosts[1]).await;
    swarm.ready(2).await;
    within(20, "the worker's port", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;
    swarm.stop().await;
}
