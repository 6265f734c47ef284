//! Daemons that start without all that they need: the rest runs, and what is missing is named and tried again.

use super::kit::*;
use serde_json::{Value, json};
use skep::datapath::netns;
use skep::http::UnixClient;
use skep::lab::Host;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Duration;

async fn health(host: &Host) -> (u16, String) {
    let reply = UnixClient::new(host.run_dir().join("admin.sock")).get("/healthz").await.expect("answers");
    (reply.status.as_u16(), String::from_utf8_lossy(&reply.body).into_owned())
}

async fn node_of(swarm: &Swarm, id: &str) -> Value {
    get(&swarm.hosts[0], &format!("/nodes/{id}")).await
}

#[tokio::test]
async fn a_manager_whose_port_is_taken_and_whose_ledger_is_damaged_runs_its_node_and_then_its_manager() {
    let mut swarm = swarm("start", 1, "").await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    let before = swarm.running("web", 2).await;
    let host = &mut swarm.hosts[0];
    host.stop_daemon(true).await.expect("killed");
    std::fs::write(host.data_dir().join("ledger.json"), "{").expect("damaged");
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).expect("a namespace");
    let other = netns::run(namespace.as_fd(), || TcpListener::bind("0.0.0.0:2377")).expect("enters").expect("takes the port");
    start(host).await;
    let host = &swarm.hosts[0];
    let (code, text) = health(host).await;
    assert!(code == 503 && text.contains("manager: ") && text.contains("2377"), "{code} {text}");
    let mut command = tokio::process::Command::new(SKEP);
    let table = skep::lab::output(command.args(["status", "--run-dir"]).arg(host.run_dir())).await.expect("status");
    assert!(table.contains("blocked:  manager: "), "{table}");

    // Without its ledger too: the manager is the node itself, once it may listen.
    drop(other);
    within(60, "the manager part", || async {
        let (code, text) = health(host).await;
        anyhow::ensure!(code == 200, "{text}");
        Ok(())
    })
    .await;
    within(20, "the port to answer", || ask(host, (host.address(), 8080).into())).await;
    let ids = |tasks: &[Value]| tasks.iter().map(|t| t["ID"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&swarm.running("web", 2).await), ids(&before), "no task was replaced");
    swarm.stop().await;
}

/// Opens of this file by other processes hang until the lease is dropped, as on a disk that does not answer; for 45 s at most
/// (`/proc/sys/fs/lease-break-time`).
struct Lease(std::fs::File);

impl Lease {
    #[expect(unsafe_code, reason = "no crate here takes leases")]
    fn take(path: &Path) -> Self {
        let file = std::fs::File::options().read(true).write(true).open(path).expect("the file");
        // The kernel sends a signal when another process opens the file: one that is ignored unless a handler is set.
        // SAFETY: the descriptor is open, and the calls take integers.
        let taken = unsafe {
            libc::fcntl(file.as_raw_fd(), 10 /* F_SETSIG */, libc::SIGURG) == 0
                && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
        };
        assert!(taken, "no lease: {}", std::io::Error::last_os_error());
        Self(file)
    }

    fn drop_it(self) {
        drop(self.0);
    }
}

#[tokio::test]
async fn a_manager_whose_log_cannot_be_opened_yet_runs_its_node_and_takes_the_log_once_it_is_open() {
    let mut swarm = swarm("slow-log", 1, "").await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    let before = swarm.running("web", 2).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 2).await;
    ledger_is_written(&swarm.hosts[0]).await;
    let host = &mut swarm.hosts[0];
    host.stop_daemon(true).await.expect("killed");
    let lease = Lease::take(&host.data_dir().join("raft/raft.redb"));
    start(host).await;
    let host = &swarm.hosts[0];
    let (code, text) = health(host).await;
    assert!(code == 503 && text.contains("manager: the log in ") && text.contains("does it hang?"), "{code} {text}");
    // From the ledger, without any store.
    within(20, "the port to answer", || ask(host, (host.address(), 8080).into())).await;

    lease.drop_it();
    within(20, "the manager part", || async {
        let (code, text) = health(host).await;
        anyhow::ensure!(code == 200, "{text}");
        Ok(())
    })
    .await;
    let ids = |tasks: &[Value]| tasks.iter().map(|t| t["ID"].to_string()).collect::<BTreeSet<_>>();
    assert_eq!(ids(&swarm.running("web", 2).await), ids(&before), "no task was replaced");
    swarm.stop().await;
}

#[tokio::test]
async fn a_worker_without_its_ledger_finds_its_managers_and_a_node_without_its_engine_is_down() {
    let mut swarm = swarm("ledgerless", 2, "").await;
    swarm.service("web", 4, Some(8080), json!({})).await;
    let before = swarm.running("web", 4).await;
    let worker = swarm.node_id(&swarm.hosts[1]).await;
    let host = &mut swarm.hosts[1];
    within(10, "the managers in node.json", || async {
        let text = std::fs::read_to_string(host.data_dir().join("node.json"))?;
        anyhow::ensure!(text.contains("\"managers\""), "{text}");
        Ok(())
    })
    .await;
    // As after an update: short enough for the node not to be down.
    host.stop_daemon(true).await.expect("killed");
    std::fs::remove_file(host.data_dir().join("ledger.json")).expect("removed");
    start(host).await;
    swarm.ready(2).await;
    let running = swarm.running("web", 4).await;
    assert_eq!(running.len(), before.len());
    within(20, "the worker's port to answer", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;

    // Its engine dies, its daemon does not.
    swarm.hosts[1].stop_engine().await.expect("stops");
    within(30, "the node to be down", || async {
        let status = node_of(&swarm, &worker).await["Status"].clone();
        anyhow::ensure!(status["State"] == "down" && status["Message"].to_string().contains("Docker Engine"), "{status}");
        Ok(())
    })
    .await;
    // The tasks of a node that may return stay wanted for a minute; there are as many elsewhere at once.
    within(20, "the tasks elsewhere", || async {
        let tasks = swarm.tasks("web").await;
        let elsewhere = tasks.iter().filter(|t| t["Status"]["State"] == "running" && t["NodeID"] != worker).count();
        anyhow::ensure!(elsewhere == 4, "{tasks:#?}");
        Ok(())
    })
    .await;
    within(10, "the port of a node without an engine", || ask(&swarm.hosts[1], (swarm.hosts[1].address(), 8080).into())).await;
    swarm.hosts[1].start_engine(&super::super::lab::engine_root()).await.expect("engine");
    swarm.ready(2).await;
    swarm.stop().await;
}

/// Ends the container of every task on a host, as a crash does.
pub async fn kill_tasks(host: &Host) -> Vec<String> {
    let mut list = host.engine_cli();
    let ids = skep::lab::output(list.args(["ps", "-q", "--no-trunc", "--filter", "label=com.docker.swarm.task.id"]))
        .await
        .expect("ids");
    let ids: Vec<String> = ids.lines().map(str::to_owned).collect();
    // Not by the engine: that waits for the daemon, which may be away.
    let line = "{{.State.Pid}}";
    let pids = skep::lab::output(host.engine_cli().args(["inspect", "-f", line]).args(&ids)).await.expect("pids");
    host.run(&format!("kill -9 {}", pids.replace('\n', " "))).await.expect("killed");
    within(10, "the engine to see it", || async {
        let now = skep::lab::output(host.engine_cli().args(["inspect", "-f", line]).args(&ids)).await?;
        anyhow::ensure!(now.lines().zip(pids.lines()).all(|(now, before)| now != before), "{now}");
        Ok(())
    })
    .await;
    ids
}

/// Waits until the text of a host's session begins so.
pub async fn session_is(host: &Host, begin: &str) {
    within(15, "a session", || async {
        let session = status(host).await["session"].clone();
        anyhow::ensure!(session.as_str().is_some_and(|text| text.starts_with(begin)), "{session}");
        Ok(())
    })
    .await;
}

pub async fn run_again(host: &Host, containers: &[String], what: &str) {
    within(60, what, || async {
        let line = "{{.State.Running}}";
        let states = skep::lab::output(host.engine_cli().args(["inspect", "-f", line]).args(containers)).await?;
        anyhow::ensure!(states.lines().all(|state| state == "true"), "{states}{}", host.log_tail());
        Ok(())
    })
    .await;
    within(20, "their port", || ask(host, (host.address(), 8080).into())).await;
}

#[tokio::test]
async fn tasks_that_crash_while_there_is_no_leader_are_started_again_by_their_node_and_counted_by_no_manager() {
    let mut swarm = swarm("alone", 2, "").await;
    swarm.hosts[0].docker_run("network create -d overlay back").await.expect("a network");
    swarm.hosts[0].docker_run("node update --availability drain n1").await.expect("drained");
    let policy = json!({ "Condition": "any", "Delay": 1_000_000_000 });
    swarm.service("web", 2, Some(8080), json!({ "RestartPolicy": policy })).await;
    let before = swarm.running("web", 2).await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    session_is(&swarm.hosts[1], "none").await;
    ledger_is_written(&swarm.hosts[1]).await;
    let worker = &swarm.hosts[1];
    let containers = kill_tasks(worker).await;
    assert_eq!(containers.len(), 2);
    run_again(worker, &containers, "the containers that crashed").await;
    // No network of its own gets the name of one of the swarm, whether or not its engine has a part of that.
    let refused = worker.docker_run("network create back").await.expect_err("refused");
    assert!(format!("{refused:#}").contains("network with name back already exists"), "{refused:#}");

    // A node that is started again: its containers have ended meanwhile.
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    kill_tasks(&swarm.hosts[1]).await;
    start(&mut swarm.hosts[1]).await;
    run_again(&swarm.hosts[1], &containers, "the containers of a node that has started").await;

    // The leader is back: the tasks are those that there were, and no manager has replaced one.
    start(&mut swarm.hosts[0]).await;
    session_is(&swarm.hosts[1], "with").await;
    swarm.ready(2).await;
    let ids = |tasks: &[Value]| tasks.iter().map(|t| t["ID"].to_string()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(ids(&swarm.running("web", 2).await), ids(&before));
    assert_eq!(ids(&swarm.tasks("web").await), ids(&before));
    assert_eq!(kill_tasks(&swarm.hosts[1]).await.len(), 2, "no second copies");
    // From now on the managers decide.
    within(30, "tasks that the managers have made", || async {
        let tasks = swarm.tasks("web").await;
        let failed = tasks.iter().filter(|task| task["Status"]["State"] == "failed").count();
        anyhow::ensure!(failed == 2, "{tasks:#?}");
        Ok(())
    })
    .await;
    swarm.running("web", 2).await;
    swarm.stop().await;
}

/// Every node is ready, and the tasks are those of before.
async fn nothing_moved(swarm: &Swarm, tasks: &BTreeSet<String>) -> anyhow::Result<()> {
    let nodes = get(&swarm.hosts[0], "/nodes").await;
    let away = nodes.as_array().into_iter().flatten().find(|node| node["Status"]["State"] != "ready");
    anyhow::ensure!(away.is_none(), "{}", away.unwrap_or(&Value::Null)["Status"]);
    let now: BTreeSet<String> = swarm.tasks("web").await.iter().map(|task| task["ID"].to_string()).collect();
    anyhow::ensure!(now == *tasks, "{now:?}");
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_restarts_moves_no_task_neither_beside_an_engine_that_hangs_nor_in_ten_seconds() {
    let mut swarm = swarm("hangs", 2, "").await;
    swarm.service("web", 4, Some(8080), json!({})).await;
    let before: BTreeSet<String> = swarm.running("web", 4).await.iter().map(|task| task["ID"].to_string()).collect();
    within(10, "the host in node.json", || async {
        let text = std::fs::read_to_string(swarm.hosts[1].data_dir().join("node.json"))?;
        anyhow::ensure!(text.contains("\"description\""), "{text}");
        Ok(())
    })
    .await;
    // The engine accepts connections, and answers nothing.
    swarm.hosts[1].hold_engine().await.expect("held");
    swarm.hosts[1].stop_daemon(false).await.expect("stops");
    let began = std::time::Instant::now();
    start(&mut swarm.hosts[1]).await;
    session_is(&swarm.hosts[1], "with").await;
    // An engine that is away for longer is mentioned, and then lost: that is right, and not what this is about.
    assert!(began.elapsed() < Duration::from_secs(8), "the session waited for the engine: {:?}", began.elapsed());
    nothing_moved(&swarm, &before).await.expect("while the engine hangs");
    swarm.hosts[1].resume_engine().await.expect("goes on");
    within(30, "the engine is back", || async {
        let text = node_of(&swarm, &swarm.node_id(&swarm.hosts[1]).await).await["Status"].to_string();
        anyhow::ensure!(text.contains("ready") && !text.contains("Engine"), "{text}");
        nothing_moved(&swarm, &before).await
    })
    .await;
    assert_eq!(swarm.running("web", 4).await.len(), 4);

    // The daemon says that it restarts: five times as long as a silent node has.
    swarm.hosts[1].stop_daemon(false).await.expect("stops");
    let stopped = std::time::Instant::now();
    while stopped.elapsed() < Duration::from_secs(10) {
        nothing_moved(&swarm, &before).await.expect("while the daemon restarts");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    start(&mut swarm.hosts[1]).await;
    session_is(&swarm.hosts[1], "with").await;
    nothing_moved(&swarm, &before).await.expect("afterwards");
    assert_eq!(swarm.running("web", 4).await.len(), 4);
    // Without a word it is down, and its tasks are elsewhere.
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    within(30, "the node is missed", || async {
        anyhow::ensure!(nothing_moved(&swarm, &before).await.is_err(), "nothing has moved");
        Ok(())
    })
    .await;
    swarm.stop().await;
}
