//! Every node knows which tasks of a published port listen, and on which family.

use super::*;
use std::collections::BTreeMap;
use std::net::TcpListener;

/// The backends of the first published port as a host knows them: task id, and whether it listens on IPv4 and on IPv6.
pub async fn known_backends(host: &Host) -> anyhow::Result<BTreeMap<String, (bool, bool)>> {
    let dump = dump(host).await?;
    let backends = dump["view"]["cluster"]["ports"][0]["backends"].as_array().cloned().unwrap_or_default();
    let one = |b: &Value| {
        let family = |name: &str| b["listens"][name].as_bool().unwrap_or_default();
        (b["task_id"].as_str().unwrap_or_default().to_owned(), (family("v4"), family("v6")))
    };
    Ok(backends.iter().map(one).collect())
}

/// Waits until all hosts know this of two tasks.
async fn wait_until_known(swarm: &Swarm, what: &str, tasks: &[Value], listens: [(bool, bool); 2]) {
    let ids = tasks.iter().map(|t| t["ID"].as_str().expect("id").to_owned());
    let expected: BTreeMap<String, (bool, bool)> = ids.zip(listens).collect();
    for host in &swarm.hosts {
        within(20, what, || async {
            let known = known_backends(host).await?;
            anyhow::ensure!(known == expected, "{}: {known:?}, not {expected:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// The tasks that a host knows on networks, and whether virtual addresses wait for each to listen.
async fn known_to_start(host: &Host) -> anyhow::Result<BTreeMap<String, bool>> {
    let dump = dump(host).await?;
    let networks = dump["view"]["networks"]["by_id"].as_object().cloned().unwrap_or_default();
    let members = networks.values().flat_map(|network| network["members"].as_array().into_iter().flatten());
    let one = |member: &Value| (member["task_id"].as_str().unwrap_or_default().to_owned(), member["starting"] == json!(true));
    Ok(members.map(one).collect())
}

/// Waits until these hosts know of these tasks that virtual addresses wait for them to listen, or that they do not.
pub async fn wait_until_ready(hosts: &[Host], tasks: &[Value], ready: bool) {
    for host in hosts {
        within(20, "virtual addresses and listeners", || async {
            let known = known_to_start(host).await?;
            let wrong = tasks.iter().find(|task| known.get(task["ID"].as_str().expect("id")) != Some(&!ready));
            anyhow::ensure!(wrong.is_none(), "{} knows {known:?}, of {wrong:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// A service that publishes no port serves at its virtual address from its first listener on.
#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_know_that_a_container_without_published_ports_listens() {
    let swarm = swarm("pv", 2, "").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let idle = json!({
        "ContainerSpec": { "Command": ["/bin/busybox", "sleep", "1000"] }, "Networks": [{ "Target": "back" }],
    });
    swarm.service("late", 2, None, idle).await;
    let tasks = swarm.running("late", 2).await;
    // A node without a task on the network does not know it.
    let host = &swarm.hosts[index_of(&swarm, &tasks[0]).await..][..1];
    wait_until_ready(host, &tasks, false).await;
    let [one, two] = [of_task(&swarm, &tasks[0]).await, of_task(&swarm, &tasks[1]).await];
    let private = listen(&two, "127.0.0.1:7000").await;
    let first = listen(&one, "0.0.0.0:7000").await;
    wait_until_ready(host, &tasks[..1], true).await;
    wait_until_ready(host, &tasks[1..], false).await;
    // What a process closes later was not its service.
    drop(first);
    let second = listen(&two, "[::]:7001").await;
    wait_until_ready(host, &tasks, true).await;
    drop((private, second));
    swarm.stop().await;
}

/// A listener inside a task's container, for both families if the address is [::].
async fn listen(task: &std::fs::File, address: &'static str) -> TcpListener {
    let task = task.try_clone().expect("clone");
    inside(task, move || TcpListener::bind(address).expect("bound in the container")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_know_when_a_container_starts_and_stops_listening() {
    let mut swarm = swarm("pl", 2, "").await;
    let idle = json!({ "ContainerSpec": { "Command": ["/bin/busybox", "sleep", "1000"] } });
    swarm.service("late", 2, Some(8080), idle).await;
    let tasks = swarm.running("late", 2).await;
    let [one, two] = [of_task(&swarm, &tasks[0]).await, of_task(&swarm, &tasks[1]).await];
    wait_until_known(&swarm, "no task to listen", &tasks, [(false, false), (false, false)]).await;

    let v4 = listen(&one, "0.0.0.0:80").await;
    wait_until_known(&swarm, "one to listen on IPv4", &tasks, [(true, false), (false, false)]).await;
    drop(v4);
    let dual = listen(&one, "[::]:80").await;
    wait_until_known(&swarm, "one to listen on both", &tasks, [(true, true), (false, false)]).await;
    let other = listen(&two, "127.0.0.1:80").await;
    let shown = swarm.tasks("late").await;
    assert!(shown.iter().all(|t| t["Listens"].is_null() && t["listens"].is_null()), "no field that Docker does not know");

    // Changes while a daemon is stopped are known once it runs again.
    let number = index_of(&swarm, &tasks[0]).await;
    swarm.hosts[number].stop_daemon(true).await.expect("killed");
    drop((dual, other));
    let late = listen(&two, "0.0.0.0:80").await;
    start(&mut swarm.hosts[number]).await;
    swarm.ready(2).await;
    wait_until_known(&swarm, "the other one to listen", &tasks, [(false, false), (true, false)]).await;
    drop(late);
    wait_until_known(&swarm, "no task to listen again", &tasks, [(false, false), (false, false)]).await;
    swarm.stop().await;
}
