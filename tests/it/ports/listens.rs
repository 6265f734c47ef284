//! Every node knows which tasks of a published port listen, and on which family.

use super::*;
use std::collections::BTreeMap;
use std::net::TcpListener;

/// What a host knows of the backends of its first published port.
pub async fn known(host: &Host) -> anyhow::Result<BTreeMap<String, (bool, bool)>> {
    let dump = dump(host).await?;
    let backends = dump["view"]["cluster"]["ports"][0]["backends"].as_array().cloned().unwrap_or_default();
    let one = |b: &Value| {
        let family = |name: &str| b["listens"][name].as_bool().unwrap_or_default();
        (b["task_id"].as_str().unwrap_or_default().to_owned(), (family("v4"), family("v6")))
    };
    Ok(backends.iter().map(one).collect())
}

/// Waits until all hosts know this of two tasks.
async fn all_know(swarm: &Swarm, what: &str, tasks: &[Value], listens: [(bool, bool); 2]) {
    let ids = tasks.iter().map(|t| t["ID"].as_str().expect("id").to_owned());
    let expected: BTreeMap<String, (bool, bool)> = ids.zip(listens).collect();
    for host in &swarm.hosts {
        within(20, what, || async {
            let known = known(host).await?;
            anyhow::ensure!(known == expected, "{}: {known:?}, not {expected:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// A listener inside a task's container, for both families if the address is [::].
async fn listen(task: &std::fs::File, address: &'static str) -> TcpListener {
    let task = task.try_clone().expect("clone");
    inside(task, move || TcpListener::bind(address).expect("bound in the container")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_listens_late_is_known_to_listen_late() {
    let mut swarm = swarm("pl", 2, "").await;
    let idle = json!({ "ContainerSpec": { "Command": ["/bin/busybox", "sleep", "1000"] } });
    swarm.service("late", 2, Some(8080), idle).await;
    let tasks = swarm.running("late", 2).await;
    let [one, two] = [of_task(&swarm, &tasks[0]).await, of_task(&swarm, &tasks[1]).await];
    all_know(&swarm, "nobody to listen", &tasks, [(false, false), (false, false)]).await;

    let v4 = listen(&one, "0.0.0.0:80").await;
    all_know(&swarm, "one to listen on IPv4", &tasks, [(true, false), (false, false)]).await;
    drop(v4);
    let dual = listen(&one, "[::]:80").await;
    all_know(&swarm, "one to listen on both", &tasks, [(true, true), (false, false)]).await;
    let other = listen(&two, "127.0.0.1:80").await;
    let shown = swarm.tasks("late").await;
    assert!(shown.iter().all(|t| t["Listens"].is_null() && t["listens"].is_null()), "no field that Docker does not know");

    // What changes while a daemon is away is seen when it is back.
    let number = index_of(&swarm, &tasks[0]).await;
    swarm.hosts[number].stop_daemon(true).await.expect("killed");
    drop((dual, other));
    let late = listen(&two, "0.0.0.0:80").await;
    start(&mut swarm.hosts[number]).await;
    swarm.ready(2).await;
    all_know(&swarm, "the other one to listen", &tasks, [(false, false), (true, false)]).await;
    drop(late);
    all_know(&swarm, "nobody to listen any more", &tasks, [(false, false), (false, false)]).await;
    swarm.stop().await;
}
