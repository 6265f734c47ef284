//! The network as containers see it, on real engines: names per network, isolation, the port on every node.

use super::kit::*;
use serde_json::json;
use skep::lab::{Host, output};
use std::collections::BTreeSet;

async fn exec(host: &Host, container: &str, command: &[&str]) -> anyhow::Result<String> {
    output(host.docker().args(["exec", container]).args(command)).await
}

async fn container_of(host: &Host, service: &str) -> String {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let text = output(host.docker().args(["ps", "-q", "--filter", &filter])).await.expect("docker ps");
    text.lines().next().expect("a container on this host").to_owned()
}

/// The addresses in the answer of `nslookup`.
pub fn addresses(text: &str) -> BTreeSet<String> {
    let answer = text.split("Name:").skip(1).flat_map(str::lines);
    answer.filter_map(|l| l.strip_prefix("Address")).filter_map(|r| r.split_whitespace().last()).map(str::to_owned).collect()
}

#[tokio::test]
async fn containers_of_a_network_resolve_and_reach_each_other_only() {
    let swarm = swarm("net", 2, "").await;
    for name in ["red", "blue"] {
        ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": name, "Driver": "overlay" })).await);
    }
    swarm.service("web", 2, Some(8080), json!({ "Networks": [{ "Target": "red" }] })).await;
    swarm.service("ask", 2, None, json!({ "Networks": [{ "Target": "red" }] })).await;
    swarm.service("other", 2, None, json!({ "Networks": [{ "Target": "blue" }] })).await;
    for service in ["web", "ask", "other"] {
        let tasks = swarm.running(service, 2).await;
        let nodes: BTreeSet<&str> = tasks.iter().filter_map(|t| t["NodeID"].as_str()).collect();
        assert_eq!(nodes.len(), 2, "{service} is spread over both nodes");
    }
    for host in &swarm.hosts {
        let (ask, other) = (container_of(host, "ask").await, container_of(host, "other").await);
        let found = within(10, "tasks.web to resolve to both tasks", || async {
            let found = addresses(&exec(host, &ask, &["nslookup", "-type=a", "tasks.web"]).await?);
            anyhow::ensure!(found.len() == 2, "{found:?}");
            Ok(found)
        })
        .await;
        let vip = within(10, "web to resolve to its virtual address", || async {
            let vip = addresses(&exec(host, &ask, &["nslookup", "-type=a", "web"]).await?);
            anyhow::ensure!(vip.len() == 1 && vip.is_disjoint(&found), "{vip:?}");
            Ok(vip)
        })
        .await;
        assert_eq!(addresses(&exec(host, &ask, &["nslookup", "-type=a", "web.red"]).await.expect("web.red")), vip);
        let mut backends = BTreeSet::new();
        for address in &found {
            let url = format!("http://{address}/");
            let body =
                exec(host, &ask, &["timeout", "5", "wget", "-q", "-O", "-", &url]).await.expect("web answers on both nodes");
            backends.insert(body.split_whitespace().next().unwrap_or_default().to_owned());
            let foreign = exec(host, &other, &["timeout", "3", "wget", "-q", "-O", "-", &url]).await;
            assert!(foreign.is_err(), "a container of another network reached {address}: {foreign:?}");
        }
        assert_eq!(backends.len(), 2);
        assert!(exec(host, &other, &["nslookup", "-type=a", "web"]).await.is_err(), "a name of another network resolved");
        // The host itself and a container outside the network are not let in.
        for address in &found {
            let target = (address.parse::<std::net::IpAddr>().expect("ip"), 80).into();
            assert!(ask_quick(host, target).await.is_err(), "the host itself reached {address}");
            let plain = output(host.docker().args([
                "run",
                "--rm",
                skep::lab::WHOAMI_IMAGE,
                "timeout",
                "3",
                "wget",
                "-q",
                "-O",
                "-",
                &format!("http://{address}/"),
            ]))
            .await;
            assert!(plain.is_err(), "a plain container reached {address}: {plain:?}");
        }
    }
    swarm.stop().await;
}

/// The engine's resolver keeps names of one label to itself in a container whose resolv.conf has `ndots`.
#[tokio::test]
async fn names_resolve_whatever_resolver_options_a_task_has() {
    let swarm = swarm("opt", 1, "").await;
    let host = &swarm.hosts[0];
    ok(&post(host, "/networks/create", &json!({ "Name": "red", "Driver": "overlay" })).await);
    let red = json!([{ "Target": "red" }]);
    swarm.service("web", 1, None, json!({ "Networks": red })).await;
    swarm.service("idle", 0, None, json!({ "Networks": red })).await;
    let cases = [
        ("plain", json!({}), "web"),
        ("dots", json!({ "Options": ["ndots:2"] }), "web"),
        ("domain", json!({ "Options": ["ndots:2"], "Search": ["corp.test"] }), "web.corp.test"),
    ];
    for (service, config, _) in &cases {
        swarm.service(service, 1, None, json!({ "Networks": red, "ContainerSpec": { "DNSConfig": config } })).await;
    }
    swarm.running("web", 1).await;
    for (service, _, name) in &cases {
        swarm.running(service, 1).await;
        let container = container_of(host, service).await;
        let file = exec(host, &container, &["cat", "/etc/resolv.conf"]).await.expect("resolv.conf");
        assert_eq!(file.contains("ndots:2"), *service == "domain", "{service}: {file}");
        within(20, "the name to resolve", || async {
            let found = addresses(&exec(host, &container, &["nslookup", "-type=a", name]).await?);
            anyhow::ensure!(found.len() == 1, "{service}, {name}: {found:?}");
            Ok(())
        })
        .await;
    }
    // Known, although it has no task: nothing outside is asked, so that there is an answer where nothing outside answers.
    let plain = container_of(host, "plain").await;
    let idle = exec(host, &plain, &["nslookup", "-type=aaaa", "idle"]).await.expect("no error for a type that it does not have");
    assert!(!idle.contains("NXDOMAIN") && addresses(&idle).is_empty(), "{idle}");
    swarm.stop().await;
}

async fn ask_quick(host: &Host, target: std::net::SocketAddr) -> anyhow::Result<String> {
    super::kit::ask(host, target).await
}

#[tokio::test]
async fn the_stock_docker_cli_drives_a_swarm() {
    let swarm = hosts("cli", 2, "").await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    let printed = manager.docker_run("swarm init --advertise-addr 192.0.2.1").await.expect("init");
    let command =
        printed.lines().map(str::trim).find(|l| l.starts_with("docker swarm join")).expect("the command for workers").to_owned();
    worker.docker_run(command.strip_prefix("docker ").expect("docker")).await.expect("the command that init prints works");
    assert!(manager.docker_run("swarm join-token worker").await.expect("join-token").contains("192.0.2.1:2377"));
    let nodes = manager.docker_run("node ls").await.expect("node ls");
    assert!(nodes.contains("Leader") && nodes.lines().count() == 3, "{nodes}");

    manager.docker_run("network create -d overlay back").await.expect("network");
    // Attached, until its progress display ends.
    let create = format!(
        "service create --name web --replicas 4 -p 8080:80 --network back --env A=1 --label x=y --mount type=volume,source=data,target=/data --stop-grace-period 1s {}",
        skep::lab::WHOAMI_IMAGE
    );
    let printed = manager.docker_run(&create).await.expect("service create");
    assert!(printed.contains("converged"), "{printed}");
    assert!(manager.docker_run("service ls").await.expect("service ls").contains("4/4"));
    assert_eq!(manager.docker_run("service ps -q web").await.expect("service ps").lines().count(), 4);
    let inspect = manager.docker_run("service inspect --pretty web").await.expect("inspect");
    assert!(inspect.contains("PublishedPort = 8080"), "{inspect}");
    assert!(manager.docker_run("service scale web=2").await.expect("scale").contains("converged"));
    swarm.running("web", 2).await;
    let networks = worker.docker_run("network ls").await.expect("network ls");
    assert!(!networks.contains("skep"), "skep's networks are listed as overlay: {networks}");
    manager.docker_run("network inspect back").await.expect("network inspect");
    assert!(manager.docker_run("network rm back").await.expect_err("in use").to_string().contains("in use"));

    manager.docker_run("node update --availability drain n2").await.expect("drain");
    within(20, "the drained node to be empty", || async {
        let text = manager.docker_run("node ps -f desired-state=running -q n2").await?;
        anyhow::ensure!(text.trim().is_empty(), "{text}");
        Ok(())
    })
    .await;
    manager.docker_run("node update --availability active n2").await.expect("active");
    manager.docker_run("service rm web").await.expect("rm");
    within(20, "the network to be free", || async { manager.docker_run("network rm back").await.map(drop) }).await;

    // Passed through to the engine: run, exec, logs, build.
    let image = skep::lab::WHOAMI_IMAGE;
    assert_eq!(worker.docker_run(&format!("run --rm {image} echo hello")).await.expect("run").trim(), "hello");
    let context = worker.dir().join("context");
    std::fs::create_dir_all(&context).expect("context");
    std::fs::write(context.join("Dockerfile"), format!("FROM {image}\nRUN echo built > /built\n")).expect("Dockerfile");
    let mut build = worker.docker();
    build.env("DOCKER_BUILDKIT", "0").args(["build", "-q", "-t", "built:1"]).arg(&context);
    output(&mut build).await.expect("build");
    assert_eq!(worker.docker_run("run --rm built:1 cat /built").await.expect("run").trim(), "built");

    for refused in [
        "service create --detach --credential-spec file://x x",
        "service create --detach --mount type=cluster,source=x,target=/y x",
    ] {
        let error = manager.docker_run(refused).await.expect_err(refused).to_string();
        assert!(["not implemented", "501", "not supported"].iter().any(|text| error.contains(text)), "{refused}: {error}");
    }
    swarm.stop().await;
}
