//! Firewall reloads and engine restarts break no connection.

use super::adoption::LoadFixture;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn firewall_reloads_and_an_engine_restart_break_no_connection() {
    let mut fixture = LoadFixture::set_up("kf", AUTO).await;
    // With this setting containers outlive the engine.
    for host in &fixture.swarm.hosts {
        std::fs::write(host.dir().join("engine.json"), r#"{"live-restore":true}"#).expect("settings of the engine");
        let pid = host.run("cat /run/engine.pid").await.expect("a pid file");
        host.run(&format!("kill -HUP {pid}")).await.expect("reloads");
        within(10, "the engine to apply the setting", || async {
            let info = get_engine(host).await?;
            anyhow::ensure!(info["LiveRestoreEnabled"] == true, "{:#}", info["LiveRestoreEnabled"]);
            Ok(())
        })
        .await;
    }
    for host in &fixture.swarm.hosts {
        host.run("iptables -P FORWARD DROP").await.expect("iptables");
        host.run("ip6tables -P FORWARD DROP").await.expect("ip6tables");
    }
    fixture.answers_requests("with FORWARD at DROP").await;
    for host in &fixture.swarm.hosts {
        host.run("nft flush ruleset").await.expect("nft");
    }
    fixture.answers_requests("without any rule").await;
    for host in &mut fixture.swarm.hosts {
        host.stop_engine().await.expect("stopped");
    }
    fixture.answers_requests("without an engine").await;
    for host in &mut fixture.swarm.hosts {
        host.start_engine(&super::super::lab::engine_root()).await.expect("back");
    }
    fixture.answers_requests("with the engines back").await;
    serves(&fixture.swarm.hosts, &["8080/tcp", "7000/tcp"]).await;
    fixture.expect_no_failure().await;
}

/// Review finding 4: a firewall that lets nothing in by default, as ufw and firewalld have it, needs to let in the port of the swarm and
/// no other one. (`skep doctor` names that port where it is missing: `swarm::doctor`.)
#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_let_in_only_the_port_of_the_swarm_join_and_serve_published_ports() {
    let swarm = hosts("ki", 2, AUTO).await;
    for host in &swarm.hosts {
        for rule in [
            "-A INPUT -i lo -j ACCEPT",
            "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
            "-A INPUT -p tcp --dport 2377 -j ACCEPT",
            "-A INPUT -p udp --dport 2377 -j ACCEPT",
            "-P INPUT DROP",
            "-P FORWARD DROP",
        ] {
            host.run(&format!("iptables {rule}")).await.expect(rule);
        }
    }
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    ok(&join(&swarm.hosts[1], swarm.hosts[0].address(), &token).await);
    swarm.ready(2).await;
    let client = client(&swarm).await;
    let ports = json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080 },
        { "Protocol": "udp", "TargetPort": 5301, "PublishedPort": 8080 },
    ]);
    create(&swarm, "web", 2, ports).await;
    for task in &swarm.running("web", 2).await {
        echo(&swarm, task, 5301).await;
    }
    serves(&swarm.hosts, &["8080/tcp", "8080/udp"]).await;
    for host in &swarm.hosts {
        let to = std::net::SocketAddr::new(host.address().into(), 8080);
        within(20, "the port to answer", || ask(&client, to)).await;
        within(20, "tasks of both nodes to answer datagrams", || async {
            let mut tasks = std::collections::BTreeSet::new();
            for _ in 0..20 {
                let (task, seen, _) = ask_udp(&client, to, b"x".to_vec()).await?;
                anyhow::ensure!(seen.starts_with(&format!("{}:", client.address())), "the task sees {seen}");
                tasks.insert(task);
            }
            anyhow::ensure!(tasks.len() == 2, "{tasks:?}");
            Ok(())
        })
        .await;
    }
    client.stop().await;
    swarm.stop().await;
}

async fn get_engine(host: &Host) -> anyhow::Result<Value> {
    skep::http::UnixClient::new(host.engine_socket()).get("/info").await?.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_served_again_after_an_engine_restart_that_ends_its_containers() {
    let mut swarm = swarm("ke", 2, AUTO).await;
    let client = client(&swarm).await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    swarm.running("web", 2).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &mut swarm.hosts {
        host.stop_engine().await.expect("stopped");
        host.start_engine(&super::super::lab::engine_root()).await.expect("back");
    }
    swarm.running("web", 2).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &swarm.hosts {
        let before = count(host, "port_new").await;
        within(20, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
        // The daemon reads the counter at its next reconciliation.
        within(10, "the kernel to have served it", || async {
            anyhow::ensure!(count(host, "port_new").await > before, "{before} before and after");
            Ok(())
        })
        .await;
    }
    client.stop().await;
    swarm.stop().await;
}
