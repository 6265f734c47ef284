//! Names and ports of tasks that are not healthy yet, aliases, and services on several networks.

use super::super::network::addresses;
use super::super::networks::{container_of, exec, reached};
use super::*;
use std::collections::BTreeSet;

#[test]
fn names_are_those_of_healthy_tasks_and_of_the_networks_of_a_service() {
    ACCEPTANCE.concurrent_case(async |at| {
        tokio::join!(starting(at), several_networks(at));
    });
}

/// What a name resolves to in a container.
async fn lookup(host: &Host, container: &str, name: &str) -> anyhow::Result<BTreeSet<String>> {
    Ok(addresses(&exec(host, container, &["nslookup", "-type=a", name]).await?))
}

/// The host that runs a service's one task there, and the container.
async fn placed<'a>(at: &'a AcceptanceSwarm, service: &str) -> Vec<(&'a Host, String)> {
    let mut all = Vec::new();
    for host in &at.swarm.hosts {
        all.extend(container_of(host, service).await.map(|container| (host, container)));
    }
    all
}

/// Row 37: a task with a health check is starting until it is healthy, and not before then a backend or an address of a name.
async fn starting(at: &AcceptanceSwarm) {
    let health = ["--health-cmd test -e /tmp/well", "--health-interval 300ms", "--health-retries 1000"];
    let options = [&["--replicas 2", "--network back", "--publish 8087:80"], &health[..]].concat();
    at.create("slow", &options, &[]).await;
    let containers = within(30, "both to start", || async {
        let listed = at.ps("slow").await;
        anyhow::ensure!(listed.iter().filter(|task| task.current.starts_with("Starting")).count() == 2, "{listed:?}");
        let containers = placed(at, "slow").await;
        anyhow::ensure!(containers.len() == 2, "on two nodes");
        Ok(containers)
    })
    .await;
    for (number, (host, container)) in (1..).zip(&containers) {
        exec(host, container, &["sh", "-c", "echo > /tmp/well"]).await.expect("exec");
        let running = at.swarm.running("slow", number).await;
        wait_for_backends(&at.swarm.hosts, "8087/tcp", number).await;
        let expected: BTreeSet<String> = running
            .iter()
            .flat_map(|task| task["NetworksAttachments"].as_array().expect("networks"))
            .filter(|attachment| attachment["Network"]["Spec"]["Name"] == "back")
            .filter_map(|attachment| attachment["Addresses"][0].as_str()?.split('/').next().map(str::to_owned))
            .collect();
        assert_eq!(expected.len(), number, "{running:#?}");
        for host in &at.swarm.hosts {
            within(10, "the names of those that are healthy", || async {
                let found = lookup(host, &format!("caller-{}", host.name()), "tasks.slow").await?;
                anyhow::ensure!(found == expected, "{found:?}, not {expected:?}");
                Ok(())
            })
            .await;
        }
        let starting = at.ps("slow").await.into_iter().filter(|task| task.current.starts_with("Starting")).count();
        assert_eq!(starting, 2 - number, "the other one starts all the while");
    }
    at.remove("slow").await;
}

/// Rows 59 and 60: an alias is the virtual address on its network, and names are those of the networks that both are on.
async fn several_networks(at: &AcceptanceSwarm) {
    for network in ["red", "blue"] {
        at.docker(&format!("network create -d overlay {network}")).await;
    }
    at.create("both", &["--network name=red,alias=db", "--network blue"], &[]).await;
    at.create("left", &["--network red"], &[]).await;
    at.create("right", &["--network blue"], &[]).await;
    for service in ["both", "left", "right"] {
        at.swarm.running(service, 1).await;
    }
    let vips = get(at.manager(), "/services/both").await["Endpoint"]["VirtualIPs"].take();
    let vip = async |network: &str| -> BTreeSet<String> {
        let id = at.docker(&format!("network inspect --format {{{{.Id}}}} {network}")).await;
        let all = vips.as_array().into_iter().flatten().filter(|vip| vip["NetworkID"] == id.as_str());
        all.filter_map(|vip| vip["Addr"].as_str()?.split('/').next().map(str::to_owned)).collect()
    };
    let (red, blue) = (vip("red").await, vip("blue").await);
    assert_eq!((red.len(), blue.len(), red.is_disjoint(&blue)), (1, 1, true), "{vips:#}");
    for (service, names) in [
        ("left", [("both", Some(&red)), ("db", Some(&red)), ("right", None)]),
        ("right", [("both", Some(&blue)), ("db", None), ("left", None)]),
    ] {
        let (host, container) = placed(at, service).await.remove(0);
        for (name, expected) in names {
            within(10, &format!("{name} as {service} sees it"), || async {
                let found = lookup(host, &container, name).await;
                let is_right = match (&found, expected) {
                    (Ok(found), Some(expected)) => found == expected,
                    (Err(_), None) => true,
                    _ => false,
                };
                anyhow::ensure!(is_right, "{found:?}, not {expected:?}");
                Ok(())
            })
            .await;
        }
        reached(host, &container, "both").await;
    }
    let (host, container) = placed(at, "both").await.remove(0);
    for name in ["left", "right"] {
        reached(host, &container, name).await;
    }
    at.remove("both left right").await;
    for network in ["red", "blue"] {
        let remove = format!("network rm {network}");
        within(20, "the network to be free", || at.manager().docker_run(&remove)).await;
    }
}
