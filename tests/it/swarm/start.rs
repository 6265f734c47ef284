//! Daemons that start without all that they need: the rest runs, and what is missing is named and tried again.

use super::kit::*;
use serde_json::{Value, json};
use skep::datapath::netns;
use skep::http::UnixClient;
use skep::lab::{EngineRoot, Host};
use std::net::TcpListener;
use std::os::fd::AsFd as _;

async fn health(host: &Host) -> (u16, String) {
    let reply = UnixClient::new(host.run_dir().join("admin.sock")).get("/healthz").await.expect("answers");
    (reply.status.as_u16(), String::from_utf8_lossy(&reply.body).into_owned())
}

async fn node_of(swarm: &Swarm, id: &str) -> Value {
    get(&swarm.hosts[0], &format!("/nodes/{id}")).await
}

#[tokio::test]
async fn a_manager_whose_port_is_taken_and_whose_ledger_is_damaged_runs_its_node_and_then_its_manager() {
    let mut swarm = swarm("start", 1, "").await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    let before = swarm.running("web", 2).await;
    let host = &mut swarm.hosts[0];
    host.stop_daemon(true).await.expect("killed");
    std::fs::write(host.data_dir().join("ledger.json"), "{").expect("damaged");
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).expect("a namespace");
    let other = netns::run(namespace.as_fd(), || TcpListener::bind("0.0.0.0:2377")).expect("enters").expect("takes the port");
    start(host).await;
    let host = &swarm.hosts[0];
    let (code, text) = health(host).await;
    assert!(code == 503 && text.contains("manager: ") && text.contains("2377"), "{code} {text}");
    let mut command = tokio::process::Command::new(SKEP);
    let table = skep::lab::output(command.args(["status", "--run-dir"]).arg(host.run_dir())).await.expect("status");
    assert!(table.contains("blocked:  manager: "), "{table}");

    // Without its ledger too: the manager is the node itself, once it may listen.
    drop(other);
    within(60, "the manager part", || async {
        let (code, text) = health(host).await;
        anyhow::ensure!(code == 200, "{text}");
        Ok(())
    })
    .await;
    within(20, "the port to answer", || ask(host, (host.address(), 8080).into())).await;
    let ids = |tasks: &[Value]| tasks.iter().map(|t| t["ID"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&swarm.running("web", 2).await), ids(&before), "no task was replaced");
    swarm.stop().await;
}

#[tokio::test]
async fn a_worker_without_its_ledger_finds_its_managers_and_a_node_without_its_engine_is_down() {
    let mut swarm = swarm("ledgerless", 2, "").await;
    swarm.service("web", 4, Some(8080), json!({})).await;
    let before = swarm.running("web", 4).await;
    let worker = swarm.node_id(&swarm.hosts[1]).await;
    let host = &mut swarm.hosts[1];
    within(10, "the managers in node.json", || async {
        let text = std::fs::read_to_string(host.data_dir().join("node.json"))?;
        anyhow::ensure!(text.contains("\"managers\""), "{text}");
        Ok(())
    })
    .await;
    // As after an update: short enough for the node not to be down.
    host.stop_daemon(true).await.expect("killed");
    std::fs::remove_file(host.data_dir().join("ledger.json")).expect("removed");
    start(host).await;
    swarm.ready(2).await;
    let running = swarm.running("web", 4).await;
    assert_eq!(running.len(), before.len());
    within(20, "the worker's port to answer", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;

    // Its engine dies, its daemon does not.
    swarm.hosts[1].stop_engine().await.expect("stops");
    within(30, "the node to be down", || async {
        let status = node_of(&swarm, &worker).await["Status"].clone();
        anyhow::ensure!(status["State"] == "down" && status["Message"].to_string().contains("Docker Engine"), "{status}");
        Ok(())
    })
    .await;
    // The tasks of a node that may return stay wanted for a minute; there are as many elsewhere at once.
    within(20, "the tasks elsewhere", || async {
        let tasks = swarm.tasks("web").await;
        let elsewhere = tasks.iter().filter(|t| t["Status"]["State"] == "running" && t["NodeID"] != worker).count();
        anyhow::ensure!(elsewhere == 4, "{tasks:#?}");
        Ok(())
    })
    .await;
    within(10, "the port of a node without an engine", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;
    swarm.hosts[1].start_engine(&EngineRoot::Machine).await.expect("engine");
    swarm.ready(2).await;
    swarm.stop().await;
}
