//! Restarts, kills, absent managers: running tasks continue.

use super::kit::*;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

#[tokio::test]
async fn a_killed_daemon_adopts_what_runs_and_a_worker_starts_without_any_manager() {
    let mut swarm = swarm("life", 2, "").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 4, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    swarm.running("web", 4).await;
    let before = containers(&swarm).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 4).await;
    ledger_is_written(&swarm.hosts[1]).await;

    // Both daemons are killed; containers and tunnel processes continue to run.
    let tunnel = swarm.hosts[1].run("busybox pidof skep").await.expect("processes");
    for host in &mut swarm.hosts {
        host.stop_daemon(true).await.expect("killed");
    }
    let still = swarm.hosts[1].run("busybox pidof skep").await.expect("the tunnel process outlives the daemon");
    assert!(tunnel.split_whitespace().any(|pid| still.split_whitespace().any(|s| s == pid)), "{tunnel} / {still}");

    // The worker alone, without any manager: its tunnel, names, ports and tasks work.
    start(&mut swarm.hosts[1]).await;
    let worker = &swarm.hosts[1];
    within(10, "the worker's port to be answered by its own tasks", || ask(worker, (worker.address(), 8080).into())).await;
    let status = status(worker).await;
    assert_eq!(status["state"], "active");
    assert!(status["leader"].is_null(), "no leader is known: {status:#}");

    start(&mut swarm.hosts[0]).await;
    swarm.ready(2).await;
    swarm.running("web", 4).await;
    assert_eq!(containers(&swarm).await, before, "the same containers, none restarted");
    for host in &swarm.hosts {
        within(10, "both ports to answer", || ask(&swarm.hosts[0], (host.address(), 8080).into())).await;
    }
    swarm.stop().await;
}

async fn containers(swarm: &Swarm) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for host in &swarm.hosts {
        let text = skep::lab::output(host.engine_cli().args(["ps", "-q", "--no-trunc"])).await.expect("docker ps");
        all.extend(text.lines().map(str::to_owned));
    }
    all
}

#[tokio::test]
async fn leave_takes_everything_down_and_the_node_can_be_removed() {
    let swarm = swarm("leave", 2, "").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 4, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    swarm.running("web", 4).await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    let id = swarm.node_id(worker).await;

    let refused = post(manager, "/swarm/leave", &json!({})).await;
    assert_eq!(refused.status, 503, "a manager does not leave without force");
    assert!(said(&refused).contains("--force"));

    // With `wait`, as `skep leave` asks: docker's own command does not wait until the tasks have stopped.
    let leaving = async {
        ok(&post(worker, "/swarm/leave?wait=1", &json!({})).await);
        std::time::Instant::now()
    };
    // It says goodbye: silence alone would take 2 s from then on.
    let down = within(30, "the node to be down", || async {
        let node = get(manager, &format!("/nodes/{id}")).await;
        anyhow::ensure!(node["Status"]["State"] == "down", "{node:#}");
        Ok(std::time::Instant::now())
    });
    let (left, down) = tokio::join!(leaving, down);
    assert!(down < left + Duration::from_secs(1), "down {:?} after it had left", down - left);
    assert_eq!(skep::lab::output(worker.engine_cli().args(["ps", "-aq"])).await.expect("ps").trim(), "", "no container stays");
    let networks =
        skep::lab::output(worker.engine_cli().args(["network", "ls", "--format", "{{.Driver}}"])).await.expect("networks");
    assert!(!networks.contains("skep"), "no network of skep stays: {networks}");
    assert!(!worker.run_dir().join("mesh").exists(), "no mesh namespace stays");
    assert_eq!(
        worker.run("busybox pidof skep").await.expect("daemon").split_whitespace().count(),
        1,
        "only the daemon itself runs on"
    );
    assert_eq!(get(worker, "/info").await["Swarm"]["LocalNodeState"], "inactive");

    swarm.running("web", 4).await;
    skep::lab::output(manager.docker().args(["node", "rm", &id])).await.expect("removed");
    assert_eq!(get(manager, "/nodes").await.as_array().map(Vec::len), Some(1));

    // It joins again, as a new node.
    ok(&join(worker, manager.address(), &worker_token(manager).await).await);
    swarm.ready(2).await;
    assert_ne!(swarm.node_id(worker).await, id);
    swarm.stop().await;
}

#[tokio::test]
async fn a_failed_task_is_restarted_by_its_policy_and_a_complete_one_is_not() {
    let swarm = swarm("policy", 1, "").await;
    let fails = json!({ "ContainerSpec": { "Command": ["/bin/sh", "-c", "exit 3"] }, "RestartPolicy": { "Condition": "on-failure", "MaxAttempts": 2, "Delay": 100_000_000 } });
    swarm.service("fails", 1, None, fails).await;
    let ends =
        json!({ "ContainerSpec": { "Command": ["/bin/sh", "-c", "exit 0"] }, "RestartPolicy": { "Condition": "on-failure" } });
    swarm.service("ends", 1, None, ends).await;
    swarm
        .service(
            "none",
            1,
            None,
            json!({ "ContainerSpec": { "Command": ["/bin/sh", "-c", "exit 1"] }, "RestartPolicy": { "Condition": "none" } }),
        )
        .await;
    let states = |name: &'static str| {
        let swarm = &swarm;
        async move {
            swarm
                .tasks(name)
                .await
                .iter()
                .map(|t| t["Status"]["State"].as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        }
    };
    within(30, "three failed tries", || async {
        let states = states("fails").await;
        anyhow::ensure!(states == ["failed"; 3], "{states:?}");
        Ok(())
    })
    .await;
    let task = &swarm.tasks("fails").await[0];
    assert_eq!(task["Status"]["ContainerStatus"]["ExitCode"], 3);
    assert_eq!(task["Status"]["Err"], "task: non-zero exit (3)");
    assert_eq!(states("ends").await, ["complete"]);
    assert_eq!(states("none").await, ["failed"]);
    swarm.stop().await;
}

#[tokio::test]
async fn init_join_and_leave_work_without_a_docker_cli() {
    let swarm = hosts("verbs", 2, "").await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    let skep = |host: &skep::lab::Host, words: &[&str]| {
        let mut command = tokio::process::Command::new(SKEP);
        command.arg(words[0]).arg("--run-dir").arg(host.run_dir()).args(&words[1..]);
        async move { skep::lab::output(&mut command).await }
    };
    let output = skep(manager, &["init", "--advertise-addr", "192.0.2.1", "--json"]).await.expect("init");
    let made: serde_json::Value = serde_json::from_str(&output).expect("one JSON document");
    assert_eq!(made["manager"], "192.0.2.1:2377");
    let token = made["tokens"]["worker"].as_str().expect("token");
    let output = skep(worker, &["join", "--token", token, "192.0.2.1", "--json"]).await.expect("join, port left out");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&output).expect("JSON")["role"], "worker");
    swarm.ready(2).await;
    let table = skep(worker, &["status"]).await.expect("status");
    assert!(table.contains("n1") && table.contains("n2 *") && table.contains("direct"), "{table}");
    skep(worker, &["leave"]).await.expect("leave");
    assert!(skep(worker, &["status"]).await.expect("status").contains("inactive"));
    let refused = skep(manager, &["leave"]).await.expect_err("a manager needs --force").to_string();
    assert!(refused.contains("--force"), "{refused}");
    skep(manager, &["leave", "--force"]).await.expect("forced");
    swarm.stop().await;
}

/// Stacks with tasks that take their time to stop: the command ends well, the names are free, nothing stays.
#[tokio::test]
async fn a_stack_is_removed_at_once_although_its_tasks_use_their_grace_and_can_be_deployed_again() {
    let swarm = swarm("stackrm", 2, "").await;
    let manager = &swarm.hosts[0];
    let file = manager.dir().join("stack.yml");
    let image = skep::lab::WHOAMI_IMAGE;
    let text = format!(
        "services:\n  slow:\n    image: {image}\n    command: [sh, -c, \"trap : TERM; while :; do sleep 1; done\"]\n    networks: [back]\n    \
         stop_grace_period: 6s\n    deploy: {{replicas: 2}}\nnetworks:\n  back: {{}}\n"
    );
    std::fs::write(&file, text).expect("file");
    let docker = |words: &str| {
        let mut command = manager.docker();
        command.args(words.split(' '));
        async move { skep::lab::output(&mut command).await.expect("docker") }
    };
    let deploy = format!("stack deploy -d --resolve-image never -c {} shop", file.display());
    docker(&deploy).await;
    swarm.running("shop_slow", 2).await;
    docker("stack rm shop").await;
    assert!(!docker("network ls").await.contains("shop_back"), "hidden at once");
    docker(&deploy).await;
    swarm.running("shop_slow", 2).await;
    docker("stack rm shop").await;
    for host in &swarm.hosts {
        within(60, "containers and networks to be gone", || async {
            let containers = skep::lab::output(host.engine_cli().args(["ps", "-aq"])).await?;
            let networks = skep::lab::output(host.engine_cli().args(["network", "ls"])).await?;
            anyhow::ensure!(containers.trim().is_empty() && !networks.contains("shop_back"), "{containers}{networks}");
            Ok(())
        })
        .await;
    }
    swarm.stop().await;
}

/// `docker swarm leave` answers before the tasks have stopped: a daemon that is killed then goes on with the leave.
#[tokio::test]
async fn a_daemon_that_is_killed_right_after_the_answer_to_a_leave_finishes_it_when_it_is_started_again() {
    let mut swarm = swarm("leftkill", 1, "").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let slow = json!({
        "ContainerSpec": { "Command": ["/bin/sh", "-c", "trap : TERM; while :; do sleep 1; done"], "StopGracePeriod": 6_000_000_000_u64 },
        "Networks": [{ "Target": "back" }],
    });
    swarm.service("slow", 2, Some(8080), slow).await;
    swarm.running("slow", 2).await;
    let asked = std::time::Instant::now();
    ok(&post(&swarm.hosts[0], "/swarm/leave?force=1", &json!({})).await);
    let took = asked.elapsed();
    // Whatever the tasks and their grace.
    assert!(took <= std::time::Duration::from_secs(1), "the answer took {took:?}");
    let host = &mut swarm.hosts[0];
    host.stop_daemon(true).await.expect("killed");
    let containers = skep::lab::output(host.engine_cli().args(["ps", "-aq"])).await.expect("ps");
    assert_eq!(containers.split_whitespace().count(), 2, "the take-down was not finished: {containers}");
    start(host).await;

    let host = &swarm.hosts[0];
    assert_eq!(get(host, "/info").await["Swarm"]["LocalNodeState"], "inactive");
    within(60, "everything to be taken down", || async {
        let containers = skep::lab::output(host.engine_cli().args(["ps", "-aq"])).await?;
        let networks = skep::lab::output(host.engine_cli().args(["network", "ls", "--format", "{{.Driver}}"])).await?;
        anyhow::ensure!(containers.trim().is_empty() && !networks.contains("skep"), "{containers}{networks}");
        let files: BTreeSet<_> =
            std::fs::read_dir(host.data_dir())?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        anyhow::ensure!(files == BTreeSet::from(["lock".into()]), "{files:?}");
        // The tunnel process of the killed daemon has ended; in the lab there is no init that waits for it.
        let processes = host.run("busybox ps -o stat,comm").await?;
        let running = processes.lines().filter(|line| line.ends_with(" skep") && !line.starts_with('Z')).count();
        anyhow::ensure!(running == 1, "only the daemon runs on: {processes}");
        anyhow::ensure!(!host.run_dir().join("mesh").exists(), "the mesh namespace stays");
        Ok(())
    })
    .await;
    // The node is free for another swarm.
    init(host).await;
    swarm.stop().await;
}
