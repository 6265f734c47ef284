//! What others do to the host's firewall and engine breaks nothing.

use super::adoption::Stage;
use super::*;
use skep::lab::EngineRoot;

#[tokio::test(flavor = "multi_thread")]
async fn firewall_reloads_and_an_engine_that_restarts_break_nothing() {
    let mut stage = Stage::set("kf", AUTO).await;
    // Containers of an engine that is told so outlive it.
    for host in &stage.swarm.hosts {
        std::fs::write(host.dir().join("engine.json"), r#"{"live-restore":true}"#).expect("settings of the engine");
        let pid = host.run("cat /run/engine.pid").await.expect("a pid file");
        host.run(&format!("kill -HUP {pid}")).await.expect("told");
        within(10, "the engine to know", || async {
            let info = get_engine(host).await?;
            anyhow::ensure!(info["LiveRestoreEnabled"] == true, "{:#}", info["LiveRestoreEnabled"]);
            Ok(())
        })
        .await;
    }
    for host in &stage.swarm.hosts {
        host.run("iptables -P FORWARD DROP").await.expect("iptables");
        host.run("ip6tables -P FORWARD DROP").await.expect("ip6tables");
    }
    stage.goes_on("with FORWARD at DROP").await;
    for host in &stage.swarm.hosts {
        host.run("nft flush ruleset").await.expect("nft");
    }
    stage.goes_on("without any rule").await;
    for host in &mut stage.swarm.hosts {
        host.stop_engine().await.expect("stopped");
    }
    stage.goes_on("without an engine").await;
    for host in &mut stage.swarm.hosts {
        host.start_engine(&EngineRoot::Machine).await.expect("back");
    }
    stage.goes_on("with the engines back").await;
    serves(&stage.swarm.hosts, &["8080/tcp", "7000/tcp"]).await;
    stage.nobody_noticed().await;
}

async fn get_engine(host: &Host) -> anyhow::Result<Value> {
    skep::http::UnixClient::new(host.engine_socket()).get("/info").await?.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_engine_restart_that_ends_its_containers_everything_serves_again() {
    let mut swarm = swarm("ke", 2, AUTO).await;
    let client = client(&swarm).await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    swarm.running("web", 2).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &mut swarm.hosts {
        host.stop_engine().await.expect("stopped");
        host.start_engine(&EngineRoot::Machine).await.expect("back");
    }
    swarm.running("web", 2).await;
    serves(&swarm.hosts, &["8080/tcp"]).await;
    for host in &swarm.hosts {
        let before = count(host, "port_new").await;
        within(20, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
        // It counts at its next look.
        within(10, "the kernel to have served it", || async {
            anyhow::ensure!(count(host, "port_new").await > before, "{before} before and after");
            Ok(())
        })
        .await;
    }
    client.stop().await;
    swarm.stop().await;
}
