//! The release before and this build in one swarm: nodes are upgraded one at a time and back. `make test-upgrade` builds the
//! release before and runs this.

mod managers;

use super::super::load::{Failed, Load, Target, of_host};
use super::kit::*;
use anyhow::ensure;
use serde_json::json;
use skep::lab::Host;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A host that is down for as long as a daemon needs to start on a busy machine is not down for the managers.
const SETTINGS: &str = "[timeouts]\nnode_down_ms = 20000\n";
/// Nodes with this build beside nodes with the other one: a worker first, then the manager, then the other worker.
const ORDER: [usize; 3] = [1, 0, 2];

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// The program of the release before.
fn previous() -> PathBuf {
    variable("SKEP_PREVIOUS").expect("run `make test-upgrade`: it builds the release before")
}

/// Task, node and container of each running task of a service.
async fn places(swarm: &Swarm, service: &str, count: usize) -> BTreeSet<String> {
    let running = swarm.running(service, count).await;
    running.iter().map(|t| format!("{} {} {}", t["ID"], t["NodeID"], t["Status"]["ContainerStatus"]["ContainerID"])).collect()
}

/// Waits until a node has a session with the leader.
async fn in_session(host: &Host) {
    within(20, "a session with the leader", || async {
        let status = status(host).await;
        ensure!(!status["leader"].is_null(), "{status:#}");
        Ok(())
    })
    .await;
}

/// Sends requests from a host without skep to the port on every node, one after the other to each. The two releases have other
/// tunnel processes: one replaces the other, and what is under way then is sent again by TCP.
fn load(client: &Host, swarm: &Swarm) -> Load {
    let from = of_host(client);
    let targets = swarm.hosts.iter().map(|host| Target::new(&from, (host.address(), 8080).into(), host.name()));
    Load::patient(targets, Duration::from_millis(20))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of the release before: make test-upgrade"]
async fn nodes_are_upgraded_one_at_a_time_and_back_and_nothing_is_lost() {
    let previous = previous();
    let mut swarm = swarm_of("up", 3, SETTINGS, &previous).await;
    let client = swarm.lab.host("client", 9).await.expect("host");
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 3, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    let before = places(&swarm, "web", 3).await;
    for host in &swarm.hosts {
        let to = (host.address(), 8080).into();
        within(30, "the port to answer", || ask(&client, to)).await;
    }
    let load = load(&client, &swarm);
    let steps = ORDER.map(|at| (at, Path::new(SKEP))).into_iter().chain(ORDER.map(|at| (at, previous.as_path())));
    // Times in which this build, and the release before again, were installed.
    let (mut upgrades, mut rollbacks) = (Vec::new(), Vec::new());
    for (step, (at, program)) in steps.enumerate() {
        let host = &mut swarm.hosts[at];
        eprintln!("{} gets {}", host.name(), program.display());
        let begin = Instant::now();
        host.stop_daemon(false).await.expect("stopped");
        start_as(host, program).await;
        for host in &swarm.hosts {
            in_session(host).await;
        }
        swarm.ready(3).await;
        assert_eq!(places(&swarm, "web", 3).await, before, "no task moved, no container was started again");
        // Requests during and after the step: each node answers again and again.
        let answered = load.answers();
        within(60, "every node to answer", || async {
            let now = load.answers();
            ensure!(now.iter().zip(&answered).all(|(now, then)| now > &(then + 20)), "{answered:?}, now {now:?}");
            Ok(())
        })
        .await;
        let times = if program == Path::new(SKEP) { &mut upgrades } else { &mut rollbacks };
        times.push(begin..Instant::now());
        // The swarm of two builds still takes orders.
        let name = format!("step{step}");
        swarm.service(&name, 3, None, json!({ "Networks": [{ "Target": "back" }] })).await;
        swarm.running(&name, 3).await;
    }
    let tallies = load.stop().await;
    for tally in &tallies {
        assert!(tally.answers() > 100, "{tally}");
        let lost = |during: &Range<Instant>| tally.failed.iter().filter(|one| during.contains(&one.from)).collect::<Vec<_>>();
        let steps = || upgrades.iter().chain(&rollbacks);
        assert!(steps().all(|during| lost(during).len() <= 1), "each target has one connection at a time: {tally}");
        assert_eq!(steps().flat_map(lost).count(), tally.failed.len(), "none is lost between the steps: {tally}");
        // The two builds select other backends. A connection whose SYN is sent again after the change may be reset; none waits for
        // an answer that is lost. The release before does not know the flows of this one: there one that is under way may do so.
        let reset = |one: &&Failed| one.why.contains("reset");
        assert!(upgrades.iter().flat_map(lost).all(|one| reset(&one)), "an upgrade stalls none: {tally}");
        assert_eq!(tally.answered.len(), 3, "all tasks answer on every node: {tally}");
    }
    client.stop().await;
    swarm.stop().await;
}

/// A swarm of one manager, and a host with this program that has not joined.
async fn manager_and_host(name: &str, manager: &Path, other: &Path) -> Swarm {
    let mut swarm = hosts_of(name, 2, SETTINGS, manager).await;
    swarm.hosts[1].stop_daemon(false).await.expect("stopped");
    start_as(&mut swarm.hosts[1], other).await;
    init(&swarm.hosts[0]).await;
    swarm
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of the release before: make test-upgrade"]
async fn a_node_joins_a_manager_of_the_other_build() {
    let previous = previous();
    let current = Path::new(SKEP);
    for (name, worker) in [("jo", previous.as_path()), ("jn", current)] {
        let mut swarm = manager_and_host(name, &previous, worker).await;
        if worker == previous {
            // Its manager is upgraded first; the swarm is still one that the release before can be in.
            swarm.hosts[0].stop_daemon(false).await.expect("stopped");
            start_as(&mut swarm.hosts[0], current).await;
            in_session(&swarm.hosts[0]).await;
        }
        let token = worker_token(&swarm.hosts[0]).await;
        ok(&join(&swarm.hosts[1], swarm.hosts[0].address(), &token).await);
        swarm.ready(2).await;
        swarm.service("web", 2, Some(8080), json!({})).await;
        swarm.running("web", 2).await;
        let (from, to) = (&swarm.hosts[0], (swarm.hosts[1].address(), 8080).into());
        within(30, "the port to answer", || ask(from, to)).await;
        swarm.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of the release before: make test-upgrade"]
async fn a_joiner_that_cannot_prove_its_key_is_refused_by_a_swarm_that_this_build_has_made() {
    let swarm = manager_and_host("jk", Path::new(SKEP), &previous()).await;
    let token = worker_token(&swarm.hosts[0]).await;
    let refused = join(&swarm.hosts[1], swarm.hosts[0].address(), &token).await;
    assert!(said(&refused).contains("install the same version of skep on both and join again"), "{}", said(&refused));
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of the release before: make test-upgrade"]
async fn after_the_rollback_window_the_release_before_refuses_the_log_and_says_what_to_do() {
    let previous = previous();
    let mut swarm = swarm_of("win", 1, SETTINGS, &previous).await;
    swarm.service("web", 1, Some(8080), json!({})).await;
    let before = places(&swarm, "web", 1).await;
    let host = &mut swarm.hosts[0];
    host.stop_daemon(false).await.expect("stopped");
    let at_once = format!("{SETTINGS}[manager]\nrollback_window_s = 0\n");
    std::fs::write(host.dir().join("skep.toml"), &at_once).expect("settings");
    start(host).await;
    within(20, "the feature level to rise", || async {
        ensure!(host.log_tail().contains("every manager has the feature level: raised"), "{}", host.log_tail());
        Ok(())
    })
    .await;
    swarm.service("later", 1, None, json!({})).await;
    swarm.running("later", 1).await;

    let host = &mut swarm.hosts[0];
    host.stop_daemon(false).await.expect("stopped");
    std::fs::write(host.dir().join("skep.toml"), SETTINGS).expect("settings");
    start_as(host, &previous).await;
    within(20, "the release before to refuse the log", || async {
        let log = host.log_tail();
        ensure!(log.contains("format 2") && log.contains("install the newer skep again"), "{log}");
        Ok(())
    })
    .await;

    host.stop_daemon(false).await.expect("stopped");
    start(host).await;
    swarm.ready(1).await;
    assert_eq!(places(&swarm, "web", 1).await, before, "the newer one goes on");
    swarm.stop().await;
}

/// Records what the release before leaves on disk, for `tests/it/formats`: `SKEP_RECORD=dir make test-upgrade`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "records files"]
async fn record_data_directories() {
    let Some(to) = variable("SKEP_RECORD") else { return };
    let settings = format!("{SETTINGS}[raft]\nsnapshot_every = 20\nkeep_entries = 5\n");
    let mut swarm = swarm_of("rec", 2, &settings, &previous()).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 3, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    swarm.service("plain", 1, None, json!({ "RestartPolicy": { "Condition": "any", "Delay": 1_000_000_000 } })).await;
    swarm.running("web", 3).await;
    swarm.running("plain", 1).await;
    for (host, role) in swarm.hosts.iter_mut().zip(["manager", "worker"]) {
        host.stop_daemon(false).await.expect("stopped");
        let to = to.join(role);
        std::fs::create_dir_all(&to).expect("directory");
        let raft = (role == "manager").then_some("raft/raft.redb");
        for file in ["node.json", "ledger.json", "endpoints.json"].into_iter().chain(raft) {
            let name = Path::new(file).file_name().expect("a name");
            std::fs::copy(host.data_dir().join(file), to.join(name)).expect("copied");
        }
        // An engine without its network driver takes minutes to stop.
        start_as(host, &previous()).await;
    }
    swarm.stop().await;
}
