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

/// Two hosts, the first one the manager, with two tasks behind a port, and certificates that live for so many seconds.
async fn short_lived(name: &str, life: u64) -> (Swarm, Vec<String>) {
    let swarm = swarm(name, 2, &format!("[manager]\ncertificate_life_s = {life}\n")).await;
    swarm.service("web", 2, Some(8080), serde_json::json!({})).await;
    let tasks = ids(&swarm.running("web", 2).await);
    within(20, "the port to answer", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;
    (swarm, tasks)
}

/// The nodes stay ready for so long, the port is served all the time, and no certificate reaches its end.
async fn stays_ready(swarm: &Swarm, time: Duration) {
    let stop = Instant::now() + time;
    while Instant::now() < stop {
        for host in &swarm.hosts {
            ask(host, (host.address(), 8080).into()).await.expect("the port is served");
            assert!(end(host).await > now(), "{}: its certificate is over", host.name());
        }
        assert_eq!(ready(swarm).await, 2);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The nodes outlive two certificates.
async fn outlives_two_lives(swarm: &Swarm, life: u64) {
    let first = [end(&swarm.hosts[0]).await, end(&swarm.hosts[1]).await];
    stays_ready(swarm, Duration::from_secs(2 * life)).await;
    for (host, first) in swarm.hosts.iter().zip(first) {
        let renewed = end(host).await;
        assert!(renewed > first.plus(Duration::from_secs(life)), "{}: it is not the first one's successor", host.name());
    }
}

/// Lets this manager renew certificates that have expired.
async fn recover(host: &skep::lab::Host) -> anyhow::Result<String> {
    let mut command = tokio::process::Command::new(SKEP);
    command.args(["recover-certificates", "--run-dir"]).arg(host.run_dir());
    skep::lab::output(&mut command).await
}

/// The daemon of a worker is killed, and started once its certificate is over; the manager may renew it then.
async fn worker_is_down_across_an_end(swarm: &mut Swarm, life: u64) {
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    until(now().plus(Duration::from_secs(life + 1))).await;
    start(&mut swarm.hosts[1]).await;
    swarm.ready(2).await;
    within(20, "the worker's port", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;
}

#[tokio::test]
async fn a_swarm_outlives_its_certificates_and_daemons_return_after_theirs_have_expired() {
    let (mut swarm, tasks) = short_lived("certificates", LIFE).await;
    outlives_two_lives(&swarm, LIFE).await;
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

    let refused = recover(&swarm.hosts[1]).await.expect_err("a worker cannot").to_string();
    assert!(refused.contains("not a manager"), "{refused}");
    recover(&swarm.hosts[0]).await.expect("on the manager");
    swarm.ready(2).await;

    // Allowed now: a worker's daemon that was down across the end.
    worker_is_down_across_an_end(&mut swarm, LIFE).await;
    swarm.stop().await;
}

/// `SKEP_CERTIFICATE_LIFE_S` (120) for other lives: five of them pass, and the worker's daemon is down for one.
#[tokio::test]
#[ignore = "ten minutes: make soak"]
#[expect(clippy::disallowed_methods, reason = "an option of the soak")]
async fn a_swarm_with_certificates_of_two_minutes_lives_for_ten() {
    let life = std::env::var("SKEP_CERTIFICATE_LIFE_S").map_or(120, |text| text.parse().expect("seconds"));
    let (mut swarm, tasks) = short_lived("certificates-long", life).await;
    outlives_two_lives(&swarm, life).await;
    assert_eq!(ids(&swarm.running("web", 2).await), tasks, "no task was replaced");
    recover(&swarm.hosts[0]).await.expect("on the manager");
    worker_is_down_across_an_end(&mut swarm, life).await;
    // The worker's tasks were replaced if it was away for longer than a minute.
    swarm.running("web", 2).await;
    outlives_two_lives(&swarm, life).await;
    swarm.stop().await;
}
