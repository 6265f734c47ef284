//! Updates, global services and jobs as a user sees them: through the stock CLI, on real engines.

use super::super::load::{Load, Target, of_host};
use super::super::ports::{client, order::good_server};
use super::kit::*;
use serde_json::{Value, json};
use std::time::Duration;

async fn docker(swarm: &Swarm, line: &str) -> String {
    swarm.hosts[0].docker_run(line).await.unwrap_or_else(|error| panic!("docker {line}: {error:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_loses_no_request_and_the_cli_sees_it_end() {
    let swarm = swarm("ro", 3, "").await;
    let client = client(&swarm).await;
    let mut template = good_server(&json!([]));
    template.as_object_mut().expect("object").remove("Networks");
    swarm.service("two", 2, Some(8080), template.clone()).await;
    swarm.service("one", 1, Some(8081), template).await;
    for (service, count) in [("two", 2), ("one", 1)] {
        swarm.running(service, count).await;
    }
    docker(&swarm, "service update -d --update-order start-first --update-monitor 1s one").await;
    docker(&swarm, "service update -d --update-monitor 1s two").await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 2).await;
    wait_for_backends(&swarm.hosts, "8081/tcp", 1).await;
    let targets = swarm.hosts.iter().flat_map(|h| [8080, 8081].map(|port| (h, port)));
    let targets =
        targets.map(|(h, port)| Target::new(&of_host(&client), (h.address(), port).into(), format!("{} {port}", h.name())));
    let load = Load::start(targets, Duration::from_millis(5));
    for round in 0..3 {
        for service in ["two", "one"] {
            let said = docker(&swarm, &format!("service update --env-add ROUND={round} {service}")).await;
            assert!(said.contains("converged"), "{said}");
            let shown = get(&swarm.hosts[0], &format!("/services/{service}")).await;
            let state = shown["UpdateStatus"]["State"].as_str().expect("state");
            assert!(["updating", "completed"].contains(&state), "{shown:#}");
        }
    }
    let tallies = load.stop().await;
    for tally in &tallies {
        assert!(tally.failed.is_empty(), "{} requests failed, {} were answered", tally.failed.len(), tally.answers());
        assert!(tally.answers() > 100, "{}", tally.answers());
    }
    let history =
        skep::lab::output(swarm.hosts[0].command(SKEP).args(["history", "--run-dir"]).arg(swarm.hosts[0].run_dir()).arg("two"))
            .await
            .expect("history");
    let lines: Vec<&str> = history.lines().collect();
    assert!(lines[1].contains("created") && history.contains("the service wants another task"), "{history}");
    assert!(history.contains("replaced by an update or rollback") && history.contains("update completed"), "{history}");
    client.stop().await;
    swarm.stop().await;
}

#[tokio::test]
async fn a_failing_update_is_paused_and_rolled_back_by_the_stock_cli() {
    let swarm = swarm("rf", 2, "").await;
    docker(
        &swarm,
        &format!(
            "service create -d --no-resolve-image --name web --replicas 2 --update-monitor 2s --rollback-monitor 1s \
        --restart-delay 1s {} sleep 1000",
            skep::lab::WHOAMI_IMAGE
        ),
    )
    .await;
    let before: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    // An image that no node has: nothing that runs is stopped for it.
    let refused = swarm.hosts[0].docker_run("service update --no-resolve-image --image nowhere.invalid/x:1 web").await;
    let refused = format!("{:#}", refused.expect_err("paused"));
    assert!(refused.contains("service update paused: update paused due to failure or early termination of task"), "{refused}");
    let now: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    assert_eq!(now, before, "the tasks of before run on");
    let said = docker(&swarm, "service rollback web").await;
    assert!(said.contains("converged"), "{said}");
    within(20, "the rollback to be over", || async {
        let shown = get(&swarm.hosts[0], "/services/web").await;
        anyhow::ensure!(shown["UpdateStatus"]["State"] == "rollback_completed", "{shown:#}");
        Ok(())
    })
    .await;
    let now: Vec<Value> = swarm.running("web", 2).await.iter().map(|t| t["ID"].clone()).collect();
    assert_eq!(now, before);
    swarm.stop().await;
}

#[tokio::test]
async fn a_global_service_and_jobs_run_as_the_stock_cli_expects() {
    let swarm = swarm("rg", 3, "").await;
    let image = skep::lab::WHOAMI_IMAGE;
    let said = docker(&swarm, &format!("service create --no-resolve-image --name all --mode global {image} sleep 1000")).await;
    assert!(said.contains("converged"), "{said}");
    assert!(docker(&swarm, "service ls").await.contains("3/3"));
    let ps = docker(&swarm, "service ps --no-trunc all").await;
    for host in &swarm.hosts {
        let id = swarm.node_id(host).await;
        assert!(ps.contains(&format!("all.{id}")), "{ps}");
    }
    docker(&swarm, "node update --availability drain n3").await;
    within(30, "the drained node's task to stop", || async {
        let running = swarm.tasks("all").await.iter().filter(|t| t["Status"]["State"] == "running").count();
        anyhow::ensure!(running == 2, "{running}");
        Ok(())
    })
    .await;
    assert!(docker(&swarm, "service ls").await.contains("2/2"));
    docker(&swarm, "node update --availability active n3").await;
    swarm.running("all", 3).await;

    let job = format!(
        "service create --no-resolve-image --name job --mode replicated-job --replicas 3 --max-concurrent 2 {image} sleep 1"
    );
    let said = docker(&swarm, &job).await;
    assert!(said.contains("job complete"), "{said}");
    let listed = docker(&swarm, "service ls").await;
    assert!(listed.contains("0/2 (3/3 completed)"), "{listed}");
    let said = docker(&swarm, "service update --force job").await;
    assert!(said.contains("job complete"), "{said}");
    let said = docker(&swarm, &format!("service create --no-resolve-image --name each --mode global-job {image} sleep 1")).await;
    assert!(said.contains("job complete"), "{said}");
    let listed = docker(&swarm, "service ls --filter mode=global-job").await;
    assert!(listed.contains("0/0 (3/3 completed)"), "{listed}");
    assert_eq!(swarm.tasks("each").await.len(), 3);
    swarm.stop().await;
}
