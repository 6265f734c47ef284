//! `skep doctor` on real hosts, before and in a swarm.

use super::kit::*;
use serde_json::Value;
use skep::datapath::netns;
use skep::lab::{Host, Lab};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

/// The findings that are not good, as `check: found`, and how long it took to find them.
async fn findings(host: &Host) -> (Vec<String>, Duration) {
    let begin = Instant::now();
    let mut doctor = host.command(SKEP);
    doctor.args(["doctor", "--json", "--config", "/dev/null", "--run-dir"]).arg(host.run_dir());
    doctor.arg("--data-dir").arg(host.data_dir());
    doctor.arg("--engine").arg(format!("unix://{}", host.engine_socket().display()));
    let output = doctor.output().await.expect("the doctor");
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let bad: Vec<String> = findings
        .iter()
        .filter(|finding| finding["level"] != "ok")
        .map(|finding| format!("{}: {}", finding["check"].as_str().unwrap(), finding["found"].as_str().unwrap()))
        .collect();
    assert_eq!(output.status.success(), !findings.iter().any(|finding| finding["level"] == "error"), "{bad:?}");
    (bad, begin.elapsed())
}

fn named(bad: &[String], part: &str) -> bool {
    bad.iter().any(|line| line.contains(part))
}

#[tokio::test]
async fn faults_of_a_host_that_is_in_no_swarm_are_named_within_seconds() {
    let dir = crate::lab::lab_dir("doctor");
    let lab = Lab::on("172.16.9.0/24".parse().unwrap(), &dir).await.expect("lab");
    let host = lab.host("one", 1).await.expect("host");
    let (bad, _) = findings(&host).await;
    assert!(named(&bad, "engine: the Docker Engine") || named(&bad, "engine: "), "it has no engine: {bad:?}");
    assert!(!named(&bad, "firewall") && !named(&bad, "ports: "), "{bad:?}");

    host.run("nft add table inet filter").await.expect("nft");
    host.run("nft add chain inet filter input { type filter hook input priority 0 ; policy drop ; }").await.expect("nft");
    host.run("nft add rule inet filter input tcp dport { 22, 2377 } accept").await.expect("nft");
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).expect("a namespace");
    let other = netns::run(namespace.as_fd(), || UdpSocket::bind("0.0.0.0:2377")).expect("enters").expect("takes the port");
    let (bad, took) = findings(&host).await;
    assert!(named(&bad, "firewall: 2377/udp is dropped by inet filter input") && !named(&bad, "2377/tcp"), "{bad:?}");
    assert!(named(&bad, "ports: 2377/udp cannot be bound"), "{bad:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(other);
    host.stop().await;
    lab.stop().await.expect("everything is removed");
}

#[tokio::test]
async fn in_a_swarm_the_path_to_a_silent_node_and_a_dead_daemon_are_named() {
    let mut swarm = swarm("doctor", 2, "").await;
    within(20, "paths without a fault", || async {
        let (bad, _) = findings(&swarm.hosts[0]).await;
        let faults = ["paths", "daemon", "session", "certificate", "managers", "ports", "engine:"];
        anyhow::ensure!(!faults.iter().any(|fault| bad.iter().any(|line| line.starts_with(fault))), "{bad:?}");
        Ok(())
    })
    .await;
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    let (bad, _) = findings(&swarm.hosts[1]).await;
    assert!(named(&bad, "daemon: this node is in a swarm and its daemon does not answer"), "{bad:?}");
    swarm.stop().await;
}
