//! Outcomes for managers that hurt with a real swarm (manager-facts 1, 3, 5, 11), on real daemons: nodes that start without a quorum, a
//! cluster that was re-created beside its majority, the machine of a leader that dies, and a manager that cannot be reached.

use super::kit::*;
use super::managers::{managers, reachable};
use super::start::kill_tasks;
use serde_json::{Value, json};
use skep::http::{HttpReply, UnixClient};
use skep::lab::{EngineRoot, Host};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const NO_LEADER: &str = "rpc error: code = Unknown desc = The swarm does not have a leader. It's possible that too few managers are online. \
                         Make sure more than half of the managers are online.";

/// Runs a line of a shell on a host.
async fn shell(host: &Host, line: &str) {
    skep::lab::output(host.command("sh").args(["-c", line])).await.unwrap_or_else(|e| panic!("{line}: {e:#}"));
}

async fn kill_tunnel(host: &Host) {
    shell(host, &format!("kill -9 $(cat {}/tunnel.pid)", host.run_dir().display())).await;
}

/// The machine is switched off and on: all processes and all that is in memory are gone.
async fn reboot(host: &mut Host) {
    host.stop_daemon(true).await.expect("killed");
    kill_tasks(host).await;
    let run = host.run_dir().display().to_string();
    kill_tunnel(host).await;
    shell(host, "kill -9 $(cat /run/engine.pid) $(cat /run/engine/containerd/containerd.pid)").await;
    host.stop_engine().await.expect("it has ended");
    shell(host, &format!("umount -l {run}/mesh; umount -l {run}/bpf; rm -rf {run}/*; true")).await;
    // The host's own /run: a tmpfs that no other process sees.
    let mounts = "for m in $(grep ' /run/engine' /proc/mounts | cut -d' ' -f2); do umount -l $m; done";
    shell(host, &format!("{mounts}; rm -rf /run/engine /run/engine.pid; true")).await;
    assert!(!host.run_dir().join("mesh").exists(), "the namespace is gone");
    host.start_engine(&EngineRoot::Machine).await.expect("engine");
    start(host).await;
}

/// Tasks of which a container runs on a host.
async fn tasks_of(host: &Host) -> anyhow::Result<BTreeSet<String>> {
    let mut list = host.engine_cli();
    let line = "{{.Label \"com.docker.swarm.task.id\"}}";
    let ids = skep::lab::output(list.args(["ps", "--format", line])).await?;
    Ok(ids.lines().filter(|id| !id.is_empty()).map(str::to_owned).collect())
}

async fn asked(host: &Host, method: &str, target: &str, body: Option<&Value>) -> (HttpReply, Duration) {
    let begin = Instant::now();
    let reply = UnixClient::new(host.skep_socket()).request(method, target, body).await.expect("skep answers");
    (reply, begin.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_rebooted_without_a_quorum_run_their_tasks_and_what_they_read_is_marked_as_old() {
    let mut swarm = hosts("reboot", 3, "").await;
    init(&swarm.hosts[0]).await;
    let tokens = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    let address = swarm.hosts[0].address();
    ok(&join(&swarm.hosts[1], address, tokens["Manager"].as_str().expect("token")).await);
    ok(&join(&swarm.hosts[2], address, tokens["Worker"].as_str().expect("token")).await);
    swarm.ready(3).await;
    reachable(&swarm.hosts[0], 2).await;
    swarm.hosts[0].docker_run("network create -d overlay back").await.expect("a network");
    swarm.service("web", 3, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    let before: BTreeSet<String> =
        swarm.running("web", 3).await.iter().map(|t| t["ID"].as_str().expect("id").to_owned()).collect();
    wait_for_backends(&swarm.hosts, "8080/tcp", 3).await;
    let mut of = BTreeMap::new();
    for (at, host) in swarm.hosts.iter().enumerate() {
        ledger_is_written(host).await;
        of.insert(at, tasks_of(host).await.expect("containers"));
        assert_eq!(of[&at].len(), 1, "one on each node");
    }

    // The other manager's line is cut: the quorum is lost, and a manager and a worker are switched off and on.
    swarm.lab.cut(&swarm.hosts[1]).await.expect("cut off");
    for at in [0, 2] {
        reboot(&mut swarm.hosts[at]).await;
        let host = &swarm.hosts[at];
        within(60, "the task of a node that has started", || async {
            let runs = tasks_of(host).await?;
            anyhow::ensure!(runs == of[&at], "{runs:?} instead of {:?}\n{}", of[&at], host.log_tail());
            Ok(())
        })
        .await;
        within(20, "its port", || ask(host, (host.address(), 8080).into())).await;
    }

    // The manager: reads are answered and marked, writes fail at once with the real text.
    let manager = &swarm.hosts[0];
    within(20, "a manager that says since when it knows no leader", || async {
        let (reply, _) = asked(manager, "GET", "/services", None).await;
        anyhow::ensure!(reply.headers.contains_key("skep-stale-since"), "{:?}", reply.headers);
        Ok(())
    })
    .await;
    for target in ["/nodes", "/services", "/services/web", "/tasks", "/networks", "/networks/back", "/swarm", "/secrets"] {
        let (reply, took) = asked(manager, "GET", target, None).await;
        assert!(
            reply.status == 200 && reply.headers.contains_key("skep-stale-since"),
            "{target}: {} {:?}",
            reply.status,
            reply.headers
        );
        assert!(took < Duration::from_secs(1), "{target} took {took:?}");
    }
    let spec = json!({ "Name": "other", "TaskTemplate": { "ContainerSpec": { "Image": "lab:1" } } });
    for (target, body) in [
        ("/networks/create", json!({ "Name": "other", "Driver": "overlay" })),
        ("/services/create", spec),
        ("/secrets/create", json!({ "Name": "other", "Data": "YQ==" })),
    ] {
        let (reply, took) = asked(manager, "POST", target, Some(&body)).await;
        assert_eq!((reply.status.as_u16(), said(&reply).as_str()), (500, NO_LEADER), "{target}");
        assert!(took < Duration::from_secs(1), "{target} took {took:?}");
    }
    let listed = manager.docker_run("service ls --format {{.Name}}").await.expect("the CLI reads");
    assert_eq!(listed.trim(), "web");
    let info = get(manager, "/info").await["Swarm"].clone();
    assert_eq!((info["LocalNodeState"].as_str(), info["Error"].as_str()), (Some("active"), Some(NO_LEADER)));
    let refused = manager.docker_run("network create back").await.expect_err("the swarm has one of that name");
    assert!(format!("{refused:#}").contains("already exists") || format!("{refused:#}").contains(NO_LEADER), "{refused:#}");
    let (dir, run) = (manager.dir().display(), manager.run_dir().display().to_string());
    std::fs::write(manager.dir().join("passphrase"), "correct horse\n").expect("written");
    let backup = format!("{SKEP} backup {dir}/old.skep --passphrase-file {dir}/passphrase --run-dir {run} --json");
    let backup: Value = serde_json::from_str(&manager.run(&backup).await.expect("a backup of what it has")).expect("JSON");
    assert!(backup["warning"].as_str().is_some_and(|warning| warning.contains("knows no leader")), "{backup}");
    // The worker: it is a worker as ever, at once.
    let (reply, took) = asked(&swarm.hosts[2], "GET", "/nodes", None).await;
    assert!(reply.status == 503 && said(&reply).contains("Worker nodes can't be used"), "{} {}", reply.status, said(&reply));
    assert!(took < Duration::from_secs(1), "{took:?}");

    // The quorum is back: the tasks are those that there were.
    swarm.lab.heal(&swarm.hosts[1]).await.expect("healed");
    swarm.ready(3).await;
    let after: BTreeSet<String> =
        swarm.running("web", 3).await.iter().map(|t| t["ID"].as_str().expect("id").to_owned()).collect();
    assert_eq!(after, before);
    swarm.stop().await;
}

/// What a host's status says of two incarnations.
async fn conflict(host: &Host) -> String {
    within(20, "the conflict to be named", || async {
        let named = status(host).await["blockers"]["incarnation"].clone();
        named.as_str().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("{}: {named}\n{}", host.name(), host.log_tail()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_cluster_and_a_majority_that_went_on_are_named_on_both_sides_with_what_would_be_lost() {
    let swarm = managers("inc").await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    swarm.running("web", 2).await;
    let (alone, others) = (&swarm.hosts[0], &swarm.hosts[1..]);
    swarm.lab.cut(alone).await.expect("cut off");
    // The majority goes on, and takes writes.
    within(20, "a majority that writes", || async { others[0].docker_run("network create -d overlay theirs").await.map(drop) })
        .await;
    let spec = json!({ "Name": "kept", "TaskTemplate": { "ContainerSpec": { "Image": skep::lab::WHOAMI_IMAGE } } });
    ok(&post(&others[1], "/services/create", &spec).await);
    within(20, "a manager without a quorum", || async {
        let made = alone.docker_run("network create -d overlay never").await;
        made.err().ok_or_else(|| anyhow::anyhow!("a write without a majority"))
    })
    .await;
    let recreated = alone.docker_run(&format!("swarm init --force-new-cluster --advertise-addr {}", alone.address())).await;
    assert!(recreated.expect("re-created").contains("is now a manager"));
    alone.docker_run("network create -d overlay ours").await.expect("the new cluster takes writes");

    // The line is healed: nothing is overwritten, and both sides say what the other one has.
    swarm.lab.heal(alone).await.expect("healed");
    for host in others {
        let named = conflict(host).await;
        assert!(
            named.contains("the cluster was re-created on node") && named.contains("entries that the new cluster does not have"),
            "{named}"
        );
        assert!(named.contains("docker swarm leave --force"), "what to do: {named}");
    }
    let named = conflict(alone).await;
    assert!(
        named.contains("goes on with another incarnation") && named.contains("entries that this one does not have"),
        "{named}"
    );
    let names = async |host: &Host| host.docker_run("network ls --format {{.Name}}").await.expect("networks");
    for host in others {
        assert!(names(host).await.lines().any(|name| name == "theirs"), "{}", host.name());
        let services = host.docker_run("service ls --format {{.Name}}").await.expect("services");
        assert!(services.lines().any(|name| name == "kept"), "{services}");
        host.docker_run(&format!("network create -d overlay more{}", host.name())).await.expect("it still takes writes");
    }
    let ours = names(alone).await;
    assert!(ours.lines().any(|name| name == "ours") && !ours.lines().any(|name| name == "theirs"), "{ours}");
    let blocked = skep::lab::output(tokio::process::Command::new(SKEP).args(["status", "--run-dir"]).arg(alone.run_dir())).await;
    assert!(blocked.expect("status").contains("another incarnation"), "skep status names it");

    // The user decides for the new one: a manager of the old one leaves, and the last one, which has no quorum then, returns as a worker.
    others[0].docker_run("swarm leave --force").await.expect("leaves");
    within(40, "a worker of the new cluster", || async {
        let error = others[1].docker_run("node ls").await.err().ok_or_else(|| anyhow::anyhow!("it still answers"))?;
        anyhow::ensure!(format!("{error:#}").contains("Worker nodes can't be used"), "{error:#}\n{}", others[1].log_tail());
        Ok(())
    })
    .await;
    ok(&join(&others[0], alone.address(), &worker_token(alone).await).await);
    within(30, "no conflict any more", || async {
        let named = status(alone).await["blockers"]["incarnation"].clone();
        anyhow::ensure!(named.is_null(), "{named}");
        Ok(())
    })
    .await;
    assert_eq!(reachable(alone, 1).await, alone.name());
    within(20, "a manager and two workers", || async {
        let nodes = alone.docker_run("node ls --format {{.Status}}|{{.ManagerStatus}}").await?;
        let workers = nodes.lines().filter(|line| *line == "Ready|").count();
        anyhow::ensure!(workers == 2, "{nodes}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}

/// Requests of every kind, each answered with success; the slowest.
async fn all_succeed(host: &Host, round: usize) -> Duration {
    let client = || UnixClient::new(host.skep_socket());
    let ask = async |method: &'static str, target: &'static str, body: Option<Value>| {
        let begin = Instant::now();
        let reply = tokio::time::timeout(Duration::from_secs(15), client().request(method, target, body.as_ref())).await;
        let reply = reply.unwrap_or_else(|_| panic!("{}: {target} hangs", host.name())).expect("skep answers");
        assert!(reply.status.is_success(), "{}: {target}: {} {}", host.name(), reply.status, said(&reply));
        begin.elapsed()
    };
    let name = |of: &str| Some(json!({ "Name": format!("{of}{round}{}", host.name()), "Data": "YQ==" }));
    let took = tokio::join!(
        ask("GET", "/nodes", None),
        ask("GET", "/services", None),
        ask("GET", "/tasks", None),
        ask("GET", "/swarm", None),
        ask("GET", "/info", None),
        ask("POST", "/secrets/create", name("s")),
        ask("POST", "/configs/create", name("c")),
    );
    [took.0, took.1, took.2, took.3, took.4, took.5, took.6].into_iter().max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_of_a_leader_that_dies_is_replaced_and_no_request_fails() {
    let mut swarm = managers("lead").await;
    swarm.service("web", 3, Some(8080), json!({})).await;
    swarm.running("web", 3).await;
    let mut down_after = Vec::new();
    for (round, vanish) in [true, false].into_iter().enumerate() {
        let leader = reachable(&swarm.hosts[0], 3).await;
        let dead = swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
        let id = swarm.node_id(&swarm.hosts[dead]).await;
        wait_for_backends(&swarm.hosts, "8080/tcp", 3).await;
        let begin = Instant::now();
        if vanish {
            swarm.lab.cut(&swarm.hosts[dead]).await.expect("cut off");
        } else {
            swarm.hosts[dead].stop_daemon(true).await.expect("killed");
            kill_tunnel(&swarm.hosts[dead]).await;
        }
        let (one, other) = (&swarm.hosts[(dead + 1) % 3], &swarm.hosts[(dead + 2) % 3]);
        let down = async {
            within(30, "the machine to be down", || async {
                let (reply, _) = asked(one, "GET", &format!("/nodes/{id}"), None).await;
                let node: Value = reply.json()?;
                anyhow::ensure!(node["Status"]["State"] == "down", "{}", node["Status"]);
                Ok(begin.elapsed())
            })
            .await
        };
        let (down, slow, slower) = tokio::join!(down, all_succeed(one, round), all_succeed(other, round));
        eprintln!("vanish {vanish}: down after {down:?}; requests of both managers took {slow:?} and {slower:?} at most");
        down_after.push(down);
        // Its task runs elsewhere.
        within(20, "the task of the machine elsewhere", || async {
            let (reply, _) = asked(one, "GET", "/tasks", None).await;
            let tasks: Vec<Value> = reply.json()?;
            let elsewhere = tasks.iter().filter(|t| t["Status"]["State"] == "running" && t["NodeID"] != id.as_str()).count();
            anyhow::ensure!(elsewhere == 3, "{tasks:#?}");
            Ok(())
        })
        .await;
        if vanish {
            swarm.lab.heal(&swarm.hosts[dead]).await.expect("healed");
        } else {
            start(&mut swarm.hosts[dead]).await;
        }
        swarm.ready_on((dead + 1) % 3, 3).await;
        reachable(&swarm.hosts[(dead + 1) % 3], 3).await;
        within(30, "three tasks", || async {
            let tasks = swarm.hosts[(dead + 1) % 3].docker_run("service ls --format {{.Replicas}}").await?;
            anyhow::ensure!(tasks.trim() == "3/3", "{tasks}");
            Ok(())
        })
        .await;
    }
    // A real swarm takes 42 to 48 s for a leader's machine.
    assert!(down_after.iter().all(|took| took.as_millis() < 4500), "{down_after:?}");
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_cannot_be_reached_leaves_no_entry_and_the_joiner_is_clean() {
    let swarm = hosts("unreach", 3, "[timeouts]\njoin_ms = 8000\n").await;
    let (first, second, joiner) = (&swarm.hosts[0], &swarm.hosts[1], &swarm.hosts[2]);
    init(first).await;
    let token = get(first, "/swarm").await["JoinTokens"]["Manager"].as_str().expect("token").to_owned();
    ok(&join(second, first.address(), &token).await);
    reachable(first, 2).await;
    // The joiner may speak to the managers' port, and no manager can reach the joiner by what it advertises.
    let rules = swarm.lab.dir().join("block.nft");
    let own = joiner.address();
    let text = format!(
        "table bridge block {{ chain f {{ type filter hook forward priority 0; ip daddr {own} udp dport 2377 drop\n}}\n}}\n"
    );
    std::fs::write(&rules, text).expect("rules");
    skep::lab::output(swarm.lab.command("nft").arg("-f").arg(&rules)).await.expect("nft");
    let answer = join(joiner, first.address(), &token).await;
    assert!(answer.status.is_server_error(), "{} {}", answer.status, said(&answer));
    assert!(said(&answer).contains("UDP 2377") && said(&answer).contains(&own.to_string()), "{}", said(&answer));
    // Nothing of it is there, at either manager: a quorum of two is still two.
    for manager in [first, second] {
        let nodes = get(manager, "/nodes").await;
        assert_eq!(nodes.as_array().map(Vec::len), Some(2), "{nodes:#}");
        assert_eq!(get(manager, "/info").await["Swarm"]["Managers"], 2);
        reachable(manager, 2).await;
        manager.docker_run(&format!("network create -d overlay by{}", manager.name())).await.expect("a write");
    }
    let info = get(joiner, "/info").await["Swarm"].clone();
    assert_eq!((info["LocalNodeState"].as_str(), info["Error"].as_str()), (Some("inactive"), Some("")), "{info}");
    let left: Vec<String> = std::fs::read_dir(joiner.data_dir())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock")
        .collect();
    assert_eq!(left, Vec::<String>::new(), "nothing of the swarm is on its disk");
    assert!(!joiner.run_dir().join("mesh").exists(), "its mesh namespace is removed");
    // The same join works at once when the way is free.
    skep::lab::output(swarm.lab.command("nft").args(["delete", "table", "bridge", "block"])).await.expect("nft");
    ok(&join(joiner, first.address(), &token).await);
    swarm.ready(3).await;
    reachable(first, 3).await;
    swarm.stop().await;
}
