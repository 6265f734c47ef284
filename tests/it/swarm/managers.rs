//! Several managers: each serves the whole API, one that fails is replaced, roles change at the user's word.

use super::kit::*;
use skep::lab::Host;

/// A swarm of three managers.
async fn managers(name: &str) -> Swarm {
    let swarm = hosts(name, 3, "").await;
    init(&swarm.hosts[0]).await;
    let token = manager_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(3).await;
    reachable(&swarm.hosts[0], 3).await;
    swarm
}

async fn manager_token(host: &Host) -> String {
    get(host, "/swarm").await["JoinTokens"]["Manager"].as_str().expect("token").to_owned()
}

/// Waits until a manager lists so many managers, one of them the leader; returns the leader's host name.
async fn reachable(host: &Host, count: usize) -> String {
    within(15, "managers", || async {
        let nodes = host.docker_run("node ls --format {{.Hostname}}|{{.ManagerStatus}}").await?;
        let managers: Vec<&str> = nodes.lines().filter(|l| l.ends_with("|Leader") || l.ends_with("|Reachable")).collect();
        anyhow::ensure!(managers.len() == count, "{nodes}");
        let leader = managers.iter().find_map(|line| line.strip_suffix("|Leader"));
        leader.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("no leader: {nodes}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manager_serves_the_api_and_a_dead_leader_is_replaced() {
    let mut swarm = managers("mg").await;
    // Written through a manager that does not lead, read from each.
    swarm.hosts[2].docker_run("network create -d overlay back").await.expect("a follower takes writes");
    swarm.service("web", 3, Some(8080), serde_json::json!({})).await;
    swarm.running("web", 3).await;
    for host in &swarm.hosts {
        let services = host.docker_run("service ls --format {{.Name}}={{.Replicas}}").await.expect("every manager answers");
        assert_eq!(services.trim(), "web=3/3", "{}", host.name());
    }
    let before: Vec<_> = swarm.running("web", 3).await.iter().map(|task| task["ID"].clone()).collect();
    let leader = reachable(&swarm.hosts[1], 3).await;
    let index = swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
    swarm.hosts[index].stop_daemon(true).await.expect("killed");
    let other = (index + 1) % 3;
    // Not retried by the test: the request waits for the election.
    swarm.hosts[other].docker_run("service scale -d web=4").await.expect("a write during the election");
    assert_ne!(reachable(&swarm.hosts[other], 2).await, leader);
    start(&mut swarm.hosts[index]).await;
    swarm.ready_on(other, 3).await;
    reachable(&swarm.hosts[index], 3).await;
    within(30, "four tasks", || async {
        let tasks = swarm.hosts[index].docker_run("service ls --format {{.Replicas}}").await?;
        anyhow::ensure!(tasks.trim() == "4/4", "{tasks}");
        Ok(())
    })
    .await;
    let after: Vec<_> = swarm.running("web", 4).await.iter().map(|task| task["ID"].clone()).collect();
    assert!(before.iter().all(|id| after.contains(id)), "no task was moved: {before:?} {after:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_change_at_the_users_word() {
    let swarm = swarm("mr", 3, "").await;
    let first = &swarm.hosts[0];
    let refused = first.docker_run("node demote n1").await.expect_err("the last manager");
    assert!(format!("{refused:#}").contains("attempting to demote the last manager of the swarm"), "{refused:#}");
    first.docker_run("node promote n2 n3").await.expect("promoted");
    reachable(first, 3).await;
    // Both have a manager's certificate and their own copy of the state.
    for host in &swarm.hosts[1..] {
        within(15, "the API on a promoted node", || async {
            host.docker_run("node ls -q").await.map(|nodes| assert_eq!(nodes.lines().count(), 3))
        })
        .await;
    }
    let refused = first.docker_run("node rm --force n2").await.expect_err("a member of raft");
    assert!(format!("{refused:#}").contains("must be demoted to worker before removal"), "{refused:#}");
    // The leader demotes itself: another one leads.
    first.docker_run("node demote n1").await.expect("demoted");
    assert_ne!(reachable(&swarm.hosts[1], 2).await, "n1");
    within(15, "a worker", || async {
        let error = first.docker_run("node ls").await.err().ok_or_else(|| anyhow::anyhow!("it still answers"))?;
        anyhow::ensure!(format!("{error:#}").contains("This node is not a swarm manager"), "{error:#}");
        Ok(())
    })
    .await;
    swarm.hosts[1].docker_run("node promote n1").await.expect("promoted again");
    reachable(&swarm.hosts[1], 3).await;
    // A manager that leaves is no member of raft any more.
    swarm.hosts[2].docker_run("swarm leave --force").await.expect("leaves");
    reachable(&swarm.hosts[1], 2).await;
    swarm.hosts[1].docker_run("network create -d overlay back").await.expect("the others go on");
    swarm.stop().await;
}
