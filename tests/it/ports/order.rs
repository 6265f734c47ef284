//! Ordered removal: a task is removed from every port and name before it gets SIGTERM, so that no request is lost.

use super::*;

pub async fn availability(swarm: &Swarm, host: &str, value: &str) {
    swarm.hosts[0].docker_run(&format!("node update --availability {value} {host}")).await.expect("node update");
}

/// Settings of tests of the order of a removal: on a starved machine the bounds of the wait must not end it.
pub const LONG_HOLD: &str = "[manager]\nstop_hold_ms = 60000\nstop_pause_ms = 1000\nnode_lag_ms = 120000\n";

/// Waits until `count` tasks of the service run and every other one has ended.
pub async fn settled(swarm: &Swarm, service: &str, count: usize) {
    swarm.running(service, count).await;
    within(60, "the others to end", || async {
        let tasks = swarm.tasks(service).await;
        let live =
            tasks.iter().filter(|t| ["running", "starting", "ready", "preparing"].iter().any(|s| t["Status"]["State"] == *s));
        let live: Vec<_> = live.map(|t| format!("{}: {} of {}", t["NodeID"], t["Status"], t["DesiredState"])).collect();
        anyhow::ensure!(live.len() == count, "{} live tasks, not {count}: {live:#?}", live.len());
        Ok(())
    })
    .await;
}

/// Waits until the service has no task on the host that is to run.
async fn left_by(swarm: &Swarm, service: &str, host: &str) {
    let host = swarm.hosts.iter().find(|h| h.name() == host).expect("a host");
    let node = json!(swarm.node_id(host).await);
    within(60, "the tasks to leave", || async {
        let tasks = swarm.tasks(service).await;
        let stays = tasks.iter().filter(|t| t["NodeID"] == node && t["DesiredState"] == "running").count();
        anyhow::ensure!(stays == 0, "{stays} tasks are to run on the drained node");
        Ok(())
    })
    .await;
}

/// A server that on SIGTERM stops listening at once and finishes its requests.
pub fn good_server(networks: &Value) -> Value {
    let server = "httpd -f -p 80 -h /www & s=$!; trap 'kill $s; sleep 1; exit 0' TERM; wait";
    let container = json!({ "Command": ["sh", "-c", server], "StopGracePeriod": 5_000_000_000_u64 });
    json!({ "Networks": networks, "ContainerSpec": container })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_tasks_change_on_the_userspace_datapath() {
    let swarm = swarm("po", 3, &format!("log = \"info,skep::ingress=debug\"\nebpf_datapath = \"off\"\n{LONG_HOLD}")).await;
    change_tasks_under_load(swarm, async |_| ()).await.stop().await;
}

/// Scales and drains under requests by port through every node and by name: none fails. They begin once the datapath `serves`.
pub async fn change_tasks_under_load(swarm: Swarm, serves: impl AsyncFn(&[Host])) -> Swarm {
    let client = client(&swarm).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!([{ "Target": "back" }]);
    swarm.service("web", 6, Some(8080), good_server(&networks)).await;
    swarm.service("caller", 3, None, json!({ "Networks": networks })).await;
    let callers = swarm.running("caller", 3).await;
    settled(&swarm, "web", 6).await;
    serves(&swarm.hosts).await;
    // A caller by name on the manager's node, which is not drained.
    let here = swarm.node_id(&swarm.hosts[0]).await;
    let caller = callers.iter().find(|t| t["NodeID"] == json!(here)).expect("one on each node");
    let caller = caller["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container");
    let by_name = ByName::start(&swarm.hosts[0], caller, "web");
    let ports = swarm.hosts.iter().map(|h| Target::new(&of_host(&client), (h.address(), 8080).into(), h.name()));
    let before = syns_sent_again_by(&client);
    let load = Load::start(ports, Duration::from_millis(5));
    let begun = Instant::now();
    let say = |what: &str| eprintln!("at {:.2?}: {what}", begun.elapsed());

    for _ in 0..2 {
        say("scaled to 2");
        scale(&swarm, "web", 2).await;
        settled(&swarm, "web", 2).await;
        say("scaled to 6");
        scale(&swarm, "web", 6).await;
        settled(&swarm, "web", 6).await;
    }
    for host in ["n2", "n3"] {
        say("drained");
        availability(&swarm, host, "drain").await;
        left_by(&swarm, "web", host).await;
        settled(&swarm, "web", 6).await;
        say("active");
        availability(&swarm, host, "active").await;
    }
    say("scaled to 2");
    scale(&swarm, "web", 2).await;
    settled(&swarm, "web", 2).await;
    let tallies = load.stop().await;
    let again = syns_sent_again_by(&client) - before;
    let (answered, failed) = by_name.stop().await;
    for host in &swarm.hosts {
        let log = std::fs::read_to_string(host.dir().join("skep.log")).unwrap_or_default();
        let skipped = log.lines().filter(|l| l.contains("backend does not accept")).count();
        let grown = log.lines().filter(|l| l.contains("took the flows of an earlier run over")).count();
        let status = status(host).await;
        eprintln!(
            "{}: {skipped} times a backend was skipped, {grown} times flows were taken over, {}",
            host.name(),
            status["ebpf"]["counters"]
        );
    }
    assert!(tallies.iter().all(|t| t.failed.is_empty() && t.answered.len() > 6), "requests to the port failed");
    assert_eq!(again, 0, "SYNs to the port were sent again: a client has waited for a second each");
    assert!(failed == 0 && answered > 50, "requests by name failed");
    client.stop().await;
    swarm
}
