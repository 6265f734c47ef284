//! The steps of the demo, in order. Each reports what it does and fails with what it observed.

use super::cluster::{self, DemoCluster};
use super::report::DemoReport;
use super::requests::{Answers, get, node_named, post, running, send_requests, set_availability};
use super::wait::wait;
use super::{site, wire};
use crate::lab::{EngineRoot, Host, WHOAMI_IMAGE, output, whoami_image};
use anyhow::Context as _;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

const REPLICAS: usize = 6;
const PORT: u16 = 8080;
/// Requests to each host.
const REQUESTS: usize = 24;
const SERVICE: &str = "whoami";

pub(super) async fn all(cluster: &mut DemoCluster, root: &EngineRoot, report: &mut DemoReport) -> anyhow::Result<()> {
    start_engines(cluster, root, report).await?;
    start_daemons(cluster, report).await?;
    form_swarm(cluster, report).await?;
    deploy_service(cluster, report).await?;
    drain_node(cluster, report).await?;
    resolve_names(cluster, report).await?;
    count_packets(cluster, report).await?;
    disconnect_node(cluster, report).await?;
    reconnect_node(cluster, report).await?;
    replace_leader(cluster, report).await?;
    site::serve(cluster, report).await?;
    conclude(cluster, report).await
}

async fn start_engines(cluster: &mut DemoCluster, root: &EngineRoot, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("a Docker Engine on each host");
    let starts = cluster.nodes.iter_mut().map(|node| async move {
        node.start_engine(root).await?;
        whoami_image(node).await.with_context(|| format!("image on {}", node.name()))
    });
    futures_util::future::try_join_all(starts).await?;
    let version = engine_version(&cluster.nodes[0]).await?;
    report.measured("engine", &version);
    report.done(format!("version {version}, image {WHOAMI_IMAGE} made from busybox"));
    Ok(())
}

async fn engine_version(node: &Host) -> anyhow::Result<String> {
    let client = crate::http::UnixClient::new(node.engine_socket());
    let version: serde_json::Value = client.get("/version").await?.json()?;
    Ok(version["Version"].as_str().unwrap_or("unknown").to_owned())
}

async fn start_daemons(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("a skep daemon on each host");
    let program = cluster::program()?;
    let starts = cluster.nodes.iter_mut().map(|node| node.start_daemon(&program, &[]));
    futures_util::future::try_join_all(starts).await?;
    // The user who called sudo can use the swarm without being root.
    for node in &cluster.nodes {
        output(tokio::process::Command::new("chmod").arg("666").arg(node.skep_socket())).await?;
    }
    report.done("each answers on its socket".to_owned());
    Ok(())
}

async fn form_swarm(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("a swarm: three managers, two of which join by token");
    let manager = &cluster.nodes[0];
    let address = manager.address().to_string();
    post(manager, "/swarm/init", &json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address, "Spec": {} })).await?;
    let swarm = get(manager, "/swarm").await?;
    let token = swarm["JoinTokens"]["Manager"].as_str().context("no manager token")?;
    let joins = cluster.nodes[1..].iter().map(|node| {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": node.address().to_string(), "RemoteAddrs": [format!("{address}:2377")], "JoinToken": token,
        });
        async move { post(node, "/swarm/join", &body).await }
    });
    futures_util::future::try_join_all(joins).await?;
    wait("three ready managers", Duration::from_secs(15), report, async || {
        let nodes = get(manager, "/nodes").await?;
        let is_ready = |n: &&serde_json::Value| n["Status"]["State"] == "ready" && !n["ManagerStatus"].is_null();
        let ready = nodes.as_array().into_iter().flatten().filter(is_ready).count();
        anyhow::ensure!(ready == 3, "{ready} of 3 managers are ready");
        Ok(())
    })
    .await?;
    report.done("three nodes ready, joined through WireGuard on UDP 2377".to_owned());
    Ok(())
}

async fn deploy_service(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("a service of six replicas, published on port 8080");
    let manager = &cluster.nodes[0];
    post(manager, "/networks/create", &json!({ "Name": "demo", "Driver": "overlay", "CheckDuplicate": true })).await?;
    let spec = json!({
        "Name": SERVICE,
        "TaskTemplate": {
            "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 1_000_000_000u64 },
            "Networks": [{ "Target": "demo" }],
        },
        "Mode": { "Replicated": { "Replicas": REPLICAS } },
        "EndpointSpec": { "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": PORT }] },
    });
    let start = Instant::now();
    post(manager, "/services/create", &spec).await?;
    let spread = converge(manager, report, Duration::from_secs(30)).await?;
    report.measured("converged_seconds", start.elapsed().as_secs_f64());
    report.done(format!("running {spread}"));
    Ok(())
}

async fn drain_node(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    let drained = cluster.nodes[2].name();
    report.begin("gamma drained, requests to the published port of every host");
    let manager = &cluster.nodes[0];
    set_availability(manager, drained, "drain").await?;
    wait("no task on the drained node", Duration::from_secs(30), report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(
            !running.contains_key(drained) && running.values().sum::<usize>() == REPLICAS,
            "{}",
            replica_chart(&running)
        );
        Ok(())
    })
    .await?;
    let mut seen = Vec::new();
    let (own, mut clients) = (cluster.client.address().to_string(), BTreeSet::new());
    for node in &cluster.nodes {
        let answers = served_by_all(&cluster.client, node, report).await?;
        if node_status(node).await?.ebpf.ports.contains(&format!("{PORT}/tcp")) {
            anyhow::ensure!(
                answers.clients.iter().all(|c| *c == own),
                "{}: backends saw the client addresses {:?}, not {own}",
                node.name(),
                answers.clients
            );
        }
        clients.extend(answers.clients);
        seen.push(json!({ "host": node.name(), "answers": answers.by_backend, "failed": answers.failed }));
    }
    report.measured("requests_after_drain", seen);
    report.measured("clients_seen", &clients);
    let all = REQUESTS * 3;
    let shown = if clients == BTreeSet::from([own.clone()]) {
        format!("; each replica saw the client's address {own}")
    } else {
        String::new()
    };
    report.done(format!("{all} of {all} requests answered, on each host by all {REPLICAS} replicas{shown}"));
    Ok(())
}

/// Sends rounds of requests to a host's port until one round is answered completely, by every replica. A replica that has
/// just started may not listen yet: the userspace datapath then selects another, so all replicas may need a second round.
async fn served_by_all(client: &Host, node: &Host, report: &mut DemoReport) -> anyhow::Result<Answers> {
    wait("every replica to answer", Duration::from_secs(10), report, async || {
        let answers = send_requests(client, node.address(), PORT, SERVICE, REQUESTS).await?;
        anyhow::ensure!(answers.failed == 0, "{} of {REQUESTS} requests to {} were not answered", answers.failed, node.name());
        anyhow::ensure!(answers.by_backend.len() == REPLICAS, "{}: only {:?} answered", node.name(), answers.by_backend);
        Ok(answers)
    })
    .await
}

async fn resolve_names(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("the service's names, resolved in a container on beta");
    let beta = &cluster.nodes[1];
    let containers = output(beta.docker().args(["ps", "-q", "--filter", "label=com.docker.swarm.service.name=whoami"])).await?;
    let container = containers.lines().next().context("beta runs no replica")?;
    let vip = virtual_address(&cluster.nodes[0], beta).await?;
    let mut resolved = Vec::new();
    for name in [SERVICE, "tasks.whoami"] {
        let text = output(beta.docker().args(["exec", container, "nslookup", "-type=a", name])).await?;
        let addresses: BTreeSet<String> = addresses_in(&text);
        match vip.as_ref().filter(|_| name == SERVICE) {
            Some(vip) => {
                anyhow::ensure!(
                    addresses == BTreeSet::from([vip.clone()]),
                    "{name} resolved to {addresses:?}, not to its virtual address {vip}"
                );
            }
            None => {
                anyhow::ensure!(
                    addresses.len() == REPLICAS,
                    "{name} resolved to {} addresses, not {REPLICAS}:\n{text}",
                    addresses.len()
                );
            }
        }
        for address in &addresses {
            // The wget of a static busybox crashes with -T: `timeout` bounds it instead.
            output(beta.docker().args([
                "exec",
                container,
                "timeout",
                "5",
                "wget",
                "-q",
                "-O",
                "-",
                &format!("http://{address}/"),
            ]))
            .await
            .with_context(|| format!("{name} resolved to {address}, which does not answer"))?;
        }
        resolved.push(json!({ "name": name, "addresses": addresses }));
    }
    report.measured("names", resolved);
    report.done(match vip {
        Some(vip) => {
            format!("whoami is its virtual address {vip}, tasks.whoami {REPLICAS} addresses; a request to each was answered")
        }
        None => format!("whoami and tasks.whoami are {REPLICAS} addresses; a request to each was answered"),
    });
    Ok(())
}

/// The status that the node's daemon reports.
async fn node_status(node: &Host) -> anyhow::Result<crate::status::Status> {
    crate::http::UnixClient::new(node.run_dir().join("admin.sock")).get("/status").await?.json()
}

/// The service's virtual address on the demo's network, if the node's eBPF datapath serves virtual addresses.
async fn virtual_address(manager: &Host, node: &Host) -> anyhow::Result<Option<String>> {
    let status = node_status(node).await?;
    if !status.ebpf.up || status.ebpf.members == 0 {
        return Ok(None);
    }
    let network = get(manager, "/networks/demo").await?;
    let service = get(manager, &format!("/services/{SERVICE}")).await?;
    let vips = service["Endpoint"]["VirtualIPs"].as_array().context("the service has no virtual addresses")?;
    let own = vips
        .iter()
        .find(|vip| vip["NetworkID"] == network["Id"])
        .context("the service has no virtual address on the demo's network")?;
    Ok(own["Addr"].as_str().and_then(|addr| addr.split('/').next()).map(str::to_owned))
}

/// Addresses that busybox's nslookup printed after the name's line.
fn addresses_in(text: &str) -> BTreeSet<String> {
    let answer = text.split("Name:").skip(1).flat_map(str::lines);
    answer
        .filter_map(|line| line.strip_prefix("Address"))
        .filter_map(|rest| rest.split_whitespace().last())
        .map(str::to_owned)
        .collect()
}

async fn count_packets(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("packets between the hosts, counted on the bridge");
    let counts = wire::counts(&cluster.lab).await?;
    report.measured("wire", counts);
    anyhow::ensure!(counts.tunnel > 0 && counts.join > 0, "no packet was counted: {counts:?}");
    anyhow::ensure!(
        counts.other == 0,
        "{} packets were neither UDP 2377 nor TCP 2377 nor neighbour discovery: {counts:?}",
        counts.other
    );
    report.done(format!(
        "UDP 2377: {}, TCP 2377: {}, neighbour discovery: {}, other: 0",
        counts.tunnel, counts.join, counts.neighbours
    ));
    Ok(())
}

async fn disconnect_node(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    let lost = cluster.nodes[1].name().to_owned();
    report.begin("beta disconnected");
    let manager = &cluster.nodes[0];
    set_availability(manager, cluster.nodes[2].name(), "active").await?;
    cluster.lab.cut(&cluster.nodes[1]).await?;
    let start = Instant::now();
    wait("six replicas without the disconnected node", Duration::from_secs(30), report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(
            !running.contains_key(&lost) && running.values().sum::<usize>() == REPLICAS,
            "{}",
            replica_chart(&running)
        );
        Ok(())
    })
    .await?;
    let recovered = start.elapsed().as_secs_f64();
    for node in [&cluster.nodes[0], &cluster.nodes[2]] {
        served_by_all(&cluster.client, node, report).await?;
    }
    anyhow::ensure!(node_named(manager, &lost).await?["Status"]["State"] == "down", "the disconnected node is not down");
    report.measured("healed_seconds", recovered);
    report.done(format!("six replicas again after {recovered:.1} s, served by alpha and gamma"));
    Ok(())
}

async fn reconnect_node(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("beta connected again");
    cluster.lab.heal(&cluster.nodes[1]).await?;
    let manager = &cluster.nodes[0];
    let name = cluster.nodes[1].name();
    wait("the disconnected node to be ready again", Duration::from_secs(20), report, async || {
        let node = node_named(manager, name).await?;
        anyhow::ensure!(node["Status"]["State"] == "ready", "its state is {}", node["Status"]["State"]);
        Ok(())
    })
    .await?;
    report.done("ready".to_owned());
    Ok(())
}

/// Kills the daemon of the manager that leads and writes through another one at once.
async fn replace_leader(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("the leader's daemon killed, a write through another manager");
    let nodes = get(&cluster.nodes[0], "/nodes").await?;
    let leader = nodes.as_array().into_iter().flatten().find(|n| n["ManagerStatus"]["Leader"] == true).context("no leader")?;
    let name = leader["Description"]["Hostname"].as_str().unwrap_or_default().to_owned();
    let at = cluster.nodes.iter().position(|node| node.name() == name).context("the leader is no host of the demo")?;
    let other = (at + 1) % cluster.nodes.len();
    cluster.nodes[at].stop_daemon(true).await?;
    let start = Instant::now();
    // The request waits for the election.
    let network = json!({ "Name": "after-failover", "Driver": "overlay", "CheckDuplicate": true });
    post(&cluster.nodes[other], "/networks/create", &network).await?;
    let written = start.elapsed().as_secs_f64();
    cluster.nodes[at].start_daemon(&cluster::program()?, &[]).await?;
    wait("the killed manager to be ready again", Duration::from_secs(20), report, async || {
        let node = node_named(&cluster.nodes[other], &name).await?;
        anyhow::ensure!(node["Status"]["State"] == "ready", "its state is {}", node["Status"]["State"]);
        Ok(())
    })
    .await?;
    served_by_all(&cluster.client, &cluster.nodes[at], report).await?;
    report.measured("failover_seconds", written);
    report.done(format!("{name} led; written after {written:.1} s by another leader, and {name} is back"));
    Ok(())
}

async fn conclude(cluster: &mut DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    let manager = &cluster.nodes[0];
    let admin = crate::http::UnixClient::new(manager.run_dir().join("admin.sock"));
    let status: crate::status::Status = admin.get("/status").await?.json()?;
    let mut text = crate::cli::status::render(&status);
    let _ = writeln!(text, "\nTry it:\n");
    for node in &cluster.nodes {
        let _ = writeln!(text, "  docker -H unix://{} ps          # {}", node.skep_socket().display(), node.name());
    }
    let socket = format!("unix://{}", manager.skep_socket().display());
    for command in ["node ls", "service ps whoami", "service scale whoami=9", "network ls"] {
        let _ = writeln!(text, "  docker -H {socket} {command}");
    }
    report.closing(text);
    Ok(())
}

async fn converge(manager: &Host, report: &mut DemoReport, within: Duration) -> anyhow::Result<String> {
    wait("all replicas to run", within, report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(running.values().sum::<usize>() == REPLICAS, "{}", replica_chart(&running));
        Ok(running.iter().map(|(host, n)| format!("{n} on {host}")).collect::<Vec<_>>().join(", "))
    })
    .await
}

/// Running replicas per host, as a bar chart.
fn replica_chart(running: &BTreeMap<String, usize>) -> String {
    let mut text = format!("{} of {REPLICAS} replicas run", running.values().sum::<usize>());
    for host in ["alpha", "beta", "gamma"] {
        let count = running.get(host).copied().unwrap_or(0);
        let _ = write!(text, "\n             {host:<6} {:<REPLICAS$} {count}", "#".repeat(count));
    }
    text
}
