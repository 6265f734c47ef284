//! The steps of the demo, in order. Each says what it does, does it on real parts, and fails with what was seen.

use super::report::Report;
use super::requests::{Answers, ask, get, node_named, post, running, set_availability};
use super::{Stage, wire};
use crate::lab::{EngineRoot, Host, WHOAMI_IMAGE, output, whoami_image};
use anyhow::Context as _;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

const REPLICAS: usize = 6;
const PORT: u16 = 8080;
const REQUESTS: usize = 24;
const SERVICE: &str = "whoami";

pub(super) async fn all(stage: &mut Stage, root: &EngineRoot, report: &mut Report) -> anyhow::Result<()> {
    engines(stage, root, report).await?;
    daemons(stage, report).await?;
    form(stage, report).await?;
    deploy(stage, report).await?;
    drain(stage, report).await?;
    names(stage, report).await?;
    count(stage, report).await?;
    cut(stage, report).await?;
    close(stage, report).await
}

async fn engines(stage: &mut Stage, root: &EngineRoot, report: &mut Report) -> anyhow::Result<()> {
    report.begin("a Docker Engine on each");
    let starts = stage.nodes.iter_mut().map(|node| async move {
        node.start_engine(root).await?;
        whoami_image(node).await.with_context(|| format!("image on {}", node.name()))
    });
    futures_util::future::try_join_all(starts).await?;
    let version = get_engine_version(&stage.nodes[0]).await?;
    report.prove("engine", &version);
    report.done(format!("version {version}, image {WHOAMI_IMAGE} made from busybox"));
    Ok(())
}

async fn get_engine_version(node: &Host) -> anyhow::Result<String> {
    let client = crate::http::UnixClient::new(node.engine_socket());
    let version: serde_json::Value = client.get("/version").await?.json()?;
    Ok(version["Version"].as_str().unwrap_or("unknown").to_owned())
}

async fn daemons(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("a skep daemon on each");
    let program = super::program()?;
    let starts = stage.nodes.iter_mut().map(|node| node.start_daemon(&program, &[]));
    futures_util::future::try_join_all(starts).await?;
    // The user who called sudo can play with the swarm from his own shell.
    for node in &stage.nodes {
        output(tokio::process::Command::new("chmod").arg("666").arg(node.skep_socket())).await?;
    }
    report.done("sockets answer".to_owned());
    Ok(())
}

async fn form(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("one manager, two workers, by join token");
    let manager = &stage.nodes[0];
    let address = manager.address().to_string();
    post(manager, "/swarm/init", &json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": address, "Spec": {} })).await?;
    let swarm = get(manager, "/swarm").await?;
    let token = swarm["JoinTokens"]["Worker"].as_str().context("no worker token")?;
    let joins = stage.nodes[1..].iter().map(|node| {
        let body = json!({
            "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": node.address().to_string(), "RemoteAddrs": [format!("{address}:2377")], "JoinToken": token,
        });
        async move { post(node, "/swarm/join", &body).await }
    });
    futures_util::future::try_join_all(joins).await?;
    wait("three ready nodes", Duration::from_secs(15), report, async || {
        let nodes = get(manager, "/nodes").await?;
        let ready = nodes.as_array().into_iter().flatten().filter(|n| n["Status"]["State"] == "ready").count();
        anyhow::ensure!(ready == 3, "{ready} of 3 nodes are ready");
        Ok(())
    })
    .await?;
    report.done("three nodes ready, joined through WireGuard on UDP 2377".to_owned());
    Ok(())
}

async fn deploy(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("a service of six replicas, published on 8080");
    let manager = &stage.nodes[0];
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
    report.prove("converged_seconds", start.elapsed().as_secs_f64());
    report.done(format!("running {spread}"));
    Ok(())
}

async fn drain(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let drained = stage.nodes[2].name();
    report.begin("gamma drained, the port asked on every host");
    let manager = &stage.nodes[0];
    set_availability(manager, drained, "drain").await?;
    wait("no task on the drained node", Duration::from_secs(30), report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(!running.contains_key(drained) && running.values().sum::<usize>() == REPLICAS, "{}", board(&running));
        Ok(())
    })
    .await?;
    let mut seen = Vec::new();
    let (own, mut clients) = (stage.client.address().to_string(), BTreeSet::new());
    for node in &stage.nodes {
        let answers = served_by_all(&stage.client, node, report).await?;
        if node_status(node).await?.ebpf.ports.contains(&format!("{PORT}/tcp")) {
            anyhow::ensure!(
                answers.clients.iter().all(|c| *c == own),
                "{}: backends saw {:?}, not {own}",
                node.name(),
                answers.clients
            );
        }
        clients.extend(answers.clients);
        seen.push(json!({ "host": node.name(), "answers": answers.by_backend, "failed": answers.failed }));
    }
    report.prove("requests_after_drain", seen);
    report.prove("clients_seen", &clients);
    let all = REQUESTS * 3;
    let shown = if clients == BTreeSet::from([own.clone()]) {
        format!("; each saw the client's own address {own}")
    } else {
        String::new()
    };
    report.done(format!("{all} of {all} requests answered, by all {REPLICAS} replicas through each host{shown}"));
    Ok(())
}

/// Asks a host's port until a whole round is answered, by every replica. A replica that has just started may not
/// listen yet: skep's userspace port then takes another, so only the spread may need a second round.
async fn served_by_all(client: &Host, node: &Host, report: &mut Report) -> anyhow::Result<Answers> {
    wait("every replica to answer", Duration::from_secs(10), report, async || {
        let answers = ask(client, node.address(), PORT, REQUESTS).await?;
        anyhow::ensure!(answers.failed == 0, "{} of {REQUESTS} requests to {} had no answer", answers.failed, node.name());
        anyhow::ensure!(answers.by_backend.len() == REPLICAS, "{}: answers came from {:?}", node.name(), answers.by_backend);
        Ok(answers)
    })
    .await
}

async fn names(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("names, from inside a container on beta");
    let beta = &stage.nodes[1];
    let containers = output(beta.docker().args(["ps", "-q", "--filter", "label=com.docker.swarm.service.name=whoami"])).await?;
    let container = containers.lines().next().context("beta runs no replica")?;
    let vip = virtual_address(&stage.nodes[0], beta).await?;
    let mut resolved = Vec::new();
    for name in [SERVICE, "tasks.whoami"] {
        let text = output(beta.docker().args(["exec", container, "nslookup", "-type=a", name])).await?;
        let addresses: BTreeSet<String> = addresses_in(&text);
        match vip.as_ref().filter(|_| name == SERVICE) {
            Some(vip) => {
                anyhow::ensure!(
                    addresses == BTreeSet::from([vip.clone()]),
                    "{name} gave {addresses:?}, not its virtual address {vip}"
                );
            }
            None => {
                anyhow::ensure!(
                    addresses.len() == REPLICAS,
                    "{name} gave {} addresses, not {REPLICAS}:\n{text}",
                    addresses.len()
                );
            }
        }
        for address in &addresses {
            // busybox's wget crashes with -T in its static build: `timeout` bounds it instead.
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
            .with_context(|| format!("{name} gave {address}, which does not answer"))?;
        }
        resolved.push(json!({ "name": name, "addresses": addresses }));
    }
    report.prove("names", resolved);
    report.done(match vip {
        Some(vip) => format!("whoami gives its virtual address {vip}, tasks.whoami {REPLICAS} addresses, each connected to"),
        None => format!("whoami and tasks.whoami give {REPLICAS} addresses, each connected to"),
    });
    Ok(())
}

/// What the node says of itself.
async fn node_status(node: &Host) -> anyhow::Result<crate::status::Status> {
    crate::http::UnixClient::new(node.run_dir().join("admin.sock")).get("/status").await?.json()
}

/// The service's virtual address on the demo's network, if the node's eBPF datapath carries virtual addresses.
async fn virtual_address(manager: &Host, node: &Host) -> anyhow::Result<Option<String>> {
    let status = node_status(node).await?;
    if !status.ebpf.up || status.ebpf.members == 0 {
        return Ok(None);
    }
    let network = get(manager, "/networks/demo").await?;
    let service = get(manager, &format!("/services/{SERVICE}")).await?;
    let vips = service["Endpoint"]["VirtualIPs"].as_array().context("the service has no virtual addresses")?;
    let own = vips.iter().find(|vip| vip["NetworkID"] == network["Id"]).context("none on the demo's network")?;
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

async fn count(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("packets between the hosts, counted on the wire");
    let counts = wire::counts(&stage.lab).await?;
    report.prove("wire", counts);
    anyhow::ensure!(counts.tunnel > 0 && counts.join > 0, "nothing was counted: {counts:?}");
    anyhow::ensure!(
        counts.other == 0,
        "{} packets were none of UDP 2377, TCP 2377, neighbour discovery: {counts:?}",
        counts.other
    );
    report.done(format!(
        "UDP 2377 {}, TCP 2377 {}, neighbour discovery {}, anything else 0",
        counts.tunnel, counts.join, counts.neighbours
    ));
    Ok(())
}

async fn cut(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    let lost = stage.nodes[1].name().to_owned();
    report.begin("beta cut off the wire");
    let manager = &stage.nodes[0];
    set_availability(manager, stage.nodes[2].name(), "active").await?;
    stage.lab.cut(&stage.nodes[1]).await?;
    let start = Instant::now();
    wait("six replicas without the lost node", Duration::from_secs(30), report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(!running.contains_key(&lost) && running.values().sum::<usize>() == REPLICAS, "{}", board(&running));
        Ok(())
    })
    .await?;
    let healed = start.elapsed().as_secs_f64();
    for node in [&stage.nodes[0], &stage.nodes[2]] {
        served_by_all(&stage.client, node, report).await?;
    }
    anyhow::ensure!(node_named(manager, &lost).await?["Status"]["State"] == "down", "the lost node is not down");
    report.prove("healed_seconds", healed);
    report.done(format!("six replicas again {healed:.1} s later, served by alpha and gamma"));
    Ok(())
}

async fn close(stage: &mut Stage, report: &mut Report) -> anyhow::Result<()> {
    report.begin("beta back on the wire");
    stage.lab.heal(&stage.nodes[1]).await?;
    let manager = &stage.nodes[0];
    let name = stage.nodes[1].name();
    wait("the lost node to be ready again", Duration::from_secs(20), report, async || {
        let node = node_named(manager, name).await?;
        anyhow::ensure!(node["Status"]["State"] == "ready", "it is {}", node["Status"]["State"]);
        Ok(())
    })
    .await?;
    report.done("ready".to_owned());
    let admin = crate::http::UnixClient::new(manager.run_dir().join("admin.sock"));
    let status: crate::status::Status = admin.get("/status").await?.json()?;
    let mut text = super::super::status::render(&status);
    let _ = writeln!(text, "\nPlay with it:\n");
    for node in &stage.nodes {
        let _ = writeln!(text, "  docker -H unix://{} ps          # {}", node.skep_socket().display(), node.name());
    }
    let socket = format!("unix://{}", manager.skep_socket().display());
    for command in ["node ls", "service ps whoami", "service scale whoami=9", "network ls"] {
        let _ = writeln!(text, "  docker -H {socket} {command}");
    }
    report.closing(text);
    Ok(())
}

async fn converge(manager: &Host, report: &mut Report, within: Duration) -> anyhow::Result<String> {
    wait("all replicas to run", within, report, async || {
        let running = running(manager, SERVICE).await?;
        anyhow::ensure!(running.values().sum::<usize>() == REPLICAS, "{}", board(&running));
        Ok(running.iter().map(|(host, n)| format!("{n} on {host}")).collect::<Vec<_>>().join(", "))
    })
    .await
}

/// Running replicas per host, as the live table shows them.
fn board(running: &BTreeMap<String, usize>) -> String {
    let mut text = format!("{} of {REPLICAS} replicas run", running.values().sum::<usize>());
    for host in ["alpha", "beta", "gamma"] {
        let count = running.get(host).copied().unwrap_or(0);
        let _ = write!(text, "\n             {host:<6} {:<REPLICAS$} {count}", "#".repeat(count));
    }
    text
}

/// Polls, and shows on a terminal what is still missing.
async fn wait<T>(
    what: &str,
    within: Duration,
    report: &mut Report,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {} s for {what}", within.as_secs())));
            }
            Err(error) => report.progress(&format!("{error:#}")),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
