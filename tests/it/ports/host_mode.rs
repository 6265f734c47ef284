//! Host-mode ports: published on the task's node, by its engine.

use super::*;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn a_host_mode_port_reaches_the_nodes_own_task_and_each_node_has_one() {
    let swarm = swarm("ph", 2, "").await;
    let client = client(&swarm).await;
    let ports = json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8083, "PublishMode": "host" },
        { "Protocol": "udp", "TargetPort": 81, "PublishMode": "host" },
    ]);
    create(&swarm, "hp", 3, ports.clone()).await;
    let tasks = swarm.running("hp", 2).await;
    let nodes: BTreeSet<&str> = tasks.iter().filter_map(|t| t["NodeID"].as_str()).collect();
    assert_eq!(nodes.len(), 2, "one on each node");
    within(10, "the third task to report why it waits", || async {
        let all = swarm.tasks("hp").await;
        let waiting = all.iter().find(|t| t["Status"]["State"] == "pending").map(|t| t["Status"]["Err"].clone());
        let words = json!("no suitable node (host-mode port already in use on 2 nodes)");
        anyhow::ensure!(waiting.as_ref() == Some(&words), "{waiting:?}");
        Ok(())
    })
    .await;
    let service = get(&swarm.hosts[0], "/services/hp").await;
    assert_eq!(service["Endpoint"]["Ports"], ports, "a port that the engine chose is only in the task");
    assert!(service["Endpoint"]["VirtualIPs"].is_null());

    for task in &tasks {
        let mut host = &swarm.hosts[0];
        if task["NodeID"] == json!(swarm.node_id(&swarm.hosts[1]).await) {
            host = &swarm.hosts[1];
        }
        let shown: Vec<(&str, u64, u64, &str)> = task["Status"]["PortStatus"]["Ports"]
            .as_array()
            .expect("ports in the task's status")
            .iter()
            .map(|p| {
                let text = |key: &str| p[key].as_str().unwrap_or_default();
                let number = |key: &str| p[key].as_u64().unwrap_or_default();
                (text("Protocol"), number("TargetPort"), number("PublishedPort"), text("PublishMode"))
            })
            .collect();
        let chosen = shown.iter().find(|p| p.0 == "udp").expect("a port that the engine chose").2;
        assert!(chosen >= 30_000, "{chosen}");
        assert_eq!(
            shown,
            [("tcp", 80, 8083, "host"), ("tcp", 80, 8083, "host"), ("udp", 81, chosen, "host"), ("udp", 81, chosen, "host")]
        );
        let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container");
        let answer = ask(&client, SocketAddr::new(host.address().into(), 8083)).await.expect("the node's own task answers");
        let words: Vec<&str> = answer.split_whitespace().collect();
        assert!(container.starts_with(words[0]), "{answer}: not the task of this node");
        assert!(words[1].contains("192.0.2.9"), "the client's own address is seen: {answer}");
        echo(&swarm, task, 81).await;
        let to = SocketAddr::new(host.address().into(), u16::try_from(chosen).expect("port"));
        let (task_id, ..) = ask_udp(&client, to, b"x".to_vec()).await.expect("UDP too");
        assert_eq!(json!(task_id), task["ID"]);
    }
    let listed = swarm.hosts[0].docker_run("service ps hp").await.expect("service ps");
    assert!(listed.contains("*:8083->80/tcp"), "{listed}");

    // An ingress port of the same number is refused; a second service in host mode waits for a node.
    let refused = json!({
        "Name": "no", "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE } },
        "EndpointSpec": { "Ports": [{ "TargetPort": 80, "PublishedPort": 8083 }] },
    });
    let reply = post(&swarm.hosts[0], "/services/create", &refused).await;
    assert_eq!(reply.status, 400);
    assert!(
        said(&reply).contains("port '8083' is already in use by service 'hp'")
            && said(&reply).contains("as a host-published port")
    );
    scale(&swarm, "hp", 1).await;
    swarm.running("hp", 1).await;
    create(&swarm, "next", 1, json!([{ "TargetPort": 80, "PublishedPort": 8083, "PublishMode": "host" }])).await;
    let next = swarm.running("next", 1).await;
    assert_ne!(next[0]["NodeID"], swarm.running("hp", 1).await[0]["NodeID"], "the freed port is on the other node");
    client.stop().await;
    swarm.stop().await;
}

/// moby#45295: a mesh port and a host-mode port of one service; the address of a client is seen on both, whichever private
/// network it is in. The default pool of the swarm is 10.0.0.0/8.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_keeps_its_address_on_a_mesh_port_and_a_host_mode_port_of_one_service() {
    let swarm = swarm("pm", 2, "ebpf_datapath = \"auto\"\n").await;
    let client = client(&swarm).await;
    let networks = [("10.77.0", 16), ("172.20.5", 16), ("192.168.77", 24)];
    for (number, host) in (1..).zip(&swarm.hosts).chain([(9, &client)]) {
        for (network, length) in networks {
            host.run(&format!("ip addr add {network}.{number}/{length} dev eth0")).await.expect("an address");
        }
    }
    let ports = json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8086, "PublishMode": "ingress" },
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8087, "PublishMode": "host" },
    ]);
    create(&swarm, "both", 2, ports).await;
    swarm.running("both", 2).await;
    for host in &swarm.hosts {
        within(30, "the mesh port on the eBPF datapath", || async {
            let ebpf = status(host).await["ebpf"].take();
            anyhow::ensure!(ebpf["ports"].as_array().is_some_and(|all| all.contains(&json!("8086/tcp"))), "{ebpf:#}");
            Ok(())
        })
        .await;
    }
    for (network, _) in networks {
        for number in 1..=2 {
            for port in [8086, 8087] {
                let to: SocketAddr = format!("{network}.{number}:{port}").parse().expect("address");
                let answer = ask(&client, to).await.expect("an answer");
                assert!(answer.contains(&format!("{network}.9")), "{to}: {answer}");
            }
        }
    }
    client.stop().await;
    swarm.stop().await;
}
