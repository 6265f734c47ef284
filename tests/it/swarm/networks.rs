//! Networks that users shape: plain containers on them, their options, and `ingress` made again.

use super::super::lab::engine_root;
use super::kit::*;
use super::providers::programs_read_the_swarm;
use super::subnets::several_subnets;
use serde_json::{Value, json};
use skep::lab::{Host, WHOAMI_IMAGE, output};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub async fn exec(host: &Host, container: &str, command: &[&str]) -> anyhow::Result<String> {
    output(host.docker().args(["exec", container]).args(command)).await
}

/// What a container gets from a web server: the server's own name, then the client's address as it sees it.
pub async fn fetch(host: &Host, container: &str, server: &str) -> anyhow::Result<String> {
    exec(host, container, &["timeout", "3", "wget", "-q", "-O", "-", &format!("http://{server}/")]).await
}

/// As [`fetch`], once it works.
pub async fn reached(host: &Host, container: &str, server: &str) -> String {
    within(15, &format!("{server} to answer {container}"), || fetch(host, container, server)).await
}

pub async fn container_of(host: &Host, service: &str) -> Option<String> {
    let filter = format!("label=com.docker.swarm.service.name={service}");
    let text = output(host.docker().args(["ps", "-q", "--filter", &filter])).await.expect("docker ps");
    text.lines().next().map(str::to_owned)
}

/// The address that the engine gave a container on a network.
pub async fn address(host: &Host, container: &str, network: &str) -> String {
    let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    output(host.docker().args(["inspect", "-f", &format, container])).await.expect("inspect").trim().to_owned()
}

/// The plain containers that the managers know, as tasks.
async fn attachments(manager: &Host) -> Vec<Value> {
    let filter = "%7B%22runtime%22%3A%7B%22attachment%22%3Atrue%7D%7D";
    get(manager, &format!("/tasks?filters={filter}")).await.as_array().cloned().unwrap_or_default()
}

async fn refused(host: &Host, command: &str) -> String {
    host.docker_run(command).await.expect_err(command).to_string()
}

#[tokio::test]
async fn plain_containers_attach_on_any_node_and_meet_services_by_name() {
    let mut swarm = swarm("att", 3, "").await;
    let manager = &swarm.hosts[0];
    manager
        .docker_run("network create -d overlay --attachable --subnet 172.28.5.0/24 --ip-range 172.28.5.128/25 back")
        .await
        .expect("back");
    manager.docker_run("network create -d overlay shut").await.expect("shut");
    swarm.service("web", 2, None, json!({ "Networks": [{ "Target": "back", "Aliases": ["site"] }] })).await;
    swarm.running("web", 2).await;

    // On a worker that knows nothing of the network yet, and on a manager.
    let worker = &swarm.hosts[2];
    worker
        .docker_run(&format!("run -d --name one --network back --network-alias ali {WHOAMI_IMAGE}"))
        .await
        .expect("run on a worker");
    manager
        .docker_run(&format!("run -d --name two --network back --ip 172.28.5.9 {WHOAMI_IMAGE}"))
        .await
        .expect("run with an address");
    assert_eq!(address(manager, "two", "back").await, "172.28.5.9");
    let one = address(worker, "one", "back").await;
    assert!(
        one.strip_prefix("172.28.5.").is_some_and(|last| last.parse::<u8>().is_ok_and(|last| last >= 128)),
        "in the range: {one}"
    );
    for name in ["one", "ali", "one.back", &one] {
        assert!(reached(manager, "two", name).await.contains("172.28.5.9"), "the client's own address");
    }
    for name in ["web", "site", "tasks.web"] {
        reached(worker, "one", name).await;
        reached(manager, "two", name).await;
    }
    for host in &swarm.hosts {
        if let Some(web) = container_of(host, "web").await {
            reached(host, &web, "ali").await;
            reached(host, &web, "two").await;
        }
    }
    let shown = manager.docker_run("network inspect -v back").await.expect("inspect");
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let plain = shown[0]["Services"][""]["Tasks"].as_array().expect("plain containers");
    let names: Vec<&str> = plain.iter().filter_map(|task| task["Name"].as_str()).collect();
    assert!(names.contains(&"one") && names.contains(&"two"), "{shown:#}");
    assert_eq!(shown[0]["Services"]["web"]["Tasks"].as_array().map(Vec::len), Some(2), "{shown:#}");
    let all =
        shown[0]["Services"].as_object().expect("services").values().filter_map(|service| service["Tasks"].as_array()).flatten();
    let nodes: BTreeSet<&str> = all.filter_map(|task| task["Info"]["Host IP"].as_str()).collect();
    let peers: BTreeSet<&str> =
        shown[0]["Peers"].as_array().into_iter().flatten().filter_map(|peer| peer["IP"].as_str()).collect();
    assert!(nodes.len() >= 2 && peers == nodes, "{shown:#}");
    let containers = shown[0]["Containers"].as_object().expect("containers of this node");
    assert!(containers.values().any(|c| c["Name"] == "two" && c["IPv4Address"] == "172.28.5.9/24"), "{shown:#}");

    programs_read_the_swarm(&swarm, "back").await;

    // What is refused, in Docker's words, on either kind of node.
    let words =
        "Could not attach to network shut: rpc error: code = PermissionDenied desc = network shut not manually attachable";
    for host in [manager, worker] {
        let error = refused(host, &format!("run --rm --network shut {WHOAMI_IMAGE} true")).await;
        assert!(error.contains(words), "{error}");
        let error = refused(host, &format!("run --rm --network nosuch {WHOAMI_IMAGE} true")).await;
        assert!(error.contains("network nosuch not found"), "{error}");
    }
    let taken = refused(worker, &format!("run --rm --network back --ip 172.28.5.9 {WHOAMI_IMAGE} true")).await;
    assert!(taken.contains("Address already in use"), "{taken}");
    let held = refused(manager, "network rm back").await;
    assert!(held.contains("is in use by"), "{held}");

    // A client of before API 1.25 names the networks beside the template.
    let posted = json!({
        "Name": "old", "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 } },
        "Networks": [{ "Target": "back", "Aliases": ["older"] }],
    });
    ok(&post(manager, "/v1.24/services/create", &posted).await);
    reached(worker, "one", "older").await;
    manager.docker_run("service rm old").await.expect("rm");

    // At run time, and isolated before and after.
    worker.docker_run(&format!("run -d --name late {WHOAMI_IMAGE}")).await.expect("on the engine's bridge");
    assert!(fetch(worker, "late", "172.28.5.9").await.is_err(), "not attached yet");
    worker.docker_run("network connect --alias later back late").await.expect("connect");
    reached(manager, "two", "later").await;
    reached(worker, "late", "172.28.5.9").await;
    worker.docker_run("network disconnect back late").await.expect("disconnect");
    assert!(fetch(worker, "late", "172.28.5.9").await.is_err(), "attached no more");
    within(10, "the name to be gone", || async {
        anyhow::ensure!(exec(manager, "two", &["nslookup", "-type=a", "later"]).await.is_err());
        Ok(())
    })
    .await;

    // The container outlives the daemon, and keeps its address; started again it is reached by its name.
    swarm.hosts[2].stop_daemon(false).await.expect("stops");
    reached(&swarm.hosts[0], "two", &one).await;
    start(&mut swarm.hosts[2]).await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[2]);
    reached(manager, "two", "one").await;
    assert_eq!(address(worker, "one", "back").await, one);
    worker.docker_run("restart -t 0 one").await.expect("restart");
    reached(manager, "two", "one").await;
    worker.docker_run("rm -f one late").await.expect("rm");
    within(15, "the managers to forget the container", || async {
        let known = attachments(manager).await;
        anyhow::ensure!(known.len() == 1, "{known:#?}");
        Ok(())
    })
    .await;

    // A network that only a plain container of another node holds.
    worker.docker_run(&format!("run -d --name one --network back {WHOAMI_IMAGE}")).await.expect("run again");
    manager.docker_run("service rm web").await.expect("service rm");
    manager.docker_run("rm -f two").await.expect("rm");
    let held = refused(manager, "network rm back").await;
    assert!(held.contains("is in use by task"), "{held}");
    worker.docker_run("rm -f one").await.expect("rm");
    within(15, "the network to be free", || async { manager.docker_run("network rm back").await.map(drop) }).await;

    plain_containers_have_both_families(&swarm.hosts[0], &swarm.hosts[2]).await;
    several_subnets(&swarm).await;
    services_use_the_network_of_their_node(&swarm).await;
    // Without a manager there is an answer within a bound.
    let manager = &swarm.hosts[0];
    manager.docker_run("network create -d overlay --attachable left").await.expect("left");
    swarm.hosts[0].stop_daemon(false).await.expect("stops");
    let asked = Instant::now();
    let error = refused(&swarm.hosts[2], &format!("run --rm --network left {WHOAMI_IMAGE} true")).await;
    assert!(error.contains("no manager of the swarm gave an address"), "{error}");
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    swarm.stop().await;
}

/// A container's addresses of both families on a network, as the engine has them.
async fn both_addresses(host: &Host, container: &str, network: &str) -> (String, String) {
    let endpoint = format!("index .NetworkSettings.Networks \"{network}\"");
    let format = format!("{{{{({endpoint}).IPAddress}}}} {{{{({endpoint}).GlobalIPv6Address}}}}");
    let printed = output(host.docker().args(["inspect", "-f", &format, container])).await.expect("inspect");
    let (four, six) = printed.trim().split_once(' ').expect("two addresses");
    (four.to_owned(), six.to_owned())
}

/// On a network of both families containers get an address of each, begun at the same time too, or the one that was asked for.
async fn plain_containers_have_both_families(manager: &Host, worker: &Host) {
    let create = "network create -d overlay --attachable --ipv6 --subnet 192.168.66.0/24 --subnet fd00:77::/64 six";
    manager.docker_run(create).await.expect("six");
    let run = |host, options: &str| {
        let command = format!("run -d --network six {options} {WHOAMI_IMAGE}");
        async move { Host::docker_run(host, &command).await }
    };
    let (a, b, c) =
        tokio::join!(run(worker, "--name six-a"), run(worker, "--name six-b"), run(manager, "--name six-c --ip6 fd00:77::50"),);
    for started in [a, b, c] {
        started.expect("run");
    }
    let of_c = both_addresses(manager, "six-c", "six").await;
    assert_eq!(of_c, ("192.168.66.80".to_owned(), "fd00:77::50".to_owned()));
    for name in ["six-a", "six-b"] {
        let (four, six) = both_addresses(worker, name, "six").await;
        let number: u16 = four.strip_prefix("192.168.66.").and_then(|last| last.parse().ok()).expect("an address");
        assert_eq!(six, format!("fd00:77::{number:x}"), "{four}");
        let seen = reached(manager, "six-c", &format!("[{six}]")).await;
        assert!(seen.contains("fd00:77::50"), "the client's own address: {seen}");
        reached(worker, name, "[fd00:77::50]").await;
    }
    let other = refused(worker, &format!("run --rm --network six --ip 192.168.66.9 --ip6 fd00:77::a {WHOAMI_IMAGE} true")).await;
    assert!(other.contains("192.168.66.10 belongs to fd00:77::a"), "{other}");
    let outside = refused(manager, &format!("run --rm --network six --ip6 fd00:78::a {WHOAMI_IMAGE} true")).await;
    assert!(outside.contains("no host address of network six"), "{outside}");
    let taken = refused(worker, &format!("run --rm --network six --ip6 fd00:77::50 {WHOAMI_IMAGE} true")).await;
    assert!(taken.contains("Address already in use"), "{taken}");
    worker.docker_run("rm -f six-a six-b").await.expect("rm");
    manager.docker_run("rm -f six-c").await.expect("rm");
}

/// Case 18 of the reports: a service on the network `host`.
async fn services_use_the_network_of_their_node(swarm: &Swarm) {
    let manager = &swarm.hosts[0];
    let create = format!("service create -q --detach --name bare --mode global --network host {WHOAMI_IMAGE}");
    manager.docker_run(&create).await.expect("201");
    swarm.running("bare", swarm.hosts.len()).await;
    for host in &swarm.hosts {
        let container = container_of(host, "bare").await.expect("a container on each node");
        let shown =
            output(host.docker().args(["inspect", "-f", "{{.HostConfig.NetworkMode}}", &container])).await.expect("inspect");
        assert_eq!(shown.trim(), "host");
        assert!(
            exec(host, &container, &["ls", "/sys/class/net"]).await.expect("devices").contains("docker0"),
            "the node's devices"
        );
    }
    let service = get(manager, "/services/bare").await;
    assert!(service["Endpoint"]["VirtualIPs"].is_null(), "an entry without an address breaks Prometheus: {service:#}");
    let target = service["Spec"]["TaskTemplate"]["Networks"][0]["Target"].as_str().expect("a target").to_owned();
    let network = get(manager, &format!("/networks/{target}")).await;
    assert_eq!((&network["Name"], &network["Scope"], &network["Driver"]), (&json!("host"), &json!("swarm"), &json!("host")));
    let tasks = get(manager, "/tasks?filters=%7B%22service%22%3A%5B%22bare%22%5D%7D").await;
    assert_eq!(tasks[0]["NetworksAttachments"][0]["Network"]["Spec"]["Name"], "host", "{tasks:#}");
    assert!(tasks[0]["NetworksAttachments"][0]["Addresses"].is_null(), "{tasks:#}");
    let listed = manager.docker_run("network ls --filter name=host --format {{.Name}}").await.expect("network ls");
    assert_eq!(listed.lines().filter(|line| *line == "host").count(), 1, "the engine's own, once: {listed}");
    let pretty = manager.docker_run("service inspect --pretty bare").await.expect("inspect");
    assert!(pretty.contains("Networks: host"), "{pretty}");
    for (options, said) in [
        ("--publish 8099:80", "container cannot be disconnected from host network or connected to host network"),
        ("--network six", "container cannot be disconnected from host network or connected to host network"),
    ] {
        let error =
            refused(manager, &format!("service create --detach --name worse --network host {options} {WHOAMI_IMAGE}")).await;
        assert!(error.contains(said), "{error}");
    }
    // What listens on the node itself keeps its port, and is named.
    manager.docker_run(&format!("service create -q --detach --name front -p 80:80 {WHOAMI_IMAGE}")).await.expect("front");
    swarm.running("front", 1).await;
    for host in &swarm.hosts {
        within(15, "the port that is taken to be named", || async {
            let mut command = host.command(SKEP);
            let shown = output(command.arg("status").arg("--run-dir").arg(host.run_dir())).await?;
            let line = shown.lines().find(|line| line.contains("80/tcp") && line.contains("taken: ")).map(str::to_owned);
            anyhow::ensure!(line.is_some(), "{shown}");
            Ok(())
        })
        .await;
        let answer = ask(manager, (host.address(), 80).into()).await.expect("the node's own server");
        assert!(answer.starts_with(&format!("{} ", host.name())), "{answer}");
    }
    manager.docker_run("service rm front").await.expect("rm");
    containers_reach_what_is_outside(manager, &swarm.hosts[1]).await;
    let none = refused(manager, &format!("service create --detach --name worse --network none {WHOAMI_IMAGE}")).await;
    assert!(none.contains("network none not found"), "{none}");
    manager.docker_run("service rm bare").await.expect("rm");
}

/// A container of an overlay network reaches a server outside of the swarm with its node's address; not of an internal one.
async fn containers_reach_what_is_outside(manager: &Host, outside: &Host) {
    manager.docker_run("network create -d overlay --attachable --internal shut-in").await.expect("internal");
    let ask = |network: &str| {
        format!("run --rm --network {network} {WHOAMI_IMAGE} timeout 3 wget -q -O - http://{}/", outside.address())
    };
    let seen = manager.docker_run(&ask("six")).await.expect("egress");
    assert!(seen.starts_with(&format!("{} ", outside.name())) && seen.contains(&manager.address().to_string()), "{seen}");
    let error = refused(manager, &ask("shut-in")).await;
    assert!(error.contains("unreachable"), "{error}");
}

/// A bridge for the way outside that the user made before the node joined.
const OWN_BRIDGE: &str = "network create --subnet 172.30.250.0/24 -o com.docker.network.bridge.name=docker_gwbridge \
                          -o com.docker.network.bridge.enable_icc=false -o com.docker.network.bridge.enable_ip_masquerade=true docker_gwbridge";

/// A swarm whose nodes have a second network for their tunnels and a bridge of their own; the second one is drained at its join.
async fn swarm_with_a_network_for_tunnels() -> Swarm {
    let swarm = hosts("ing", 2, "").await;
    for (host, number) in swarm.hosts.iter().zip(1..) {
        host.run(&format!("ip addr add 198.51.100.{number}/24 dev eth0")).await.expect("a second address");
        output(host.engine_cli().args(OWN_BRIDGE.split_whitespace())).await.expect("a bridge");
    }
    let [manager, worker] = &swarm.hosts[..] else { panic!("two hosts") };
    manager.docker_run("swarm init --advertise-addr 192.0.2.1 --data-path-addr 198.51.100.1").await.expect("init");
    let token = worker_token(manager).await;
    let join = "swarm join --availability drain --data-path-addr 198.51.100.2";
    worker.docker_run(&format!("{join} --token {token} 192.0.2.1:2377")).await.expect("join");
    swarm.ready(2).await;
    let node = get(manager, "/nodes/n2").await;
    assert_eq!((&node["Spec"]["Availability"], &node["Status"]["Addr"]), (&json!("drain"), &json!("192.0.2.2")));
    for (host, other) in [(manager, "198.51.100.2:2377"), (worker, "198.51.100.1:2377")] {
        let peers = dump(host).await.expect("dump")["tunnel"]["peers"].to_string();
        assert!(peers.contains(other), "{peers}");
    }
    swarm
}

#[tokio::test]
async fn ingress_is_removed_and_made_again_with_another_subnet() {
    let swarm = swarm_with_a_network_for_tunnels().await;
    let manager = &swarm.hosts[0];
    swarm.service("web", 2, Some(8080), json!({})).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 2).await;
    let own = swarm.node_id(manager).await;
    assert!(swarm.running("web", 2).await.iter().all(|task| task["NodeID"] == own.as_str()), "the other node is drained");
    manager.docker_run("node update --availability active n2").await.expect("active");
    let held = post_rm(manager, "ingress").await;
    assert!(held.contains("ingress network cannot be removed because service"), "{held}");
    manager.docker_run("service rm web").await.expect("service rm");
    within(15, "ingress to be removed", || async {
        let answer = post_rm(manager, "ingress").await;
        anyhow::ensure!(answer.is_empty(), "{answer}");
        Ok(())
    })
    .await;
    let refused = refused(manager, &format!("service create --detach -p 8080:80 {WHOAMI_IMAGE}")).await;
    assert!(refused.contains("service needs ingress network, but no ingress network is present"), "{refused}");
    // One of the nodes has the only address of the first subnet. By the API: the CLI posts subnets in an order of chance.
    let edge = json!({
        "Name": "edge", "Driver": "overlay", "Ingress": true, "Options": { "com.docker.network.driver.mtu": "1300" },
        "IPAM": { "Config": [
            { "Subnet": "192.168.76.0/30", "Gateway": "192.168.76.2" },
            { "Subnet": "192.168.77.0/24", "Gateway": "192.168.77.254" },
        ] },
    });
    ok(&post(manager, "/networks/create", &edge).await);
    swarm.service("web", 2, Some(8080), json!({})).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 2).await;
    for host in &swarm.hosts {
        within(15, "the port to answer on every node", || async { ask(manager, (host.address(), 8080).into()).await }).await;
        let container = container_of(host, "web").await.expect("one on each node");
        let device = exec(host, &container, &["cat", "/sys/class/net/eth0/mtu"]).await.expect("an MTU");
        assert!(address(host, &container, "edge").await.starts_with("192.168.77."));
        assert_eq!(device.trim(), "1300");
        let routes = exec(host, &container, &["ip", "route"]).await.expect("routes");
        assert!(routes.contains("default via 172.30.250.1 "), "by the user's bridge: {routes}");
    }
    volumes_are_made_where_their_tasks_run(&swarm).await;
    swarm.stop().await;
}

/// A volume of the driver `local` with options is made on the node of each task.
async fn volumes_are_made_where_their_tasks_run(swarm: &Swarm) {
    let mount = "type=volume,source=scratch,target=/data,volume-driver=local,volume-opt=type=tmpfs,volume-opt=device=tmpfs,\
                 volume-opt=o=size=1m,volume-label=team=a";
    let create = format!("service create -q --detach --name scratcher --mode global --mount {mount} {WHOAMI_IMAGE}");
    swarm.hosts[0].docker_run(&create).await.expect("created");
    swarm.running("scratcher", 2).await;
    for host in &swarm.hosts {
        let container = container_of(host, "scratcher").await.expect("one on each node");
        let mounts = exec(host, &container, &["cat", "/proc/mounts"]).await.expect("mounts");
        assert!(mounts.lines().any(|line| line.contains(" /data tmpfs ") && line.contains("size=1024k")), "{mounts}");
        let shown = host.docker_run("volume inspect scratch").await.expect("on this node");
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!((&shown[0]["Options"]["type"], &shown[0]["Labels"]["team"]), (&json!("tmpfs"), &json!("a")));
    }
}

/// The error of a removal; empty if there was none. (The CLI asks before it removes an ingress network.)
async fn post_rm(manager: &Host, network: &str) -> String {
    let client = skep::http::UnixClient::new(manager.skep_socket());
    said(&client.request("DELETE", &format!("/networks/{network}"), None).await.expect("skep answers"))
}

#[tokio::test]
async fn a_plain_container_outlives_its_engine_and_is_let_go_when_its_node_leaves() {
    let mut swarm = swarm("own", 2, "").await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    manager.docker_run("network create -d overlay --attachable --internal --subnet 192.168.50.0/24 back").await.expect("back");
    let keep = format!("run -d --name keep --restart always --network back --ip 192.168.50.20 {WHOAMI_IMAGE}");
    worker.docker_run(&keep).await.expect("run");
    manager.docker_run(&format!("run -d --name ask --network back {WHOAMI_IMAGE}")).await.expect("run");
    reached(manager, "ask", "keep").await;

    swarm.hosts[1].stop_engine().await.expect("stops");
    swarm.hosts[1].start_engine(&engine_root()).await.expect("starts");
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    within(60, "the container to be started and reached again", || fetch(manager, "ask", "keep")).await;
    assert_eq!(address(worker, "keep", "back").await, "192.168.50.20");

    worker.docker_run("swarm leave").await.expect("leave");
    within(15, "the managers to forget the container", || async {
        let known = attachments(manager).await;
        anyhow::ensure!(known.len() == 1, "{known:#?}");
        Ok(())
    })
    .await;
    let running = output(worker.engine_cli().args(["ps", "-q", "--filter", "name=keep"])).await.expect("ps");
    assert!(!running.trim().is_empty(), "it is the user's, and runs on");
    within(15, "the network to be gone from the engine", || async {
        let left = output(worker.engine_cli().args(["network", "ls", "-q", "--filter", "driver=skep"])).await?;
        anyhow::ensure!(left.trim().is_empty(), "{left}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}
