//! Networks of several subnets, and services that join and leave a network while they run, on three engines.

use super::kit::*;
use super::networks::{address, container_of, exec, fetch, reached};
use serde_json::{Value, json};
use skep::lab::{Host, WHOAMI_IMAGE};
use std::collections::BTreeSet;

/// Tasks and plain containers in all subnets of a network meet: by address, by name and by virtual address, in both families.
pub async fn several_subnets(swarm: &Swarm) {
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[2]);
    // By the API: the CLI posts the subnets in an order of chance.
    let create = json!({
        "Name": "wide", "Driver": "overlay", "Attachable": true, "EnableIPv6": true, "IPAM": { "Config": [
            { "Subnet": "192.168.90.0/29", "Gateway": "192.168.90.6" },
            { "Subnet": "172.29.40.0/24", "Gateway": "172.29.40.254", "IPRange": "172.29.40.128/25" },
            { "Subnet": "fd00:90::/64" },
        ] },
    });
    ok(&post(manager, "/networks/create", &create).await);
    swarm.service("wide", 6, None, json!({ "Networks": [{ "Target": "wide" }] })).await;
    let tasks = swarm.running("wide", 6).await;
    let of_tasks: Vec<(String, String)> = tasks.iter().map(addresses).collect();
    let small = of_tasks.iter().filter(|(four, _)| four.starts_with("192.168.90.") && four.ends_with("/29")).count();
    let large = of_tasks.iter().filter(|(four, _)| in_range(four.strip_suffix("/24").unwrap_or_default())).count();
    assert_eq!((small, large), (4, 2), "gateway, virtual address and four tasks fill the first one: {of_tasks:?}");

    let run = |name: &str, more: &str| format!("run -d --name {name} --network wide {more} {WHOAMI_IMAGE}");
    worker.docker_run(&run("far", "--ip 172.29.40.7")).await.expect("an address that was asked for");
    manager.docker_run(&run("drawn", "")).await.expect("a drawn address");
    let drawn = address(manager, "drawn", "wide").await;
    assert!(in_range(&drawn), "{drawn}");
    for (four, six) in &of_tasks {
        let (four, six) = (four.split('/').next().expect("an address"), six.split('/').next().expect("an address"));
        assert!(reached(worker, "far", four).await.contains("172.29.40.7"), "the client's own address");
        assert!(
            reached(manager, "drawn", &format!("[{six}]")).await.contains("fd00:90::ac1d:28"),
            "likewise in the other family"
        );
    }
    for host in &swarm.hosts {
        let task = container_of(host, "wide").await.expect("two on each node");
        for name in ["far", "drawn", "wide", "[fd00:90::ac1d:2807]"] {
            reached(host, &task, name).await;
        }
    }
    // The virtual address is in the first subnet, its clients and servers are in both. A ping is translated by no socket call.
    let service = get(manager, "/services/wide").await;
    let vips: Vec<&str> =
        service["Endpoint"]["VirtualIPs"].as_array().expect("addresses").iter().filter_map(|vip| vip["Addr"].as_str()).collect();
    assert!(vips[0].starts_with("192.168.90."), "{vips:?}");
    within(20, "every task to answer by the virtual address", || async {
        let mut servers = BTreeSet::new();
        for _ in 0..30 {
            let answer = fetch(worker, "far", "wide").await?;
            servers.insert(answer.split(' ').next().unwrap_or_default().to_owned());
        }
        anyhow::ensure!(servers.len() == 6, "{servers:?}");
        Ok(())
    })
    .await;
    for vip in &vips {
        let vip = vip.split('/').next().expect("an address");
        exec(worker, "far", &["ping", "-c1", "-W3", vip]).await.expect("a virtual address answers");
    }
    let shown = get(manager, "/networks/wide").await;
    let configs = shown["IPAM"]["Config"].as_array().expect("subnets");
    assert_eq!(configs.len(), 3, "{shown:#}");
    assert_eq!((&configs[1]["Gateway"], &configs[1]["IPRange"]), (&json!("172.29.40.254"), &json!("172.29.40.128/25")));
    let containers = shown["Containers"].as_object().expect("of this node");
    assert!(containers.values().any(|c| c["Name"] == "drawn" && c["IPv4Address"] == format!("{drawn}/24")), "{shown:#}");

    a_service_joins_and_leaves(swarm).await;
    manager.docker_run("service rm wide").await.expect("service rm");
    manager.docker_run("rm -f drawn").await.expect("rm");
    worker.docker_run("rm -f far").await.expect("rm");
    within(15, "the network to be free", || async { manager.docker_run("network rm wide").await.map(drop) }).await;
}

fn in_range(address: &str) -> bool {
    let last = address.strip_prefix("172.29.40.").and_then(|last| last.parse::<u8>().ok());
    last.is_some_and(|last| (128..254).contains(&last))
}

/// The addresses of a task on its only network.
fn addresses(task: &Value) -> (String, String) {
    let all = task["NetworksAttachments"][0]["Addresses"].as_array().expect("addresses");
    let text = |index: usize| all[index].as_str().expect("an address").to_owned();
    (text(0), text(1))
}

/// `docker service update --network-add` and `--network-rm`: the task is replaced by one that reaches the network, or does not.
async fn a_service_joins_and_leaves(swarm: &Swarm) {
    let manager = &swarm.hosts[0];
    swarm.service("roam", 1, None, json!({})).await;
    let mut before = swarm.running("roam", 1).await[0]["ID"].clone();
    for (flag, reaches) in [("--network-add", true), ("--network-rm", false)] {
        manager.docker_run(&format!("service update -q --detach {flag} wide roam")).await.expect("updated");
        let task = within(30, "another task", || async {
            let task = swarm.running("roam", 1).await.remove(0);
            anyhow::ensure!(task["ID"] != before, "{task:#}");
            Ok(task)
        })
        .await;
        let host = host_of(swarm, &task).await;
        let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("a container").to_owned();
        before = task["ID"].clone();
        if reaches {
            reached(host, &container, "far").await;
        } else {
            fetch(host, &container, "172.29.40.7").await.expect_err("no way to the network any more");
        }
    }
    manager.docker_run("service rm roam").await.expect("service rm");
}

async fn host_of<'a>(swarm: &'a Swarm, task: &Value) -> &'a Host {
    for host in &swarm.hosts {
        if task["NodeID"] == swarm.node_id(host).await.as_str() {
            return host;
        }
    }
    panic!("the task is on no host: {task:#}");
}
