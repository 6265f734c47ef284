//! The routing mesh at its edge: TCP and UDP, IPv4 and IPv6, numbers named and drawn.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

#[tokio::test(flavor = "multi_thread")]
async fn tcp_and_udp_answer_on_every_address_of_every_node() {
    // The user-space ports by themselves: what serves where there is no eBPF datapath.
    let swarm = swarm("pe", 2, "ebpf_datapath = \"off\"").await;
    dual_stack(&swarm).await;
    let client = client(&swarm).await;
    let ports = json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" },
        { "Protocol": "udp", "TargetPort": 5300, "PublishedPort": 8080, "PublishMode": "ingress" },
        { "Protocol": "udp", "TargetPort": 5301, "PublishMode": "ingress" },
        { "Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress" },
    ]);
    create(&swarm, "web", 2, ports.clone()).await;
    let tasks = swarm.running("web", 2).await;
    for task in &tasks {
        echo(&swarm, task, 5300).await;
        echo(&swarm, task, 5301).await;
    }
    let service = get(&swarm.hosts[0], "/services/web").await;
    assert_eq!(service["Spec"]["EndpointSpec"]["Ports"], ports, "the spec keeps its holes");
    assert_eq!(service["Endpoint"]["Spec"]["Ports"], ports);
    let given: Vec<(&str, u64)> = service["Endpoint"]["Ports"]
        .as_array()
        .expect("ports")
        .iter()
        .map(|p| (p["Protocol"].as_str().expect("protocol"), p["PublishedPort"].as_u64().expect("port")))
        .collect();
    assert_eq!(given, [("tcp", 8080), ("udp", 8080), ("udp", 30_000), ("tcp", 30_000)], "drawn once per protocol");

    for address in addresses(&swarm) {
        let (mut udp, mut tcp) = (BTreeSet::new(), BTreeSet::new());
        within(10, "both tasks to answer", || async { tcp_and_udp(&client, address, &mut udp.clone(), &mut tcp.clone()).await })
            .await;
        for _ in 0..4 {
            tcp_and_udp(&client, address, &mut udp, &mut tcp).await.expect("answers");
        }
        assert_eq!((udp.len(), tcp.len()), (2, 2), "{address}: spread over both tasks");
        // As large as datagrams get; the answer has the task's name before it.
        for len in [1400, 9000, 60_000] {
            let word: Vec<u8> = (0..len).map(|i: usize| u8::try_from(i % 251).expect("byte")).collect();
            for _ in 0..2 {
                let (.., echo) = ask_udp(&client, SocketAddr::new(address, 8080), word.clone()).await.expect("large datagrams");
                assert!(echo == word, "{address}: {len} bytes came back otherwise");
            }
        }
    }
    // From the node itself.
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        for host in &swarm.hosts {
            ask(host, SocketAddr::new(address, 8080)).await.expect("TCP on loopback");
            ask_udp(host, SocketAddr::new(address, 8080), b"x".to_vec()).await.expect("UDP on loopback");
        }
    }
    for host in &swarm.hosts {
        within(5, "the ports to be shown", || async {
            let shown = status(host).await["ports"].as_array().expect("ports").clone();
            let states: BTreeMap<String, String> = shown
                .iter()
                .map(|p| (format!("{}/{}", p["port"], p["protocol"].as_str().unwrap_or("?")), p["state"].to_string()))
                .collect();
            let all = ["30000/tcp", "30000/udp", "8080/tcp", "8080/udp"].map(|p| (p.to_owned(), "\"listening\"".to_owned()));
            anyhow::ensure!(states == BTreeMap::from(all), "{states:?}");
            let flows = shown.iter().find(|p| p["protocol"] == "udp" && p["port"] == 8080).expect("shown");
            anyhow::ensure!(flows["connections"].as_u64().is_some_and(|n| n > 0), "flows are counted: {flows}");
            Ok(())
        })
        .await;
    }
    client.stop().await;
    swarm.stop().await;
}

async fn tcp_and_udp(
    client: &Host,
    address: IpAddr,
    udp: &mut BTreeSet<String>,
    tcp: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    for port in [8080, 30_000] {
        let (who, seen, echo) = ask_udp(client, SocketAddr::new(address, port), b"hello".to_vec()).await?;
        anyhow::ensure!(echo == b"hello" && seen.starts_with("10.0.0."), "the node's own address is seen: {seen}");
        udp.insert(who);
        let answer = ask(client, SocketAddr::new(address, port)).await?;
        tcp.insert(answer.split_whitespace().next().unwrap_or_default().to_owned());
    }
    Ok(())
}
