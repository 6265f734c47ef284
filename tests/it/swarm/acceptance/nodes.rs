//! Changes of nodes that services notice: a drain, the loss of the leader in an update, settings of the whole swarm.

use super::super::super::load::{Load, Target, index_of, of_host, server};
use super::super::managers::reachable;
use super::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// Row 88, the setting, and what is drained or updated while clients ask for it.
#[test]
fn a_drain_that_starts_first_and_an_update_whose_leader_is_killed_lose_no_request() {
    ACCEPTANCE.exclusive_case(async |at| {
        history_limit(at).await;
        drained(at).await;
        drained_of_all(at).await;
        leader_killed(at).await;
    });
}

async fn history_limit(at: &AcceptanceSwarm) {
    at.create("limited", &["--update-monitor 200ms"], &[]).await;
    let first = ids(&at.swarm.running("limited", 1).await);
    at.docker("service update -d --force limited").await;
    at.until_update("limited", "completed").await;
    assert!(at.ps("limited").await.iter().any(|task| first.contains(&task.id)), "the former one is listed");
    at.docker("swarm update --task-history-limit 1").await;
    within(20, "the former one to be forgotten", || async {
        let listed = at.ps("limited").await;
        anyhow::ensure!(listed.len() == 1, "{listed:?}");
        Ok(())
    })
    .await;
    at.docker("swarm update --task-history-limit 5").await;
    at.remove("limited").await;
}

/// A service of the server that says what a client must not see.
async fn create_server(at: &AcceptanceSwarm, name: &str, port: u16, replicas: usize, more: &[(&str, Value)]) {
    let mut template = server::template(&json!([]));
    template["ContainerSpec"]["Image"] = json!(WHOAMI_IMAGE);
    let ports = json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port }]);
    let mode = json!({ "Replicated": { "Replicas": replicas } });
    let mut spec = json!({ "Name": name, "Mode": mode, "TaskTemplate": template, "EndpointSpec": { "Ports": ports } });
    for (pointer, value) in more {
        let (parent, key) = pointer.rsplit_once('/').expect("a path");
        spec.pointer_mut(parent).expect("a parent")[key] = value.clone();
    }
    ok(&post(at.manager(), "/services/create", &spec).await);
    at.swarm.running(name, replicas).await;
    wait_for_backends(&at.swarm.hosts, &format!("{port}/tcp"), replicas).await;
}

/// New and kept connections to a port of these hosts.
fn load<'a>(at: &AcceptanceSwarm, hosts: impl Iterator<Item = &'a Host>, port: u16) -> [Load; 2] {
    let (client, hosts) = (of_host(&at.client), hosts.collect::<Vec<_>>());
    [("new", false), ("kept", true)].map(|(what, keeps)| {
        let to = |host: &Host| Target::new(&client, (host.address(), port).into(), format!("{what}, {}", host.name()));
        Load::http(hosts.iter().copied().map(to), Duration::from_millis(20), keeps)
    })
}

/// Ends the load: no request was lost, and so many tasks have answered.
async fn nothing_lost(loads: [Load; 2], tasks: usize) {
    let mut tallies = Vec::new();
    for load in loads {
        tallies.extend(load.stop().await);
    }
    assert!(tallies.iter().all(|tally| tally.failed.is_empty()), "requests are lost");
    let servers: BTreeSet<&String> = tallies.iter().flat_map(|tally| tally.answered.keys()).collect();
    assert_eq!(servers.len(), tasks, "the old tasks and the new ones are reached: {servers:?}");
}

/// A task of one replica is started elsewhere before the drained node stops it.
async fn drained(at: &AcceptanceSwarm) {
    let order = json!({ "Parallelism": 1, "Order": "start-first", "Monitor": 500_000_000 });
    create_server(at, "single", 8091, 1, &[("/UpdateConfig", order)]).await;
    let task = at.swarm.running("single", 1).await.remove(0);
    let node = at.swarm.hosts[index_of(&at.swarm, &task).await].name();
    let loads = load(at, at.swarm.hosts.iter(), 8091);
    at.docker(&format!("node update --availability drain {node}")).await;
    within(60, "the task to be elsewhere", || async {
        let listed = at.ps("single").await;
        let running: Vec<_> = listed.iter().filter(|task| task.current.starts_with("Running")).collect();
        let ended = listed.iter().any(|old| task["ID"] == old.id.as_str() && old.current.starts_with("Shutdown"));
        anyhow::ensure!(running.len() == 1 && running[0].node != node && ended, "{listed:?}");
        Ok(())
    })
    .await;
    wait_for_backends(&at.swarm.hosts, "8091/tcp", 1).await;
    at.docker(&format!("node update --availability active {node}")).await;
    nothing_lost(loads, 2).await;
    at.remove("single").await;
}

/// A node that has both replicas of a service: they leave it one after the other, also where each stops before the next one starts.
async fn drained_of_all(at: &AcceptanceSwarm) {
    for name in ["n2", "n3"] {
        at.docker(&format!("node update --availability pause {name}")).await;
    }
    create_server(at, "both", 8094, 2, &[]).await;
    for name in ["n2", "n3"] {
        at.docker(&format!("node update --availability active {name}")).await;
    }
    assert_eq!(at.per_node("both", 2).await, [("n1".to_owned(), 2)].into());
    let loads = load(at, at.swarm.hosts.iter(), 8094);
    at.docker("node update --availability drain n1").await;
    within(60, "both tasks to be elsewhere", || async {
        let listed = at.ps("both").await;
        let running = listed.iter().filter(|task| task.current.starts_with("Running") && task.node != "n1").count();
        let ended = listed.iter().filter(|task| task.current.starts_with("Shutdown")).count();
        anyhow::ensure!((running, ended) == (2, 2), "{listed:?}");
        Ok(())
    })
    .await;
    wait_for_backends(&at.swarm.hosts, "8094/tcp", 2).await;
    at.docker("node update --availability active n1").await;
    nothing_lost(loads, 4).await;
    at.remove("both").await;
}

/// Another leader goes on with an update where the one that was killed has left it.
async fn leader_killed(at: &mut AcceptanceSwarm) {
    let leader = reachable(at.manager(), 3).await;
    let index = at.swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
    // No task is on the leader's node: none is replaced because its daemon is away.
    let constraint = json!({ "Constraints": [format!("node.hostname!={leader}")] });
    let update = json!({ "Parallelism": 1, "Delay": 500_000_000, "Monitor": 1_000_000_000, "Order": "stop-first" });
    create_server(at, "rolled", 8092, 4, &[("/TaskTemplate/Placement", constraint), ("/UpdateConfig", update)]).await;
    let before = ids(&at.swarm.running("rolled", 4).await);
    let others: Vec<usize> = (0..3).filter(|other| *other != index).collect();
    let loads = load(at, others.iter().map(|other| &at.swarm.hosts[*other]), 8092);
    let other = &at.swarm.hosts[others[0]];
    other.docker_run("service update -d --env-add ROUND=2 rolled").await.expect("update");
    within(30, "the first slot to be replaced", || async {
        let tasks = tasks_on(other, "rolled").await;
        let runs = |task: &&Value| task["Status"]["State"] == "running" && !before.contains(&ids(std::slice::from_ref(*task))[0]);
        anyhow::ensure!(tasks.iter().any(|task| runs(&task)), "{tasks:#?}");
        Ok(())
    })
    .await;
    let state = get(other, "/services/rolled").await["UpdateStatus"]["State"].take();
    assert_eq!(state, "updating", "the leader is killed in the middle");
    at.swarm.hosts[index].stop_daemon(true).await.expect("killed");
    let other = &at.swarm.hosts[others[0]];
    until_update_on(other, "rolled", "completed").await;
    let tasks = tasks_on(other, "rolled").await;
    let (old, new): (Vec<Value>, Vec<Value>) =
        tasks.into_iter().partition(|task| before.contains(&ids(std::slice::from_ref(task))[0]));
    let mut slots: Vec<_> = new.iter().map(|task| task["Slot"].as_u64()).collect();
    slots.sort_unstable();
    assert_eq!(slots, [1, 2, 3, 4].map(Some), "each slot is replaced once: {new:#?}");
    assert!(new.iter().all(|task| task["Status"]["State"] == "running"), "{new:#?}");
    assert!(old.iter().all(|task| task["DesiredState"] == "shutdown"), "{old:#?}");
    wait_for_backends(&at.swarm.hosts[others[0]..=others[0]], "8092/tcp", 4).await;
    start(&mut at.swarm.hosts[index]).await;
    at.swarm.ready_on(others[0], 3).await;
    reachable(at.manager(), 3).await;
    nothing_lost(loads, 8).await;
    at.remove("rolled").await;
}
