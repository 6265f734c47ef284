//! Trust kept up, with the stock CLI: managers that are locked, and a change of the root CA while a manager is away.

use super::kit::*;
use super::start::{kill_tasks, run_again, session_is};
use anyhow::Context as _;
use serde_json::{Value, json};
use skep::lab::Host;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncWriteExt as _;

const LOCKED: &str =
    "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm unlock\" to unlock it.";
/// In the spec of a network: in the log, and in no view.
const PLANTED: &str = "planted-where-managers-see-it";

/// `docker swarm unlock`, with the key on its standard input.
async fn unlock(host: &Host, key: &str) -> anyhow::Result<()> {
    let mut child =
        host.docker().args(["swarm", "unlock"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    input.write_all(format!("{key}\n").as_bytes()).await?;
    drop(input);
    let done = child.wait_with_output().await?;
    anyhow::ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

async fn unlock_key(host: &Host) -> String {
    host.docker_run("swarm unlock-key -q").await.expect("a key").trim().to_owned()
}

/// Whether a text is in any file of the data directory.
fn has(folder: &Path, text: &str) -> bool {
    let files = std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path());
    files.into_iter().any(|path| {
        if path.is_dir() {
            return has(&path, text);
        }
        // A file that was to take another's place may have done so meanwhile.
        std::fs::read(&path).unwrap_or_default().windows(text.len()).any(|bytes| bytes == text.as_bytes())
    })
}

async fn local_state(host: &Host) -> Value {
    get(host, "/info").await["Swarm"]["LocalNodeState"].clone()
}

async fn restart(host: &mut Host, kill: bool) {
    host.stop_daemon(kill).await.expect("stopped");
    start(host).await;
}

async fn managers_are(host: &Host, count: usize) {
    within(20, "managers", || async {
        let nodes = host.docker_run("node ls --format {{.Status}}|{{.ManagerStatus}}").await?;
        let up = nodes.lines().filter(|line| ["Ready|Leader", "Ready|Reachable"].contains(line)).count();
        anyhow::ensure!(up == count, "{nodes}\n{}", host.log_tail());
        Ok(())
    })
    .await;
}

/// Waits until the keys on the disk are sealed, or are not.
async fn sealed(host: &Host, is: bool) {
    within(10, "sealed files", || async {
        let file = host.data_dir().join("certificates/node.key");
        let key = std::fs::read_to_string(&file)?;
        anyhow::ensure!(key.starts_with("skep-sealed-key") == is, "{key:.30}");
        let keys: Value = serde_json::from_slice(&std::fs::read(host.data_dir().join("manager.key"))?)?;
        anyhow::ensure!(keys["tag"].is_string() == is, "manager.key");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn managers_that_are_locked_and_a_root_that_is_replaced_while_one_is_away() {
    let mut swarm = hosts("tr", 3, "").await;
    let address = swarm.hosts[0].address();
    let made = swarm.hosts[0].docker_run(&format!("swarm init --autolock --advertise-addr {address}")).await.expect("made");
    let first = unlock_key(&swarm.hosts[0]).await;
    assert!(first.starts_with("SWMKEY-1-") && made.contains(&first), "{made}");
    let tokens = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    // One joins as a manager, one is promoted: both get the key before they write anything of the swarm.
    ok(&join(&swarm.hosts[1], address, tokens["Manager"].as_str().expect("token")).await);
    ok(&join(&swarm.hosts[2], address, tokens["Worker"].as_str().expect("token")).await);
    swarm.ready(3).await;
    swarm.hosts[0].docker_run("node promote n3").await.expect("promoted");
    managers_are(&swarm.hosts[0], 3).await;
    swarm.hosts[0].docker_run(&format!("network create -d overlay --label at={PLANTED} back")).await.expect("made");
    swarm.service("web", 3, Some(8080), json!({})).await;
    swarm.running("web", 3).await;
    for host in &swarm.hosts {
        sealed(host, true).await;
        let dir = host.data_dir();
        for text in [PLANTED, &first[9..], tokens["Manager"].as_str().expect("token"), "PRIVATE KEY"] {
            assert!(!has(&dir, text), "{}: {text}", host.name());
        }
    }

    // A manager that is started is locked. Its tasks and its ports go on.
    restart(&mut swarm.hosts[1], false).await;
    let second = &swarm.hosts[1];
    assert_eq!(local_state(second).await, "locked");
    let refused = second.docker_run("node ls").await.expect_err("locked");
    assert!(format!("{refused:#}").contains(LOCKED), "{refused:#}");
    ask(second, (second.address(), 8080).into()).await.expect("its port is served");
    // Networks of the swarm are there, although they cannot be read: none is missing, and none of its own takes such a name.
    let refused = second.docker_run("network create back").await.expect_err("the swarm has one");
    assert!(format!("{refused:#}").contains("network with name back already exists"), "{refused:#}");
    let refused = second.docker_run("network inspect back").await.expect_err("locked");
    assert!(format!("{refused:#}").contains(LOCKED), "{refused:#}");
    let refused = second.docker_run("network inspect nosuch").await.expect_err("there is none");
    assert!(format!("{refused:#}").contains("network nosuch not found"), "{refused:#}");
    assert!(!has(&second.data_dir(), PLANTED));
    // The key is rotated meanwhile: this one needs the old key, once.
    swarm.hosts[0].docker_run("swarm unlock-key --rotate -q").await.expect("rotated");
    let new = unlock_key(&swarm.hosts[0]).await;
    assert_ne!(new, first);
    let refused = unlock(second, &new).await.expect_err("it does not know the new key");
    assert!(refused.to_string().contains("swarm could not be unlocked: invalid key provided"), "{refused}");
    unlock(second, &first).await.expect("unlocked");
    managers_are(second, 3).await;
    assert!(format!("{:#}", unlock(second, &first).await.expect_err("open")).contains("swarm is not locked"));
    within(10, "the new key on the second manager", || async {
        let other = swarm.hosts[2].data_dir().join("manager.key");
        let tag = |path| anyhow::Ok(serde_json::from_slice::<Value>(&std::fs::read(path)?)?["tag"].clone());
        anyhow::ensure!(tag(second.data_dir().join("manager.key"))? == tag(other)?, "another key");
        Ok(())
    })
    .await;
    restart(&mut swarm.hosts[1], true).await;
    assert!(unlock(&swarm.hosts[1], &first).await.is_err(), "the old key is worth nothing any more");
    unlock(&swarm.hosts[1], &new).await.expect("unlocked");
    managers_are(&swarm.hosts[1], 3).await;
    // All of them are locked: the first one is open as soon as the key fits, and there is no leader for it to wait for.
    for host in &mut swarm.hosts {
        host.stop_daemon(true).await.expect("killed");
    }
    for host in &mut swarm.hosts {
        start(host).await;
    }
    let unlocked = tokio::time::timeout(std::time::Duration::from_secs(5), unlock(&swarm.hosts[0], &new)).await;
    unlocked.expect("at once").expect("unlocked");
    assert_eq!(local_state(&swarm.hosts[0]).await, "active");
    within(5, "a manager without a leader", || async {
        let error = get(&swarm.hosts[0], "/info").await["Swarm"]["Error"].clone();
        anyhow::ensure!(error.as_str().is_some_and(|error| error.contains("does not have a leader")), "{error}");
        Ok(())
    })
    .await;
    for host in &swarm.hosts[1..] {
        unlock(host, &new).await.expect("unlocked");
    }
    managers_are(&swarm.hosts[0], 3).await;
    // The lock is taken off.
    swarm.hosts[0].docker_run("swarm update --autolock=false").await.expect("off");
    for host in &swarm.hosts {
        sealed(host, false).await;
        within(10, "a log that is sealed again", || async {
            anyhow::ensure!(!has(&host.data_dir(), PLANTED), "{}", host.name());
            Ok(())
        })
        .await;
    }
    restart(&mut swarm.hosts[1], false).await;
    managers_are(&swarm.hosts[1], 3).await;

    // The root CA is replaced while a manager is away: the CLI waits for no one.
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    within(15, "a node that is down", || async {
        let nodes = swarm.hosts[0].docker_run("node ls --format {{.Hostname}}|{{.Status}}").await?;
        anyhow::ensure!(nodes.contains("n3|Down"), "{nodes}");
        Ok(())
    })
    .await;
    let old = swarm.hosts[0].docker_run("swarm ca").await.expect("the root");
    let before = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    let rotating = swarm.hosts[0].docker_run("swarm ca --rotate");
    let printed = tokio::time::timeout(std::time::Duration::from_secs(20), rotating).await.expect("in time").expect("rotated");
    let root = swarm.hosts[0].docker_run("swarm ca").await.expect("the root");
    assert!(root != old && printed.trim_end().ends_with(root.trim_end()), "{printed}");
    let after = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    assert!(["Worker", "Manager"].iter().all(|role| before[role] != after[role]), "{before} {after}");
    let refused = swarm.hosts[0].docker_run("node inspect n3 --format {{.Status.Message}}").await.expect("shown");
    assert!(refused.contains("is renewed when the node is back"), "{refused}");
    swarm.hosts[1].docker_run("network create -d overlay during").await.expect("both managers go on");
    // It comes back with a certificate of the old root, and is a manager again.
    start(&mut swarm.hosts[2]).await;
    managers_are(&swarm.hosts[0], 3).await;
    within(15, "one root everywhere", || async {
        let nodes = get(&swarm.hosts[2], "/nodes").await;
        let swarm_info = get(&swarm.hosts[2], "/swarm").await["TLSInfo"].clone();
        let same = nodes.as_array().into_iter().flatten().filter(|node| node["Description"]["TLSInfo"] == swarm_info).count();
        anyhow::ensure!(same == 3 && swarm_info["TrustRoot"] == root.trim_end().to_owned() + "\n", "{same}");
        let file = std::fs::read_to_string(swarm.hosts[2].data_dir().join("certificates/ca.crt"))?;
        anyhow::ensure!(file.trim_end() == root.trim_end(), "its own file");
        Ok(())
    })
    .await;
    swarm.running("web", 3).await;

    // A node that is removed is refused at once, by the managers and by the tunnel. The token of before names the old root.
    let peers = || async { dump(&swarm.hosts[0]).await.map(|dump| dump["tunnel"]["peers"].as_array().map_or(0, Vec::len)) };
    assert_eq!(peers().await.expect("a dump"), 2);
    swarm.hosts[0].docker_run("node demote n3").await.expect("demoted");
    within(10, "the removal", || async { swarm.hosts[0].docker_run("node rm --force n3").await }).await;
    within(5, "the tunnel without it", || async {
        let peers = peers().await?;
        anyhow::ensure!(peers == 1, "{peers}");
        Ok(())
    })
    .await;
    swarm.hosts[2].docker_run("swarm leave --force").await.expect("left");
    let worker = after["Worker"].as_str().expect("token");
    let refused = join(&swarm.hosts[2], address, before["Worker"].as_str().expect("token")).await;
    assert!(said(&refused).contains("remote CA does not match fingerprint"), "{}", said(&refused));
    ok(&join(&swarm.hosts[2], address, worker).await);
    swarm.hosts[0].docker_run("swarm join-token --rotate -q worker").await.expect("rotated");
    swarm.hosts[2].docker_run("swarm leave").await.expect("left");
    let refused = join(&swarm.hosts[2], address, worker).await;
    assert!(said(&refused).contains("A valid join token is necessary to join this cluster"), "{}", said(&refused));
    swarm.stop().await;
}

/// Without a session a node starts again what crashes. A locked manager has none either, but the other managers see that, and would
/// replace its tasks.
#[tokio::test(flavor = "multi_thread")]
async fn a_locked_manager_starts_no_crashed_task_again_while_a_node_that_is_alone_does() {
    let mut swarm = hosts("lockedtasks", 2, "").await;
    let address = swarm.hosts[0].address();
    swarm.hosts[0].docker_run(&format!("swarm init --autolock --advertise-addr {address}")).await.expect("made");
    let key = unlock_key(&swarm.hosts[0]).await;
    let token = worker_token(&swarm.hosts[0]).await;
    ok(&join(&swarm.hosts[1], address, &token).await);
    swarm.ready(2).await;
    let policy = json!({ "Condition": "any", "Delay": 1_000_000_000 });
    swarm.service("web", 2, Some(8080), json!({ "RestartPolicy": policy })).await;
    let before = swarm.running("web", 2).await;
    sealed(&swarm.hosts[0], true).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 2).await;
    ledger_is_written(&swarm.hosts[0]).await;
    restart(&mut swarm.hosts[0], true).await;
    let [locked, worker] = &swarm.hosts[..] else { panic!("two hosts") };
    assert_eq!(local_state(locked).await, "locked");
    session_is(worker, "none").await;
    within(10, "its tasks go on", || ask(locked, (locked.address(), 8080).into())).await;

    // The locked one's first: it would be the first to start it again.
    let ended = kill_tasks(locked).await;
    let again = kill_tasks(worker).await;
    assert_eq!((ended.len(), again.len()), (1, 1));
    run_again(worker, &again, "the task of the node that is alone").await;
    let state = skep::lab::output(locked.engine_cli().args(["inspect", "-f", "{{.State.Status}}"]).args(&ended)).await;
    assert_eq!(state.expect("inspected").trim(), "exited");

    unlock(locked, &key).await.expect("unlocked");
    swarm.ready(2).await;
    within(40, "another task for the one that was locked", || async {
        let running = swarm.running("web", 2).await;
        let kept = running.iter().filter(|task| before.iter().any(|other| other["ID"] == task["ID"])).count();
        anyhow::ensure!(kept == 1, "{running:#?}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}

/// Waits until a node says that it was removed; the reason.
async fn removed(host: &Host) -> String {
    within(20, "a node that knows of its removal", || async {
        let info = get(host, "/info").await["Swarm"].clone();
        anyhow::ensure!(info["LocalNodeState"] == "error", "{info}\n{}", host.log_tail());
        Ok(info["Error"].as_str().unwrap_or_default().to_owned())
    })
    .await
}

/// Waits until no container of a task is left.
async fn no_tasks(host: &Host) {
    within(20, "a node without tasks", || async {
        let containers = host.docker_run("ps -q --filter label=com.docker.swarm.task.id").await?;
        anyhow::ensure!(containers.is_empty(), "{containers}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_removed_while_it_is_down_says_so_once_it_is_back() {
    let mut swarm = hosts("rmd", 3, "").await;
    let address = swarm.hosts[0].address();
    swarm.hosts[0].docker_run(&format!("swarm init --advertise-addr {address}")).await.expect("made");
    let tokens = get(&swarm.hosts[0], "/swarm").await["JoinTokens"].clone();
    for host in &swarm.hosts[1..] {
        ok(&join(host, address, tokens["Manager"].as_str().expect("token")).await);
    }
    managers_are(&swarm.hosts[0], 3).await;
    swarm.service("web", 3, None, json!({})).await;
    swarm.running("web", 3).await;
    // A log is encrypted also where no manager is locked.
    swarm.hosts[0].docker_run(&format!("network create -d overlay --label at={PLANTED} back")).await.expect("made");
    for host in &swarm.hosts {
        assert!(!has(&host.data_dir(), PLANTED), "{}", host.name());
    }

    // A manager: its certificate and its log say that it is one.
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    swarm.hosts[0].docker_run("node demote n3").await.expect("demoted");
    within(10, "the removal", || async { swarm.hosts[0].docker_run("node rm --force n3").await }).await;
    start(&mut swarm.hosts[2]).await;
    let third = &swarm.hosts[2];
    let reason = removed(third).await;
    assert!(reason.contains("it was removed") && reason.contains("leave and join again"), "{reason}");
    no_tasks(third).await;
    assert_eq!(status(third).await["state"], "error");
    // At once after a restart, also if no manager answers.
    restart(&mut swarm.hosts[2], false).await;
    assert_eq!(removed(&swarm.hosts[2]).await, reason);
    swarm.hosts[2].docker_run("swarm leave --force").await.expect("left");
    assert_eq!(local_state(&swarm.hosts[2]).await, "inactive");
    assert!(!swarm.hosts[2].data_dir().join("node.json").exists());

    // A worker, with its tasks. One that is not removed stays what it is while no manager answers.
    ok(&join(&swarm.hosts[2], address, tokens["Worker"].as_str().expect("token")).await);
    managers_are(&swarm.hosts[0], 2).await;
    swarm.hosts[0].docker_run("service scale --detach web=6").await.expect("scaled");
    swarm.running("web", 6).await;
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    within(10, "the removal", || async { swarm.hosts[0].docker_run("node rm --force n3").await }).await;
    start(&mut swarm.hosts[2]).await;
    assert_eq!(local_state(&swarm.hosts[2]).await, "active");
    removed(&swarm.hosts[2]).await;
    no_tasks(&swarm.hosts[2]).await;
    swarm.hosts[2].docker_run("swarm leave").await.expect("left");
    swarm.stop().await;
}
