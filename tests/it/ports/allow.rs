//! The labels `skep.allow` and `skep.affinity` of published ports.

use super::*;
use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::TcpStream;

/// A service on TCP 80 and UDP 5301 with these labels.
async fn labelled(swarm: &Swarm, replicas: usize, labels: Value) {
    let spec = json!({
        "Name": "web",
        "Labels": labels,
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 } },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "EndpointSpec": { "Ports": [
            { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080 },
            { "Protocol": "udp", "TargetPort": 5301, "PublishedPort": 8080 },
        ] },
    });
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
    for task in &swarm.running("web", replicas).await {
        echo(swarm, task, 5301).await;
    }
}

/// Replaces the service's labels.
async fn relabel(swarm: &Swarm, labels: Value) -> skep::http::HttpReply {
    let service = get(&swarm.hosts[0], "/services/web").await;
    let mut spec = service["Spec"].clone();
    spec["Labels"] = labels;
    post(&swarm.hosts[0], &format!("/services/web/update?version={}", service["Version"]["Index"]), &spec).await
}

async fn refused(swarm: &Swarm) -> u64 {
    let shown = status(&swarm.hosts[0]).await;
    shown["ports"].as_array().expect("ports").iter().filter_map(|p| p["refused"].as_u64()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_sources_on_the_list_and_the_node_itself_reach_a_port() {
    let swarm = swarm("pa", 1, "").await;
    dual_stack(&swarm).await;
    let (allowed, refused_client) = (client(&swarm).await, swarm.lab.host("refused", 8).await.expect("client"));
    v6(&refused_client, 8).await;
    labelled(&swarm, 1, json!({ "skep.allow": format!("192.0.2.9, {}", v6_of(9)) })).await;

    for address in addresses(&swarm) {
        let to = SocketAddr::new(address, 8080);
        within(10, "the client on the list to be served", || async {
            ask(&allowed, to).await?;
            ask_udp(&allowed, to, b"x".to_vec()).await
        })
        .await;
        let before = refused(&swarm).await;
        let error = inside(of_host(&refused_client), move || {
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.read(&mut [0; 8])
        })
        .await
        .expect_err("no service");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{to}: at once, by a reset");
        assert!(ask_udp(&refused_client, to, b"x".to_vec()).await.is_err(), "{to}: UDP as well");
        within(5, "both to be counted", || async {
            let now = refused(&swarm).await;
            anyhow::ensure!(now >= before + 2, "{before} to {now}");
            Ok(())
        })
        .await;
        ask(&swarm.hosts[0], to).await.unwrap_or_else(|e| panic!("the node itself by {to}: {e:#}"));
        ask_udp(&swarm.hosts[0], to, b"x".to_vec()).await.unwrap_or_else(|e| panic!("the node itself by {to}: {e:#}"));
    }
    ask(&swarm.hosts[0], (Ipv4Addr::LOCALHOST, 8080).into()).await.expect("the node itself on loopback");

    let reply = relabel(&swarm, json!({ "skep.allow": "192.0.2.0/24;everybody" })).await;
    assert_eq!(reply.status, 400);
    assert!(said(&reply).contains("192.0.2.0/24,2001:db8::/32"), "the message has an example: {}", said(&reply));
    ok(&relabel(&swarm, json!({ "skep.allow": "192.0.2.0/28, fd99::/64" })).await);
    for address in addresses(&swarm) {
        let to = SocketAddr::new(address, 8080);
        within(10, "the other client to be served", || async {
            ask(&refused_client, to).await?;
            ask_udp(&refused_client, to, b"x".to_vec()).await
        })
        .await;
    }
    for host in [allowed, refused_client] {
        host.stop().await;
    }
    swarm.stop().await;
}

/// Checks that a host knows that all tasks listen, and that each of its loops has applied that: a client keeps its task only
/// while the set of backends stays.
async fn settled(host: &Host, tasks: usize) -> anyhow::Result<()> {
    let dump = dump(host).await?;
    let ports = dump["view"]["cluster"]["ports"].as_array().cloned().unwrap_or_default();
    let listen = |port: &Value| {
        port["backends"].as_array().is_some_and(|all| all.len() == tasks && all.iter().all(|b| b["listens"]["v4"] == true))
    };
    anyhow::ensure!(ports.len() == 2 && ports.iter().all(listen), "{ports:#?}");
    let (newest, applied) = (&dump["view"]["revision"], &dump["status"]["applied"]);
    let behind = applied.as_object().into_iter().flatten().find(|(_, revision)| *revision != newest);
    anyhow::ensure!(behind.is_none(), "{behind:?} is not at {newest}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_affinity_keeps_its_task_on_every_node() {
    let swarm = swarm("pf", 2, "").await;
    let client = client(&swarm).await;
    labelled(&swarm, 4, json!({ "skep.affinity": "source" })).await;
    for host in &swarm.hosts {
        within(20, "all tasks to be behind both ports", || settled(host, 4)).await;
    }
    let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
    for host in &swarm.hosts {
        let to = SocketAddr::new(host.address().into(), 8080);
        for _ in 0..6 {
            let answer = ask(&client, to).await.expect("TCP");
            tcp.insert(answer.split_whitespace().next().unwrap_or_default().to_owned());
            udp.insert(ask_udp(&client, to, b"x".to_vec()).await.expect("UDP").0);
        }
    }
    assert_eq!((tcp.len(), udp.len()), (1, 1), "{tcp:?} {udp:?}");
    client.stop().await;
    swarm.stop().await;
}
