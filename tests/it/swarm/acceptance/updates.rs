//! Updates and rollbacks that the CLI asks for.

use super::*;
use serde_json::json;
use skep::http::UnixClient;
use std::time::Duration;

#[test]
fn updates_and_rollbacks_go_as_their_options_say() {
    ACCEPTANCE.concurrent_case(async |at| {
        tokio::join!(rolled_back_twice(at), pairs(at), undone(at), half(at), forced(at), raced(at), one_port_per_node(at));
    });
}

/// The images of the containers that run for a service, on all engines.
async fn images(at: &AcceptanceSwarm, service: &str) -> anyhow::Result<Vec<String>> {
    let mut images = Vec::new();
    let filter = format!("label=com.docker.swarm.service.name={service}");
    for host in &at.swarm.hosts {
        let shown = output(host.engine_cli().args(["ps", "--filter", &filter, "--format", "{{.Image}}"])).await?;
        images.extend(shown.lines().map(str::to_owned));
    }
    Ok(images)
}

/// Rows 13, 55 and 56: a rollback brings the former image back, a second one returns; the drawn port stays, and is the service's.
async fn rolled_back_twice(at: &AcceptanceSwarm) {
    at.create("site", &["--replicas 2", "-p 80", "--update-monitor 500ms", "--rollback-monitor 500ms"], &[]).await;
    let port = async || at.docker("service ls --filter name=site --format {{.Ports}}").await;
    let drawn = within(20, "a port", || async {
        let drawn = port().await;
        anyhow::ensure!(!drawn.is_empty(), "none is shown");
        Ok(drawn)
    })
    .await;
    let number: u16 = drawn
        .strip_prefix("*:")
        .and_then(|rest| rest.strip_suffix("->80/tcp"))
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{drawn}"));
    assert!((30_000..=32_767).contains(&number), "{number}");
    let other = format!("service create -d --no-resolve-image --name other --publish {number}:80 {WHOAMI_IMAGE}");
    let refused = at.manager().docker_run(&other).await.expect_err("the port is taken").to_string();
    let words = format!("port '{number}' is already in use by service 'site'");
    assert!(refused.contains(&words) && refused.contains("as an ingress port"), "{refused}");
    at.swarm.running("site", 2).await;
    for (step, state, image) in [
        (format!("service update -d --no-resolve-image --image {SECOND_IMAGE} site"), "completed", SECOND_IMAGE),
        ("service rollback -d site".to_owned(), "rollback_completed", WHOAMI_IMAGE),
        ("service rollback -d site".to_owned(), "rollback_completed", SECOND_IMAGE),
    ] {
        at.docker(&step).await;
        within(30, &step, || async {
            let (service, images) = (get(at.manager(), "/services/site").await, images(at, "site").await?);
            anyhow::ensure!(images == [image, image], "{images:?}");
            anyhow::ensure!(service["UpdateStatus"]["State"] == state, "{service:#}");
            anyhow::ensure!(service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == image, "{service:#}");
            Ok(())
        })
        .await;
        assert_eq!(port().await, drawn);
    }
    for host in &at.swarm.hosts {
        within(10, "the port to answer", || ask(&at.client, (host.address(), number).into())).await;
    }
    at.remove("site").await;
}

/// Row 43: two at a time, the next two after the delay.
async fn pairs(at: &AcceptanceSwarm) {
    let options = ["--replicas 4", "--update-parallelism 2", "--update-delay 3s", "--update-monitor 500ms"];
    at.create("pairs", &options, &[]).await;
    at.swarm.running("pairs", 4).await;
    at.docker("service update -d --env-add ROUND=2 pairs").await;
    at.until_update("pairs", "completed").await;
    let tasks = at.swarm.running("pairs", 4).await;
    let mut times: Vec<_> = tasks.iter().map(|task| (time(&task["CreatedAt"]), time(&task["Status"]["Timestamp"]))).collect();
    times.sort_unstable();
    let mut first_run = [times[0].1, times[1].1];
    first_run.sort_unstable();
    assert!(times[1].0 < first_run[0], "the first two go together: {times:?}");
    for (next, before) in times[2..].iter().zip(first_run) {
        assert!(next.0.since(before) >= Duration::from_secs(3), "the delay is kept: {times:?}");
    }
    at.remove("pairs").await;
}

/// Row 45: an update that fails is rolled back, and the container that it had replaced with it.
async fn undone(at: &AcceptanceSwarm) {
    let options = [
        "--replicas 2",
        "--update-failure-action rollback",
        "--update-monitor 2s",
        "--rollback-monitor 500ms",
        "--restart-delay 100ms",
    ];
    at.create("undone", &options, &[]).await;
    let before = ids(&at.swarm.running("undone", 2).await);
    let update = ["service", "update", "-d", "--args", "/bin/busybox false", "undone"];
    output(at.manager().docker().args(update)).await.expect("update");
    let message = at.until_update("undone", "rollback_completed").await;
    assert_eq!(message, "rollback completed");
    let after = at.swarm.running("undone", 2).await;
    assert!(after.iter().all(|task| task["Spec"]["ContainerSpec"]["Args"].is_null()), "{after:#?}");
    let replaced = ids(&after).iter().filter(|id| !before.contains(id)).count();
    assert_eq!(replaced, 1, "one task failed, nothing more was stopped: {before:?} {after:#?}");
    let failed = at.ps("undone").await.into_iter().filter(|task| task.error.contains("non-zero exit (1)")).count();
    assert!(failed >= 1, "the failure is listed");
    let spec = get(at.manager(), "/services/undone").await["Spec"].take();
    assert!(spec["TaskTemplate"]["ContainerSpec"]["Args"].is_null(), "{spec:#}");
    at.remove("undone").await;
}

/// Row 46: one failure of four is fewer than the share that is allowed.
async fn half(at: &AcceptanceSwarm) {
    let script = "[ \"$FAILS\" = \"$SLOT\" ] && [ ! -e /v/failed ] && { echo > /v/failed; exit 1; }; exec httpd -f -p 80 -h /www";
    let options = [
        "--replicas 4",
        "--constraint node.hostname==n3",
        "--mount type=volume,src=half,dst=/v",
        "--env SLOT={{.Task.Slot}}",
        "--restart-delay 100ms",
        "--update-parallelism 2",
        "--update-max-failure-ratio 0.5",
        "--update-monitor 2s",
    ];
    at.create("half", &options, &["sh", "-c", script]).await;
    at.swarm.running("half", 4).await;
    at.docker("service update -d --env-add FAILS=2 half").await;
    at.until_update("half", "completed").await;
    let failed = at.ps("half").await.into_iter().filter(|task| task.error.contains("non-zero exit (1)")).count();
    assert_eq!((failed, at.swarm.running("half", 4).await.len()), (1, 4));
    at.remove("half").await;
}

/// Rows 49 and 88: every task is replaced with the same spec, and of a slot five are kept.
async fn forced(at: &AcceptanceSwarm) {
    at.create("forced", &["--replicas 2", "--update-parallelism 0", "--update-monitor 500ms"], &[]).await;
    let mut before = ids(&at.swarm.running("forced", 2).await);
    let template = async || {
        let mut template = get(at.manager(), "/services/forced").await["Spec"]["TaskTemplate"].take();
        (template["ForceUpdate"].take(), template)
    };
    let (_, spec) = template().await;
    for round in 1..=6 {
        at.docker("service update -d --force forced").await;
        before = within(30, "new tasks", || async {
            let now = ids(&at.swarm.running("forced", 2).await);
            anyhow::ensure!(now.iter().all(|id| !before.contains(id)), "round {round}: {now:?}");
            Ok(now)
        })
        .await;
    }
    assert_eq!(template().await, (json!(6), spec));
    within(20, "the oldest to be forgotten", || async {
        let mut slots = BTreeMap::new();
        for task in at.swarm.tasks("forced").await {
            *slots.entry(task["Slot"].as_u64()).or_insert(0) += 1;
        }
        anyhow::ensure!(slots == [(Some(1), 5), (Some(2), 5)].into(), "{slots:?}");
        Ok(())
    })
    .await;
    assert_eq!(at.ps("forced").await.len(), 10);
    at.remove("forced").await;
}

/// Row 96: of two changes of one version, asked of two managers at the same time, one is made.
async fn raced(at: &AcceptanceSwarm) {
    at.create("raced", &["--replicas 0"], &[]).await;
    for round in 0..5 {
        let service = get(at.manager(), "/services/raced").await;
        // The other manager may not have read the last change yet.
        within(10, "the same version on both managers", || async {
            let other: Value = UnixClient::new(at.swarm.hosts[1].skep_socket()).get("/services/raced").await?.json()?;
            anyhow::ensure!(other["Version"] == service["Version"], "{other}");
            Ok(())
        })
        .await;
        let target = format!("/services/raced/update?version={}", service["Version"]["Index"]);
        let change = |who: &str| {
            let mut spec = service["Spec"].clone();
            spec["Labels"] = json!({ "by": who, "round": round.to_string() });
            spec
        };
        let (one, two) = (change("n1"), change("n2"));
        let replies = tokio::join!(post(&at.swarm.hosts[0], &target, &one), post(&at.swarm.hosts[1], &target, &two));
        let (made, refused) = match (replies.0.status.is_success(), replies.1.status.is_success()) {
            (true, false) => ("n1", replies.1),
            (false, true) => ("n2", replies.0),
            both => panic!("one is made, the other is not: {both:?}"),
        };
        assert!(said(&refused).contains("update out of sequence"), "{}", said(&refused));
        // The manager that is asked may not be the one that has written.
        within(10, "the change that was made", || async {
            let labels = get(at.manager(), "/services/raced").await["Spec"]["Labels"].take();
            anyhow::ensure!(labels == json!({ "by": made, "round": round.to_string() }), "{labels}");
            Ok(())
        })
        .await;
    }
    at.remove("raced").await;
}

/// A global service with a port of each node: the old task gives it up before the new one takes it.
async fn one_port_per_node(at: &AcceptanceSwarm) {
    let options = ["--mode global", "--publish mode=host,published=8086,target=80", "--update-monitor 500ms"];
    at.create("each", &options, &[]).await;
    let before = ids(&at.swarm.running("each", 3).await);
    at.docker("service update -d --env-add ROUND=2 each").await;
    at.until_update("each", "completed").await;
    let after = at.swarm.running("each", 3).await;
    assert!(ids(&after).iter().all(|id| !before.contains(id)), "{after:#?}");
    for host in &at.swarm.hosts {
        within(10, "the port of the new task", || ask(&at.client, (host.address(), 8086).into())).await;
    }
    let rejected = at.ps("each").await.into_iter().filter(|task| !task.error.is_empty()).collect::<Vec<_>>();
    assert!(rejected.is_empty(), "{rejected:?}");
    at.remove("each").await;
}
