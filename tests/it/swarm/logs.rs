//! Logs of services through the stock CLI on real engines, read at a manager that does not lead.

use super::kit::*;
use serde_json::json;
use skep::lab::Host;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// Open descriptors of the programs with this name on a host.
pub async fn descriptors(host: &Host, program: &str) -> usize {
    let pids = host.run(&format!("busybox pidof {program}")).await.expect("runs");
    let mut count = 0;
    for pid in pids.split_whitespace() {
        // The shell only reads the directory: `ls` fails for a descriptor that is closed meanwhile.
        let list = format!("echo /proc/{pid}/fd/*");
        let listed = skep::lab::output(host.command("busybox").args(["sh", "-c", &list])).await.expect("its descriptors");
        count += listed.split_whitespace().count();
    }
    count
}

/// Of all daemons and engines together.
async fn all_descriptors(swarm: &Swarm) -> usize {
    let mut all = 0;
    for host in &swarm.hosts {
        all += descriptors(host, "skep").await + descriptors(host, "dockerd").await;
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn any_manager_shows_the_logs_of_every_node_and_names_the_one_that_is_down() {
    let mut swarm = hosts("logs", 3, "").await;
    init(&swarm.hosts[0]).await;
    let tokens = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    for (host, role) in [(1, "Manager"), (2, "Worker")] {
        let token = tokens[role].as_str().expect("a token");
        ok(&join(&swarm.hosts[host], swarm.hosts[0].address(), token).await);
    }
    swarm.ready(3).await;
    let script = "echo started; echo to-stderr >&2; while true; do sleep 1; echo again; done";
    swarm.service("web", 3, None, json!({ "ContainerSpec": { "Command": ["sh", "-c", script] } })).await;
    swarm.running("web", 3).await;

    let follower = &swarm.hosts[1];
    let text = follower.docker_run("service logs --no-task-ids web").await.expect("logs");
    for host in ["n1", "n2", "n3"] {
        assert!(text.lines().any(|l| l.contains(&format!("@{host} ")) && l.ends_with("| started")), "{host}: {text}");
    }
    assert!(!text.contains("to-stderr"), "each stream where it belongs: {text}");
    let task = swarm.running("web", 3).await[0]["ID"].as_str().expect("id").to_owned();
    within(20, "the last line of a task alone", || async {
        let one = follower.docker_run(&format!("service logs --tail 1 {task}")).await?;
        anyhow::ensure!(one.lines().count() == 1 && one.trim_end().ends_with("| again"), "{one}");
        Ok(())
    })
    .await;

    // Followed by several readers; a task that starts later joins; when they go, nothing stays open anywhere.
    let before = all_descriptors(&swarm).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        let mut reader = follower.docker();
        reader.args(["service", "logs", "-f", "--no-task-ids", "--tail", "0", "web"]);
        reader.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut reader = reader.spawn().expect("the CLI");
        let lines = BufReader::new(reader.stdout.take().expect("piped")).lines();
        readers.push((reader, lines));
    }
    let (_, lines) = &mut readers[0];
    let first = lines.next_line().await.expect("reads").expect("a line");
    assert!(first.ends_with("| again"), "no older line: {first}");
    follower.docker_run("service scale -d web=4").await.expect("scaled");
    let joined = async {
        while let Some(line) = lines.next_line().await.expect("reads") {
            if line.starts_with("web.4@") && line.ends_with("| started") {
                return;
            }
        }
        panic!("the stream has ended");
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), joined).await.expect("the new task's first line");
    let during = all_descriptors(&swarm).await;
    assert!(during >= before + 5 * 4 * 2, "each reader holds connections to nodes and engines: {before} {during}");
    drop(readers);
    follower.docker_run("service scale -d web=3").await.expect("scaled");
    swarm.running("web", 3).await;
    within(20, "what the readers held to be closed", || async {
        let now = all_descriptors(&swarm).await;
        anyhow::ensure!(now <= before + 4, "{before} before, {during} meanwhile, {now} now");
        Ok(())
    })
    .await;

    let gone = swarm.node_id(&swarm.hosts[2]).await;
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    let reason = format!("for the following reasons: node {gone} is not available");
    within(20, "the lost node to be named", || async {
        let failed = swarm.hosts[1].docker_run("service logs web").await.expect_err("incomplete");
        anyhow::ensure!(format!("{failed:#}").contains(&reason), "{failed:#}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}
