//! Placement as a user sees it, with the stock CLI and three engines, each with labels or resources of its own.

use super::super::lab::engine_root;
use super::kit::*;
use serde_json::{Value, json};
use skep::lab::{Host, Lab, WHOAMI_IMAGE, output, whoami_image};
use std::collections::BTreeMap;

/// Hosts whose engines have these settings, in one swarm; the first one manages it.
async fn swarm_with(name: &str, settings: [Value; 3]) -> Swarm {
    let lab = Lab::new(super::super::lab::lab_dir(name)).await.expect("lab");
    let mut hosts = Vec::new();
    for (number, settings) in (1..).zip(settings) {
        let mut host = lab.host(&format!("n{number}"), number).await.expect("host");
        std::fs::write(host.dir().join("engine.json"), settings.to_string()).expect("settings");
        host.start_engine(&engine_root()).await.expect("engine");
        whoami_image(&host).await.expect("image");
        std::fs::write(host.dir().join("skep.toml"), "").expect("settings");
        start(&mut host).await;
        hosts.push(host);
    }
    let swarm = Swarm { lab, hosts };
    init(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(3).await;
    swarm
}

async fn docker(host: &Host, words: &str) -> anyhow::Result<String> {
    Ok(output(host.docker().args(words.split(' '))).await?.trim().to_owned())
}

async fn create(host: &Host, name: &str, options: &str) -> anyhow::Result<String> {
    docker(
        host,
        &format!("service create -d --no-resolve-image --stop-grace-period 200ms --name {name} {options} {WHOAMI_IMAGE}"),
    )
    .await
}

/// A verb of skep's own.
async fn skep(host: &Host, words: &[&str]) -> String {
    let mut command = host.command(SKEP);
    command.arg(words[0]).arg("--run-dir").arg(host.run_dir()).args(&words[1..]);
    output(&mut command).await.unwrap_or_else(|error| panic!("skep {words:?}: {error:#}"))
}

/// Running tasks per host, and the errors of those that wait, both as `docker service ps` shows them.
async fn ps(host: &Host, service: &str) -> anyhow::Result<(BTreeMap<String, usize>, Vec<String>)> {
    let format = "{{.Node}}|{{.CurrentState}}|{{.Error}}";
    let shown = output(host.docker().args([
        "service",
        "ps",
        "--no-trunc",
        "--filter",
        "desired-state=running",
        "--format",
        format,
        service,
    ]))
    .await?;
    let (mut running, mut waiting) = (BTreeMap::new(), Vec::new());
    for line in shown.lines() {
        let parts: Vec<&str> = line.splitn(3, '|').collect();
        if parts[1].starts_with("Running") {
            *running.entry(parts[0].to_owned()).or_default() += 1;
        } else if parts[1].starts_with("Pending") {
            waiting.push(parts[2].trim_matches('"').to_owned());
        }
    }
    Ok((running, waiting))
}

/// Waits until the tasks are like this.
async fn settled(host: &Host, service: &str, running: &[(&str, usize)], waiting: &[&str]) {
    let expected: BTreeMap<String, usize> = running.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect();
    within(40, "tasks to be where they belong", || async {
        let found = ps(host, service).await?;
        anyhow::ensure!(found.0 == expected && found.1 == waiting, "{service}: {found:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn placement_by_labels_roles_resources_and_ports_with_the_stock_cli() {
    let swarm = swarm_with(
        "placement",
        [json!({}), json!({"labels": ["disk=ssd"]}), json!({"node-generic-resources": ["gpu=G1", "gpu=G2", "fpga=3"]})],
    )
    .await;
    let manager = &swarm.hosts[0];
    let shown = get(manager, "/nodes/n3").await["Description"]["Resources"]["GenericResources"].clone();
    assert_eq!(
        shown,
        json!([{"DiscreteResourceSpec": {"Kind": "fpga", "Value": 3}}, {"NamedResourceSpec": {"Kind": "gpu", "Value": "G1"}},
            {"NamedResourceSpec": {"Kind": "gpu", "Value": "G2"}}])
    );

    // Labels of nodes and engines, roles, names.
    docker(manager, "node update --label-add zone=a --label-add rack=r1 n1").await.expect("labels");
    docker(manager, "node update --label-add zone=b --label-add rack=r2 n2").await.expect("labels");
    docker(manager, "node update --label-add zone=b --label-add rack=r2 n3").await.expect("labels");
    assert_eq!(docker(manager, "node ls --filter node.label=zone=a --format {{.Hostname}}").await.expect("list"), "n1");
    assert_eq!(docker(manager, "node ls --filter label=disk=ssd --format {{.Hostname}}").await.expect("list"), "n2");
    create(manager, "zoned", "--replicas 2 --constraint node.labels.zone==A").await.expect("created");
    create(manager, "ssd", "--replicas 2 --constraint engine.labels.disk==ssd --constraint node.role!=manager")
        .await
        .expect("created");
    create(manager, "named", "--replicas 1 --constraint node.hostname==n3 --constraint node.ip==192.0.2.0/24")
        .await
        .expect("created");
    create(manager, "nowhere", "--constraint node.labels.zone==c").await.expect("created");
    settled(manager, "zoned", &[("n1", 2)], &[]).await;
    settled(manager, "ssd", &[("n2", 2)], &[]).await;
    settled(manager, "named", &[("n3", 1)], &[]).await;
    settled(manager, "nowhere", &[], &["no suitable node (scheduling constraints not satisfied on 3 nodes)"]).await;
    let refused = create(manager, "bad", "--constraint node.role=worker").await.expect_err("refused").to_string();
    assert!(refused.contains("rpc error: code = Unknown desc = constraint expected one operator from ==, !="), "{refused}");

    // Two racks of unequal size; one task per node; one owner per port.
    create(manager, "racks", "--replicas 6 --placement-pref spread=node.labels.rack").await.expect("created");
    within(40, "an even spread over racks", || async {
        let (running, _) = ps(manager, "racks").await?;
        let count = |node: &str| running.get(node).copied().unwrap_or(0);
        anyhow::ensure!(count("n1") == 3 && count("n2") + count("n3") == 3, "{running:?}");
        Ok(())
    })
    .await;
    create(manager, "single", "--replicas 4 --replicas-max-per-node 1").await.expect("created");
    let each = [("n1", 1), ("n2", 1), ("n3", 1)];
    settled(manager, "single", &each, &["no suitable node (max replicas per node limit exceed)"]).await;
    create(manager, "ports", "--replicas 4 --publish mode=host,published=8081,target=80").await.expect("created");
    settled(manager, "ports", &each, &["no suitable node (host-mode port already in use on 3 nodes)"]).await;

    // Reservations: more than there is, and named resources one by one.
    create(manager, "large", "--reserve-memory 900t").await.expect("created");
    settled(manager, "large", &[], &["no suitable node (insufficient resources on 3 nodes)"]).await;
    create(manager, "gpu", "--replicas 3 --generic-resource gpu=1 --generic-resource fpga=1").await.expect("created");
    settled(manager, "gpu", &[("n3", 2)], &["no suitable node (insufficient resources on 3 nodes)"]).await;
    let mut gpus = Vec::new();
    for id in output(swarm.hosts[2].engine_cli().args(["ps", "-q", "--filter", "label=com.docker.swarm.service.name=gpu"]))
        .await
        .expect("ps")
        .lines()
    {
        let env =
            output(swarm.hosts[2].engine_cli().args(["inspect", "--format", "{{.Config.Env}}", id])).await.expect("inspect");
        assert!(env.contains("DOCKER_RESOURCE_FPGA=1"), "{env}");
        gpus.extend(["G1", "G2"].into_iter().filter(|gpu| env.contains(&format!("DOCKER_RESOURCE_GPU={gpu}"))));
    }
    gpus.sort_unstable();
    assert_eq!(gpus, ["G1", "G2"]);

    beyond_swarm(&swarm).await;

    // A label that goes evicts, one that comes is used.
    docker(manager, "node update --label-rm zone n1").await.expect("label");
    settled(manager, "zoned", &[], &["no suitable node (scheduling constraints not satisfied on 3 nodes)"; 2]).await;
    let history =
        docker(manager, "service ps --no-trunc --filter desired-state=shutdown --format {{.CurrentState}}|{{.Error}} zoned")
            .await
            .expect("ps");
    assert!(
        history
            .lines()
            .all(|line| line.starts_with("Rejected") && line.ends_with("\"assigned node no longer meets constraints\"")),
        "{history}"
    );
    docker(manager, "node update --label-add zone=a n2").await.expect("label");
    settled(manager, "zoned", &[("n2", 2)], &[]).await;
    docker(manager, "node update --availability pause n1").await.expect("paused");
    settled(
        manager,
        "nowhere",
        &[],
        &["no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)"],
    )
    .await;
    assert_eq!(ps(manager, "racks").await.expect("ps").0.values().sum::<usize>(), 6, "a paused node keeps its tasks");

    // A second node comes, and nothing moves before it is asked for.
    docker(manager, "node update --label-add zone=a n3").await.expect("label");
    let planned = skep(manager, &["rebalance", "--plan", "zoned"]).await;
    assert!(planned.contains("n2") && planned.contains("1 tasks would be moved"), "{planned}");
    settled(manager, "zoned", &[("n2", 2)], &[]).await;
    let ordered: Value = serde_json::from_str(&skep(manager, &["rebalance", "--json", "zoned"]).await).expect("a document");
    assert_eq!((&ordered["Moves"][0]["From"], &ordered["Moves"][0]["To"]), (&json!("n2"), &json!("n3")), "{ordered:#}");
    settled(manager, "zoned", &[("n2", 1), ("n3", 1)], &[]).await;
    within(20, "the story of the move", || async {
        let history = skep(manager, &["history", "zoned"]).await;
        let shown =
            history.contains("move by skep rebalance, to even out the nodes") && history.contains("moved by skep rebalance");
        anyhow::ensure!(shown, "{history}");
        Ok(())
    })
    .await;
    let again = skep(manager, &["rebalance", "zoned"]).await;
    assert!(again.contains("nothing to move"), "{again}");
    swarm.stop().await;
}

/// Bin packing, affinity and images that are present, which Docker's placement cannot say: by labels.
async fn beyond_swarm(swarm: &Swarm) {
    let manager = &swarm.hosts[0];
    let label = |name: &str, value: &str| format!("--label skep.placement.{name}={value}");
    let packed = label("strategy", "binpack");
    create(manager, "packed", &format!("--replicas 3 --reserve-memory 10m {packed}")).await.expect("created");
    let (packed, _) = within(40, "packed tasks", || async {
        let found = ps(manager, "packed").await?;
        anyhow::ensure!(found.0.values().sum::<usize>() == 3, "{found:?}");
        Ok(found)
    })
    .await;
    assert_eq!(packed.len(), 1, "all on one node: {packed:?}");
    let full = packed.keys().next().expect("a node");
    create(manager, "beside", &format!("--replicas 2 {}", label("affinity", "packed"))).await.expect("created");
    settled(manager, "beside", &[(full, 2)], &[]).await;
    let away = label("anti-affinity", "packed,away");
    create(manager, "away", &format!("--replicas 3 {away}")).await.expect("created");
    let others: Vec<(&str, usize)> = ["n1", "n2", "n3"].into_iter().filter(|node| node != full).map(|node| (node, 1)).collect();
    settled(manager, "away", &others, &["no suitable node (service anti-affinity not satisfied on 3 nodes)"]).await;

    // The image is on one node alone, where a task of another service has shown that it is.
    swarm.hosts[1].docker_run(&format!("tag {WHOAMI_IMAGE} skep/rare:1")).await.expect("tag");
    let rare = |name: &str, options: &str| {
        format!(
            "service create -d --no-resolve-image --stop-grace-period 200ms --restart-delay 100ms --name {name} {options} skep/rare:1"
        )
    };
    docker(manager, &rare("seed", "--constraint node.hostname==n2")).await.expect("created");
    settled(manager, "seed", &[("n2", 1)], &[]).await;
    docker(manager, &rare("eager", &label("prefer-image", "true"))).await.expect("created");
    settled(manager, "eager", &[("n2", 1)], &[]).await;
    let listed = docker(manager, "service ps --format {{.Node}} eager").await.expect("ps");
    assert_eq!(listed, "n2", "no other node was tried");
    docker(manager, "service rm packed beside away seed eager").await.expect("removed");
}
