//! Several managers: each serves the whole API, one that fails is replaced, roles change at the user's word.

use super::kit::*;
use skep::http::UnixClient;
use skep::lab::Host;
use std::path::Path;
use std::time::Duration;

/// A swarm of three managers.
pub async fn managers(name: &str) -> Swarm {
    managers_with(name, "").await
}

/// As [`managers`], with these settings of the daemons.
pub async fn managers_with(name: &str, settings: &str) -> Swarm {
    managers_of(name, settings, Path::new(SKEP)).await
}

/// The same of another build.
pub async fn managers_of(name: &str, settings: &str, program: &Path) -> Swarm {
    let swarm = hosts_of(name, 3, settings, program).await;
    init(&swarm.hosts[0]).await;
    let token = manager_token(&swarm.hosts[0]).await;
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(3).await;
    reachable(&swarm.hosts[0], 3).await;
    swarm
}

async fn manager_token(host: &Host) -> String {
    get(host, "/swarm").await["JoinTokens"]["Manager"].as_str().expect("token").to_owned()
}

/// Waits until a manager lists so many managers, one of them the leader; returns the leader's host name.
pub async fn reachable(host: &Host, count: usize) -> String {
    within(15, "managers", || async {
        let nodes = host.docker_run("node ls --format {{.Hostname}}|{{.ManagerStatus}}").await?;
        let managers: Vec<&str> = nodes.lines().filter(|l| l.ends_with("|Leader") || l.ends_with("|Reachable")).collect();
        anyhow::ensure!(managers.len() == count, "{nodes}");
        let leader = managers.iter().find_map(|line| line.strip_suffix("|Leader"));
        leader.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("no leader: {nodes}"))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_manager_serves_the_api_and_a_dead_leader_is_replaced() {
    let mut swarm = managers("mg").await;
    // Written through a manager that does not lead, read from each.
    swarm.hosts[2].docker_run("network create -d overlay back").await.expect("a follower takes writes");
    // So is the first content, with the cluster's key for it: each manager can open it.
    let leads = reachable(&swarm.hosts[0], 3).await;
    let follower = swarm.hosts.iter().find(|host| host.name() != leads).expect("a follower");
    ok(&post(follower, "/configs/create", &serde_json::json!({ "Name": "first", "Data": "Zmlyc3Q=" })).await);
    for host in &swarm.hosts {
        within(10, "the content", || async {
            let config = UnixClient::new(host.skep_socket()).get("/configs/first").await?.json::<serde_json::Value>()?;
            anyhow::ensure!(config["Spec"]["Data"] == "Zmlyc3Q=", "{}: {config}", host.name());
            Ok(())
        })
        .await;
    }
    swarm.service("web", 3, Some(8080), serde_json::json!({})).await;
    swarm.running("web", 3).await;
    for host in &swarm.hosts {
        let services = host.docker_run("service ls --format {{.Name}}={{.Replicas}}").await.expect("every manager answers");
        assert_eq!(services.trim(), "web=3/3", "{}", host.name());
    }
    let before: Vec<_> = swarm.running("web", 3).await.iter().map(|task| task["ID"].clone()).collect();
    let leader = reachable(&swarm.hosts[1], 3).await;
    let index = swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
    let since = std::time::UNIX_EPOCH.elapsed().expect("a time").as_secs_f64();
    swarm.hosts[index].stop_daemon(true).await.expect("killed");
    let other = (index + 1) % 3;
    // Not retried by the test: the request waits for the election.
    swarm.hosts[other].docker_run("service scale -d web=4").await.expect("a write during the election");
    assert_ne!(reachable(&swarm.hosts[other], 2).await, leader);
    start(&mut swarm.hosts[index]).await;
    swarm.ready_on(other, 3).await;
    reachable(&swarm.hosts[index], 3).await;
    within(30, "four tasks", || async {
        let tasks = swarm.hosts[index].docker_run("service ls --format {{.Replicas}}").await?;
        anyhow::ensure!(tasks.trim() == "4/4", "{tasks}");
        Ok(())
    })
    .await;
    let after: Vec<_> = swarm.running("web", 4).await.iter().map(|task| task["ID"].clone()).collect();
    assert!(before.iter().all(|id| after.contains(id)), "no task was moved: {before:?} {after:?}");
    // In a real swarm every node is unknown and ready again, and every network is updated.
    let format = "{{.Type}}|{{.Action}}|{{.Actor.Attributes}}";
    let events = format!("events --since {since} --until 0s --filter scope=swarm --format {format}");
    let events = swarm.hosts[other].docker_run(&events).await.expect("events");
    assert!(events.contains("service|update|"), "{events}");
    let is_of_leader = |line: &str| line.contains(&format!("name:{leader} ")) || line.contains(&format!("name:{leader}]"));
    let of_change = |line: &&str| line.starts_with("network|") || line.starts_with("node|") && !is_of_leader(line);
    let of_change: Vec<&str> = events.lines().filter(of_change).collect();
    assert!(of_change.is_empty(), "{of_change:?}");
    // The leader is cut off: packets vanish instead of being refused, and requests on another manager wait all the same.
    let leader = reachable(&swarm.hosts[0], 3).await;
    let index = swarm.hosts.iter().position(|host| host.name() == leader).expect("a host");
    let other = &swarm.hosts[(index + 1) % 3];
    swarm.lab.cut(&swarm.hosts[index]).await.expect("cut off");
    let written = tokio::time::timeout(Duration::from_secs(10), other.docker_run("network create -d overlay late")).await;
    written.expect("in time").expect("a write while packets vanish");
    within(10, "another leader", || async {
        let nodes = other.docker_run("node ls --format {{.Hostname}}|{{.ManagerStatus}}").await?;
        anyhow::ensure!(nodes.contains("|Leader") && !nodes.contains(&format!("{leader}|Leader")), "{nodes}");
        Ok(())
    })
    .await;
    swarm.lab.heal(&swarm.hosts[index]).await.expect("healed");
    swarm.ready_on((index + 1) % 3, 3).await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_change_at_the_users_word() {
    let mut swarm = swarm("mr", 3, "").await;
    let first = &swarm.hosts[0];
    let refused = first.docker_run("node demote n1").await.expect_err("the last manager");
    assert!(format!("{refused:#}").contains("attempting to demote the last manager of the swarm"), "{refused:#}");
    first.docker_run("node promote n2 n3").await.expect("promoted");
    reachable(first, 3).await;
    // Both have a manager's certificate and their own copy of the state.
    for host in &swarm.hosts[1..] {
        within(15, "the API on a promoted node", || async {
            host.docker_run("node ls -q").await.map(|nodes| assert_eq!(nodes.lines().count(), 3))
        })
        .await;
    }
    let refused = first.docker_run("node rm --force n2").await.expect_err("a member of raft");
    assert!(format!("{refused:#}").contains("must be demoted to worker before removal"), "{refused:#}");
    // The leader demotes itself: another one leads.
    first.docker_run("node demote n1").await.expect("demoted");
    assert_ne!(reachable(&swarm.hosts[1], 2).await, "n1");
    within(15, "a worker", || async {
        let error = first.docker_run("node ls").await.err().ok_or_else(|| anyhow::anyhow!("it still answers"))?;
        assert!(format!("{error:#}").contains("This node is not a swarm manager"), "it answers until it is a worker: {error:#}");
        Ok(())
    })
    .await;
    swarm.hosts[1].docker_run("node promote n1").await.expect("promoted again");
    reachable(&swarm.hosts[1], 3).await;
    // It has a vote by now, which is needed next.
    within(15, "the API on the manager that was promoted again", || async { swarm.hosts[0].docker_run("node ls -q").await })
        .await;
    // Demoted and promoted again before it has heard of the first: it is renewed as the manager that it is.
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    swarm.hosts[1].docker_run("node demote n3").await.expect("demoted");
    reachable(&swarm.hosts[1], 2).await;
    swarm.hosts[1].docker_run("node promote n3").await.expect("promoted again");
    start(&mut swarm.hosts[2]).await;
    reachable(&swarm.hosts[1], 3).await;
    let rotated = swarm.hosts[1].docker_run("swarm ca --rotate -q");
    tokio::time::timeout(Duration::from_secs(30), rotated).await.expect("every node is renewed").expect("rotated");
    // A manager that leaves is no member of raft any more.
    swarm.hosts[2].docker_run("swarm leave --force").await.expect("leaves");
    let leader = reachable(&swarm.hosts[1], 2).await;
    swarm.hosts[1].docker_run("network create -d overlay back").await.expect("the others go on");
    // It comes back through the manager that does not lead, and drained from the start.
    let follower = &swarm.hosts[usize::from(leader == "n1")];
    within(15, "its API", || follower.docker_run("node ls -q")).await;
    let body = serde_json::json!({
        "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": swarm.hosts[2].address().to_string(), "Availability": "drain",
        "RemoteAddrs": [follower.address().to_string()], "JoinToken": worker_token(follower).await,
    });
    ok(&post(&swarm.hosts[2], "/swarm/join", &body).await);
    within(15, "a drained node", || async {
        let nodes = follower.docker_run("node ls --format {{.Hostname}}|{{.Status}}|{{.Availability}}").await?;
        anyhow::ensure!(nodes.contains("n3|Ready|Drain"), "{nodes}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_a_majority_is_recreated_from_one_manager() {
    let mut swarm = managers("fn").await;
    swarm.service("web", 2, Some(8080), serde_json::json!({})).await;
    swarm.running("web", 2).await;
    let leader = reachable(&swarm.hosts[2], 3).await;
    let survivor = usize::from(leader == "n1");
    let lost: Vec<usize> = (0..3).filter(|host| *host != survivor).collect();
    for host in &lost {
        swarm.hosts[*host].stop_daemon(true).await.expect("killed");
    }
    let refused = within(10, "a refusal without a majority", || async {
        let made = swarm.hosts[survivor].docker_run("network create -d overlay never").await;
        made.err().ok_or_else(|| anyhow::anyhow!("a write without a majority"))
    })
    .await;
    assert!(format!("{refused:#}").contains("The swarm does not have a leader"), "{refused:#}");
    let address = swarm.hosts[survivor].address().to_string();
    let recreated = swarm.hosts[survivor].docker_run(&format!("swarm init --force-new-cluster --advertise-addr {address}")).await;
    assert!(recreated.expect("re-created").contains("is now a manager"));
    swarm.hosts[survivor].docker_run("network create -d overlay back").await.expect("it takes writes");
    assert_eq!(reachable(&swarm.hosts[survivor], 1).await, swarm.hosts[survivor].name());
    // The old majority comes back: as workers, which take part in the new cluster.
    for host in &lost {
        start(&mut swarm.hosts[*host]).await;
    }
    swarm.ready_on(survivor, 3).await;
    for host in &lost {
        within(20, "a worker", || async {
            let error =
                swarm.hosts[*host].docker_run("node ls").await.err().ok_or_else(|| anyhow::anyhow!("it still answers"))?;
            anyhow::ensure!(format!("{error:#}").contains("This node is not a swarm manager"), "{error:#}");
            Ok(())
        })
        .await;
    }
    reachable(&swarm.hosts[survivor], 1).await;
    swarm.hosts[survivor].docker_run(&format!("node promote {}", swarm.hosts[lost[0]].name())).await.expect("promoted");
    reachable(&swarm.hosts[survivor], 2).await;
    within(30, "its tasks", || async {
        let services = swarm.hosts[survivor].docker_run("service ls --format {{.Name}}={{.Replicas}}").await?;
        anyhow::ensure!(services.trim() == "web=2/2", "{services}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}

/// The host's only address is another one from now on.
async fn move_to(host: &Host, address: &str) {
    host.run("ip address flush dev eth0 scope global").await.expect("no address");
    host.run(&format!("ip address add {address}/24 dev eth0")).await.expect("another address");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managers_machine_gets_another_address() {
    let mut swarm = hosts("ad", 3, "").await;
    let before = swarm.hosts[0].address();
    swarm.hosts[0].docker_run(&format!("swarm init --advertise-addr {before}")).await.expect("made");
    ok(&join(&swarm.hosts[1], before, &worker_token(&swarm.hosts[0]).await).await);
    swarm.ready(2).await;
    let after: std::net::Ipv4Addr = "192.0.2.77".parse().expect("an address");
    move_to(&swarm.hosts[0], &after.to_string()).await;
    within(20, "the address is named", || async {
        let blockers = status(&swarm.hosts[0]).await["blockers"]["address"].clone();
        let text = blockers.as_str().unwrap_or_default();
        anyhow::ensure!([&before, &after].iter().all(|ip| text.contains(&ip.to_string())), "{blockers}");
        Ok(())
    })
    .await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    start(&mut swarm.hosts[0]).await;
    let shown = format!("{after}:2377");
    within(15, "the new address everywhere", || async {
        let info = get(&swarm.hosts[0], "/info").await["Swarm"].clone();
        anyhow::ensure!(info["NodeAddr"] == after.to_string() && info["RemoteManagers"][0]["Addr"] == shown, "{info}");
        let node = swarm.hosts[0].docker_run("node inspect n1 --format {{.ManagerStatus.Addr}}").await?;
        anyhow::ensure!(node.trim() == shown, "{node}");
        let printed = swarm.hosts[0].docker_run("swarm join-token manager").await?;
        anyhow::ensure!(printed.contains(&shown), "{printed}");
        let worker = get(&swarm.hosts[1], "/info").await["Swarm"]["RemoteManagers"].clone();
        anyhow::ensure!(worker[0]["Addr"] == shown, "{worker}");
        anyhow::ensure!(
            status(&swarm.hosts[0]).await["blockers"]["address"].is_null(),
            "it is named although it has the address"
        );
        Ok(())
    })
    .await;
    // The worker has found it.
    swarm.ready(2).await;
    // Once more, and the cluster is re-created there: another manager that joins finds it, and both have a quorum.
    let last: std::net::Ipv4Addr = "192.0.2.78".parse().expect("an address");
    move_to(&swarm.hosts[0], &last.to_string()).await;
    let recreated = swarm.hosts[0].docker_run(&format!("swarm init --force-new-cluster --advertise-addr {last}")).await;
    assert!(recreated.expect("re-created").contains("is now a manager"));
    let node = swarm.hosts[0].docker_run("node inspect n1 --format {{.ManagerStatus.Addr}}").await.expect("shown");
    assert_eq!(node.trim(), format!("{last}:2377"));
    swarm.ready(2).await;
    ok(&join(&swarm.hosts[2], last, &manager_token(&swarm.hosts[0]).await).await);
    reachable(&swarm.hosts[2], 2).await;
    swarm.ready(3).await;
    swarm.stop().await;
}

/// A worker that was off finds managers of which none is where it knew one.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_off_while_every_manager_got_another_address_finds_them() {
    let mut swarm = hosts("adoff", 3, "").await;
    let before = swarm.hosts[0].address();
    swarm.hosts[0].docker_run(&format!("swarm init --advertise-addr {before}")).await.expect("made");
    let (as_manager, as_worker) = (manager_token(&swarm.hosts[0]).await, worker_token(&swarm.hosts[0]).await);
    ok(&join(&swarm.hosts[1], before, &as_manager).await);
    ok(&join(&swarm.hosts[2], before, &as_worker).await);
    swarm.ready(3).await;
    reachable(&swarm.hosts[1], 2).await;
    within(10, "the managers in node.json", || async {
        let text = std::fs::read_to_string(swarm.hosts[2].data_dir().join("node.json"))?;
        anyhow::ensure!(text.matches("\"manager\":true").count() == 2, "{text}");
        Ok(())
    })
    .await;
    // Off as a machine is: its tunnel too, which would learn where the managers are.
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    let tunnel = swarm.hosts[2].run_dir().join("tunnel.pid");
    if let Ok(pid) = std::fs::read_to_string(&tunnel) {
        swarm.hosts[2].run(&format!("kill -9 {}", pid.trim())).await.expect("killed");
    }
    // One after the other, so that the managers have a quorum again each time.
    for (host, address) in [(0, "192.0.2.77"), (1, "192.0.2.78")] {
        move_to(&swarm.hosts[host], address).await;
        swarm.hosts[host].stop_daemon(true).await.expect("killed");
        start(&mut swarm.hosts[host]).await;
        within(40, "both managers", || async {
            let nodes = swarm.hosts[host].docker_run("node ls --format {{.Hostname}}|{{.ManagerStatus}}").await?;
            anyhow::ensure!(nodes.contains("|Leader") && nodes.contains("|Reachable"), "{nodes}");
            let shown =
                swarm.hosts[0].docker_run(&format!("node inspect n{} --format {{{{.ManagerStatus.Addr}}}}", host + 1)).await?;
            anyhow::ensure!(shown.trim() == format!("{address}:2377"), "{shown}");
            Ok(())
        })
        .await;
    }
    start(&mut swarm.hosts[2]).await;
    within(60, "the worker has a session, and the managers' addresses", || async {
        let known = get(&swarm.hosts[2], "/info").await["Swarm"]["RemoteManagers"].to_string();
        anyhow::ensure!(known.contains("192.0.2.77:2377") && known.contains("192.0.2.78:2377"), "{known}");
        Ok(())
    })
    .await;
    swarm.ready(3).await;
    swarm.stop().await;
}

/// Runs a verb of skep on a host.
#[tokio::test(flavor = "multi_thread")]
async fn two_managers_that_each_made_a_cluster_of_the_old_one_name_the_conflict() {
    let mut swarm = managers("twins").await;
    swarm.hosts[2].stop_daemon(true).await.expect("killed");
    for host in &swarm.hosts[..2] {
        swarm.lab.cut(host).await.expect("cut off");
    }
    for host in &swarm.hosts[..2] {
        let address = host.address();
        let recreated = host.docker_run(&format!("swarm init --force-new-cluster --advertise-addr {address}")).await;
        assert!(recreated.expect("re-created").contains("is now a manager"));
    }
    for host in &swarm.hosts[..2] {
        swarm.lab.heal(host).await.expect("healed");
    }
    for host in &swarm.hosts[..2] {
        within(35, "the conflict is named", || async {
            let blockers = status(host).await["blockers"].clone();
            let text = blockers["incarnation"].as_str().unwrap_or_default();
            anyhow::ensure!(text.contains("docker swarm leave --force"), "{blockers}");
            Ok(())
        })
        .await;
    }
    swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_off_while_a_new_manager_took_the_lead_finds_it() {
    let mut swarm = hosts("newlead", 3, "").await;
    init(&swarm.hosts[0]).await;
    let (first, as_worker) = (swarm.hosts[0].address(), worker_token(&swarm.hosts[0]).await);
    ok(&join(&swarm.hosts[1], first, &as_worker).await);
    swarm.ready(2).await;
    // Off as a machine is.
    swarm.hosts[1].stop_daemon(true).await.expect("killed");
    if let Ok(pid) = std::fs::read_to_string(swarm.hosts[1].run_dir().join("tunnel.pid")) {
        swarm.hosts[1].run(&format!("kill -9 {}", pid.trim())).await.expect("killed");
    }
    let as_manager = manager_token(&swarm.hosts[0]).await;
    ok(&join(&swarm.hosts[2], first, &as_manager).await);
    reachable(&swarm.hosts[2], 2).await;
    // The only manager that the worker knows passes the lead on to the one that it does not know.
    swarm.hosts[0].stop_daemon(false).await.expect("stopped");
    start(&mut swarm.hosts[0]).await;
    assert_eq!(reachable(&swarm.hosts[2], 2).await, "n3");
    start(&mut swarm.hosts[1]).await;
    swarm.ready_on(2, 3).await;
    swarm.stop().await;
}

async fn skep(host: &Host, arguments: &str) -> anyhow::Result<String> {
    host.run(&format!("{SKEP} {arguments}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_brings_the_cluster_back_as_it_was_on_a_manager_without_any_data() {
    let mut swarm = swarm("bk", 2, "").await;
    let first = &swarm.hosts[0];
    first.docker_run("node update --availability drain n1").await.expect("tasks run on the other one");
    swarm.service("web", 2, Some(8080), serde_json::json!({})).await;
    let tasks: Vec<_> = swarm.running("web", 2).await.iter().map(|task| task["ID"].clone()).collect();
    let (dir, run) = (first.dir().display(), first.run_dir().display().to_string());
    let (file, words) = (format!("{dir}/swarm.skep"), format!("--passphrase-file {dir}/passphrase"));
    std::fs::write(first.dir().join("passphrase"), "correct horse\n").expect("written");
    skep(first, &format!("backup {file} {words} --run-dir {run}")).await.expect("a backup");
    let contents = std::fs::read_dir(first.run_dir().join("backups")).expect("it was written below the run directory");
    assert_eq!(contents.count(), 0, "the plain content is gone");
    let plan = skep(first, &format!("recover --plan --run-dir {run}")).await.expect("a plan");
    assert!(plan.contains("The newest copy is that of n1"), "{plan}");
    first.docker_run("network create -d overlay later").await.expect("made after the backup");
    // The manager's machine is lost, another one with an address of its own takes its place.
    let address = "192.0.2.79";
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    move_to(&swarm.hosts[0], address).await;
    let first = &swarm.hosts[0];
    let (data, gone) = (first.data_dir(), first.dir().join("gone"));
    let restore = format!("restore {file} {words} --data-dir {} --advertise-addr {address}", data.display());
    let refused = skep(first, &restore).await.expect_err("the directory is a node's");
    assert!(format!("{refused:#}").contains("has the membership of a node"), "{refused:#}");
    std::fs::rename(&data, &gone).expect("moved");
    let lost = skep(first, &format!("recover --plan {} --run-dir {run}", gone.display())).await.expect("a plan of a disk");
    assert!(lost.contains(&format!("The newest copy is that of n1 in {}", gone.display())), "{lost}");
    let mut damaged = std::fs::read(&file).expect("a backup");
    damaged.truncate(damaged.len() - 1);
    std::fs::write(format!("{file}.cut"), damaged).expect("written");
    let refused = skep(first, &restore.replacen(&file, &format!("{file}.cut"), 1)).await.expect_err("cut short");
    assert!(format!("{refused:#}").contains("cut short"), "{refused:#}");
    let restored = skep(first, &restore).await.expect("restored");
    assert!(restored.contains("1 services are restored"), "{restored}");
    start(&mut swarm.hosts[0]).await;
    swarm.ready(2).await;
    let networks = swarm.hosts[0].docker_run("network ls --format {{.Name}}").await.expect("it serves the API");
    assert!(!networks.lines().any(|name| name == "later"), "as it was when the backup was made: {networks}");
    let after: Vec<_> = swarm.running("web", 2).await.iter().map(|task| task["ID"].clone()).collect();
    assert!(tasks.iter().all(|id| after.contains(id)), "the tasks on the other node run on: {tasks:?} {after:?}");
    within(15, "the other node knows the manager's new address", || async {
        let known = get(&swarm.hosts[1], "/info").await["Swarm"]["RemoteManagers"].clone();
        anyhow::ensure!(known[0]["Addr"] == format!("{address}:2377"), "{known}");
        Ok(())
    })
    .await;
    swarm.stop().await;
}
