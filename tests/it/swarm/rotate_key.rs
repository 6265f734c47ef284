//! Nodes get other WireGuard keys while their connections go on, by one command on each; a daemon that is killed in the middle goes on, and the
//! old key opens nothing afterwards.

use super::super::load::{Load, Target, index_of, of_host, of_task, serve_lines};
use super::kit::*;
use super::managers::reachable;
use serde_json::{Value, json};
use skep::lab::{Host, output};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::process::Command;

/// Sends back lines, in the containers.
const LINES: u16 = 81;
const PAUSE: Duration = Duration::from_millis(20);

fn skep(host: &Host) -> Command {
    let mut command = Command::new(SKEP);
    command.args(["rotate-key", "--run-dir"]).arg(host.run_dir());
    command
}

/// A node's key, as its tunnel has it.
fn key(host: &Host) -> String {
    let file = host.data_dir().join("tunnel.key");
    skep::datapath::tunnel::public_key(&file).expect("a key").to_base64()
}

/// Keys of the peers of a node's tunnel.
async fn peers(host: &Host) -> anyhow::Result<Vec<String>> {
    let peers = dump(host).await?["tunnel"]["peers"].take();
    Ok(peers.as_array().into_iter().flatten().filter_map(|peer| peer[0].as_str().map(str::to_owned)).collect())
}

/// Waits until every node's tunnel has the keys of the others and no further one.
async fn keys_agree(hosts: &[Host]) {
    for host in hosts {
        within(20, "the keys of now and no others", || async {
            let mut wanted = Vec::new();
            for other in hosts.iter().filter(|other| other.name() != host.name()) {
                wanted.push(key(other));
            }
            wanted.sort();
            let mut has = peers(host).await?;
            has.sort();
            anyhow::ensure!(has == wanted, "{}: {has:?}, wanted {wanted:?}", host.name());
            let files = ["next", "previous"].map(|name| host.data_dir().join(format!("tunnel.key.{name}")).exists());
            anyhow::ensure!(files == [false, false], "{}: {files:?}", host.name());
            Ok(())
        })
        .await;
    }
}

/// The content that managers can open only with their own keys.
async fn readable(host: &Host) {
    within(20, "the content", || async {
        let config: Value = skep::http::UnixClient::new(host.skep_socket()).get("/configs/first").await?.json()?;
        anyhow::ensure!(config["Spec"]["Data"] == "Zmlyc3Q=", "{}: {config}", host.name());
        Ok(())
    })
    .await;
}

fn address(task: &Value) -> Ipv4Addr {
    let all = task["NetworksAttachments"].as_array().expect("networks").iter();
    let mut back = all.filter(|on| on["Network"]["Spec"]["Name"] == "back");
    let address = back.find_map(|on| on["Addresses"][0].as_str()).expect("an address");
    address.split('/').next().expect("an address").parse().expect("an address")
}

/// Three managers. A daemon that is killed is started again before its node is down: on a busy machine that takes longer than 2 s.
async fn three_managers() -> Swarm {
    let swarm = hosts("rk", 3, "[timeouts]\nnode_down_ms = 20000\n").await;
    init(&swarm.hosts[0]).await;
    let token = get(&swarm.hosts[0], "/swarm").await["JoinTokens"]["Manager"].as_str().expect("token").to_owned();
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(3).await;
    reachable(&swarm.hosts[0], 3).await;
    swarm
}

/// Kept and new connections between each two containers.
async fn between(swarm: &Swarm, tasks: &[Value]) -> [Load; 2] {
    let (mut kept, mut new) = (Vec::new(), Vec::new());
    for a in tasks {
        let own = of_task(swarm, a).await;
        for b in tasks.iter().filter(|b| b["ID"] != a["ID"]) {
            let label = format!("{} to {}", index_of(swarm, a).await + 1, index_of(swarm, b).await + 1);
            kept.push(Target::new(&own, (address(b), LINES).into(), format!("kept, {label}")));
            new.push(Target::new(&own, (address(b), 80).into(), format!("new, {label}")));
        }
    }
    [Load::kept(kept, PAUSE), Load::start(new, PAUSE)]
}

/// Waits until everyone has had some more answers.
async fn all_answer(loads: &[Load]) {
    let answers = || loads.iter().flat_map(Load::answers).collect::<Vec<_>>();
    let first = answers();
    within(20, "answers to everyone", || async {
        anyhow::ensure!(answers().iter().zip(&first).all(|(now, then)| now > &(then + 5)), "{:?}", answers());
        Ok(())
    })
    .await;
}

async fn nothing_lost(loads: impl IntoIterator<Item = Load>) {
    let mut lost = Vec::new();
    for load in loads {
        for tally in load.stop().await {
            if !tally.failed.is_empty() || tally.answers() < 20 {
                lost.push(tally.to_string());
            }
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_gets_another_key_and_no_connection_or_request_is_lost() {
    let mut swarm = three_managers().await;
    let client = swarm.lab.host("client", 9).await.expect("host");
    ok(&post(&swarm.hosts[0], "/configs/create", &json!({ "Name": "first", "Data": "Zmlyc3Q=" })).await);
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    swarm.service("web", 3, Some(8080), json!({ "Networks": [{ "Target": "back" }] })).await;
    let tasks = swarm.running("web", 3).await;
    wait_for_backends(&swarm.hosts, "8080/tcp", 3).await;
    let before: Vec<Value> = tasks.iter().map(|task| task["ID"].clone()).collect();
    for task in &tasks {
        serve_lines(of_task(&swarm, task).await, LINES).await;
    }
    let from = of_host(&client);
    // Through each node's port, to tasks on all nodes.
    let ports = swarm.hosts.iter().map(|host| Target::new(&from, (host.address(), 8080).into(), host.name()));
    let [kept, new] = between(&swarm, &tasks).await;
    let loads = [Load::start(ports, PAUSE), kept, new];
    all_answer(&loads).await;

    // Each in turn, the leader among them.
    let mut old = Vec::new();
    for host in &swarm.hosts {
        let first = key(host);
        let printed = output(skep(host).arg("--json")).await.unwrap_or_else(|e| panic!("{e:#}\n{}", host.log_tail()));
        let printed: Value = serde_json::from_str(&printed).expect("JSON");
        assert_eq!((&printed["old"], &printed["new"]), (&json!(first), &json!(key(host))), "{printed}");
        assert_ne!(printed["old"], printed["new"]);
        eprintln!("{}: {printed}", host.name());
        old.push(first);
        all_answer(&loads).await;
        keys_agree(&swarm.hosts).await;
    }
    nothing_lost(loads).await;

    // The daemon is killed as soon as the next key is on its disk, and again at other moments, until the change is done. (New connections
    // through the ports of a node without its daemon are for the tests of the datapaths.)
    let loads = between(&swarm, &tasks).await;
    let first = key(&swarm.hosts[1]);
    let mut rotating = skep(&swarm.hosts[1]).spawn().expect("started");
    let rest = |host: &Host, name: &str| host.data_dir().join(format!("tunnel.key.{name}")).exists();
    let is_done = |host: &Host| !rest(host, "next") && !rest(host, "previous");
    within(20, "the next key", || async {
        anyhow::ensure!(rest(&swarm.hosts[1], "next") || key(&swarm.hosts[1]) != first);
        Ok(())
    })
    .await;
    for kills in 1..=3 {
        swarm.hosts[1].stop_daemon(true).await.expect("killed");
        start(&mut swarm.hosts[1]).await;
        if is_done(&swarm.hosts[1]) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(150 * kills)).await;
    }
    within(60, "the end of the change", || async {
        anyhow::ensure!(is_done(&swarm.hosts[1]), "{}", swarm.hosts[1].log_tail());
        Ok(())
    })
    .await;
    // The command is answered by no daemon or by the next one.
    let _ = rotating.kill().await;
    assert_ne!(key(&swarm.hosts[1]), first, "a daemon that is killed goes on with the key that is on its disk");
    old.push(first);
    keys_agree(&swarm.hosts).await;
    all_answer(&loads).await;
    nothing_lost(loads).await;

    let after: Vec<Value> = swarm.running("web", 3).await.iter().map(|task| task["ID"].clone()).collect();
    assert_eq!(after, before, "no task was started again");
    for host in &swarm.hosts {
        readable(host).await;
        assert!(peers(host).await.expect("a dump").iter().all(|key| !old.contains(key)), "an old key");
    }
    client.stop().await;
    swarm.stop().await;
}

/// The tunnel of a node that was down knows the only manager by its old key, and the manager's word outside of the tunnel brings it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_down_learns_the_managers_new_key_and_may_change_its_own() {
    let mut swarm = swarm("rd", 2, "").await;
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    within(15, "a node that is down", || async {
        let nodes = swarm.hosts[0].docker_run("node ls --format {{.Hostname}}|{{.Status}}").await?;
        anyhow::ensure!(nodes.contains("n2|Down"), "{nodes}");
        Ok(())
    })
    .await;
    let old = key(&swarm.hosts[0]);
    let printed = output(&mut skep(&swarm.hosts[0])).await.expect("it waits for no node that is down");
    assert!(printed.contains(&format!("the old one, {old}, is accepted nowhere")), "{printed}");
    assert_eq!(peers(&swarm.hosts[1]).await.ok(), None, "its daemon is down");
    start(&mut swarm.hosts[1]).await;
    within(30, "both nodes", || async {
        let nodes = swarm.hosts[0].docker_run("node ls --format {{.Hostname}}|{{.Status}}").await?;
        anyhow::ensure!(nodes.contains("n1|Ready") && nodes.contains("n2|Ready"), "{nodes}\n{}", swarm.hosts[1].log_tail());
        Ok(())
    })
    .await;
    keys_agree(&swarm.hosts).await;
    output(&mut skep(&swarm.hosts[1])).await.expect("a worker too");
    keys_agree(&swarm.hosts).await;
    swarm.ready(2).await;
    swarm.stop().await;
}
