//! Containers that end, are scaled, limited, and asked to stop.

use super::*;
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn containers_are_replaced_limited_scaled_and_stopped_as_their_services_say() {
    ACCEPTANCE.concurrent_case(async |at| {
        tokio::join!(killed_and_stopped(at), attempts(at), avoided_node(at), scaled(at));
    });
}

/// Rows 9, 26, 34, 89: a killed container is replaced and shown as failed, its volume stays, limits and stop signal arrive.
async fn killed_and_stopped(at: &AcceptanceSwarm) {
    let script = "trap 'echo got USR1 > /d/signal; exit 0' USR1; echo started >> /d/starts; while :; do sleep 1 & wait $!; done";
    let options = [
        "--constraint node.hostname==n2",
        "--mount type=volume,src=kept,dst=/d",
        "--limit-memory 64m",
        "--limit-cpu 0.5",
        "--restart-delay 300ms",
        "--stop-signal USR1",
        "--stop-grace-period 30s",
    ];
    at.create("kept", &options, &["sh", "-c", script]).await;
    let host = at.host("n2");
    let first = at.swarm.running("kept", 1).await.remove(0);
    let shown = output(host.docker().args(["inspect", &container(&first)])).await.expect("inspect");
    let shown: Value = serde_json::from_str::<Value>(&shown).expect("JSON")[0].take();
    assert_eq!((&shown["HostConfig"]["Memory"], &shown["HostConfig"]["NanoCpus"]), (&json!(67_108_864), &json!(500_000_000)));
    assert_eq!((&shown["Config"]["StopSignal"], &shown["Config"]["StopTimeout"]), (&json!("USR1"), &json!(30)));
    let exec = async |task: &Value, line: &str| {
        output(host.docker().args(["exec", &container(task), "sh", "-c", line])).await.map(|said| said.trim().to_owned())
    };
    exec(&first, "echo precious > /d/file").await.expect("exec");

    host.docker_run(&format!("kill {}", container(&first))).await.expect("kill");
    let second = within(20, "another task", || async {
        let task = at.swarm.running("kept", 1).await.remove(0);
        anyhow::ensure!(task["ID"] != first["ID"], "{task:#}");
        Ok(task)
    })
    .await;
    assert_eq!(exec(&second, "cat /d/file").await.expect("exec"), "precious");
    let listed = at.ps("kept").await;
    let killed = listed.iter().find(|task| first["ID"] == task.id.as_str()).unwrap_or_else(|| panic!("{listed:#?}"));
    assert!(killed.current.starts_with("Failed") && killed.error.contains("task: non-zero exit (137)"), "{killed:?}");
    assert_eq!(at.docker(&format!("inspect --format {{{{.Status.ContainerStatus.ExitCode}}}} {}", killed.id)).await, "137");

    // A signal before the shell has set its trap would end it.
    within(10, "the second start", || async {
        let starts = exec(&second, "cat /d/starts").await?;
        anyhow::ensure!(starts.lines().count() == 2, "{starts}");
        Ok(())
    })
    .await;
    let asked = Instant::now();
    at.docker("service scale -d kept=0").await;
    within(20, "the task to be gone", || async {
        let left = at.ps("kept").await;
        anyhow::ensure!(left.iter().all(|task| !task.current.starts_with("Running")), "{left:?}");
        Ok(())
    })
    .await;
    assert!(asked.elapsed() < Duration::from_secs(25), "the signal has ended it, not the end of the grace period");
    let signal = host.docker_run(&format!("run --rm --network none -v kept:/d {WHOAMI_IMAGE} cat /d/signal")).await.expect("run");
    assert_eq!(signal.trim(), "got USR1");

    at.create("vast", &["--reserve-memory 900g"], &[]).await;
    within(20, "the reason", || async {
        let listed = at.ps("vast").await;
        let waits = |task: &ListedTask| {
            task.current.starts_with("Pending") && task.error.contains("no suitable node (insufficient resources on 3 nodes)")
        };
        anyhow::ensure!(listed.iter().all(waits) && !listed.is_empty(), "{listed:?}");
        Ok(())
    })
    .await;
    at.remove("kept vast").await;
}

/// Row 50: so many attempts, then none.
async fn attempts(at: &AcceptanceSwarm) {
    at.create("tries", &["--restart-max-attempts 2", "--restart-delay 100ms"], &["/bin/busybox", "false"]).await;
    let all = within(30, "three failures", || async {
        let listed = at.ps("tries").await;
        let failed = listed.iter().filter(|task| task.current.starts_with("Failed")).count();
        anyhow::ensure!((listed.len(), failed) == (3, 3), "{listed:?}");
        Ok(listed.into_iter().map(|task| task.id).collect::<Vec<_>>())
    })
    .await;
    assert_eq!(at.replicas("tries").await, "0/1");
    // Another service is created and runs meanwhile: this one gets no fourth task.
    at.create("later", &[], &[]).await;
    at.swarm.running("later", 1).await;
    assert_eq!(at.ps("tries").await.into_iter().map(|task| task.id).collect::<Vec<_>>(), all);
    at.remove("tries later").await;
}

/// Row 127: after five failures on a node the tasks of the service come to others.
async fn avoided_node(at: &AcceptanceSwarm) {
    let script = "[ $NODE = n3 ] && exit 1; exec httpd -f -p 80 -h /www";
    let options = ["--replicas 3", "--env NODE={{.Node.Hostname}}", "--restart-delay 100ms"];
    at.create("avoids", &options, &["sh", "-c", script]).await;
    within(60, "the failing node to be avoided", || async {
        let listed = at.ps("avoids").await;
        let running: Vec<&str> =
            listed.iter().filter(|task| task.current.starts_with("Running")).map(|task| task.node.as_str()).collect();
        let failed = listed.iter().filter(|task| task.node == "n3" && task.current.starts_with("Failed")).count();
        // Of a slot five tasks are kept, that which runs among them.
        anyhow::ensure!(running.len() == 3 && !running.contains(&"n3") && failed == 4, "{listed:#?}");
        Ok(())
    })
    .await;
    at.remove("avoids").await;
}

/// Rows 11, 27 and 53: tasks are spread, those that are too many vanish, and all with their service.
async fn scaled(at: &AcceptanceSwarm) {
    let each = |count: usize| ["n1", "n2", "n3"].map(|node| (node.to_owned(), count)).into();
    at.create("scaled", &["--replicas 3"], &[]).await;
    assert_eq!(at.per_node("scaled", 3).await, each(1));
    at.docker("service scale -d scaled=6").await;
    assert_eq!(at.per_node("scaled", 6).await, each(2));
    assert_eq!(at.replicas("scaled").await, "6/6");
    at.docker("service scale -d scaled=2").await;
    within(30, "four tasks to vanish", || async {
        let listed = at.ps("scaled").await;
        anyhow::ensure!(listed.len() == 2, "{listed:?}");
        Ok(())
    })
    .await;
    assert_eq!(at.replicas("scaled").await, "2/2");
    at.remove("scaled").await;
    within(20, "its containers to be removed", || async {
        for host in &at.swarm.hosts {
            let filter = ["ps", "-aq", "--filter", "label=com.docker.swarm.service.name=scaled"];
            let left = output(host.engine_cli().args(filter)).await?;
            anyhow::ensure!(left.trim().is_empty(), "{}: {left}", host.name());
        }
        Ok(())
    })
    .await;
}
