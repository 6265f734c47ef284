//! Replicas that follow connections, on a real engine.

use super::kit::{get, swarm, wait_for_backends, within};
use skep::datapath::netns;
use skep::lab::WHOAMI_IMAGE;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::time::Duration;

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
        let history = get(host, "/services/web/history").await;
        let scaled = history.as_array().into_iter().flatten().filter(|entry| entry["Event"] == "scaled");
        let reasons: Vec<&str> = scaled.filter_map(|entry| entry["Why"].as_str()).collect();
        anyhow::ensure!(
            reasons.last().is_some_and(|why| why.contains("to 3 replicas by load: 5 connections, 2 per replica")),
            "{history:#}"
        );
        Ok(())
    })
    .await;
    let refused = host.docker_run("service scale -d web=9").await.expect_err("outside of the range").to_string();
    assert!(refused.contains("9 replicas are outside"), "{refused}");
    drop(connections);
    swarm.stop().await;
}
