//! Mistakes of the first day: each error names what and where, and nothing is lost.

use super::kit::*;
use super::logs::descriptors;
use super::networks::container_of;
use serde_json::json;
use skep::lab::Host;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;

/// Shortens joins that must fail; enough for a second handshake, five seconds after the first.
const QUICK: &str = "[timeouts]\njoin_ms = 8000\n";

#[tokio::test]
async fn a_failed_join_names_its_reason_leaves_nothing_and_can_be_repeated() {
    let swarm = hosts("join", 2, QUICK).await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);

    let early =
        join(worker, manager.address(), "SWMTKN-1-3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-1awxwuwd3z9j1z3puu7rcgdbx")
            .await;
    assert_eq!(early.status, 503, "no manager listens yet: {}", said(&early));
    assert!(said(&early).contains("192.0.2.1:2377"), "{}", said(&early));

    init(manager).await;
    let token = worker_token(manager).await;

    let reply = join(worker, manager.address(), "nonsense").await;
    assert_eq!((reply.status.as_u16(), said(&reply).as_str()), (500, "invalid join token"));

    let wrong_secret = format!("{}-{}", &token[..token.rfind('-').expect("token")], "0".repeat(25));
    // The real one takes ten seconds for each of these.
    let begin = Instant::now();
    let reply = join(worker, manager.address(), &wrong_secret).await;
    assert_eq!(reply.status, 400);
    assert!(said(&reply).contains("A valid join token is necessary"), "{}", said(&reply));

    let foreign = "SWMTKN-1-3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-1awxwuwd3z9j1z3puu7rcgdbx";
    let reply = join(worker, manager.address(), foreign).await;
    assert_eq!(reply.status, 500);
    assert!(said(&reply).contains("remote CA does not match fingerprint"), "{}", said(&reply));
    assert!(begin.elapsed() < Duration::from_secs(3), "two refusals took {:?}", begin.elapsed());

    let reply = join(worker, "192.0.2.77".parse().expect("ip"), &token).await;
    assert_eq!(reply.status, 503);
    assert!(said(&reply).contains("192.0.2.77:2377"), "{}", said(&reply));

    for (from, to) in [("192.0.2.2", "192.0.2.1"), ("192.0.2.1", "192.0.2.2")] {
        block_udp(&swarm, from).await;
        let reply = join(worker, manager.address(), &token).await;
        assert!(reply.status.is_server_error(), "{}", reply.status);
        let text = said(&reply);
        assert!(
            text.contains("UDP 2377") && text.contains(&format!("from {from}")) && text.contains(to),
            "direction {from} → {to}: {text}"
        );
        unblock(&swarm).await;
    }

    // None of these attempts has left anything, on the worker or at the manager.
    assert_eq!(get(manager, "/nodes").await.as_array().map(Vec::len), Some(1), "the manager has removed the failed joiner");
    assert_eq!(get(worker, "/info").await["Swarm"]["LocalNodeState"], "inactive");
    let pin = worker.run_dir().join("mesh");
    assert!(!pin.exists(), "the failed joiner's mesh namespace is removed");
    assert!(!worker.data_dir().join("node.json").exists() && !worker.data_dir().join("tunnel.key").exists());

    // Every address given is tried: one that does not resolve, a host that is not there, one on which no manager listens.
    let own = worker.address().to_string();
    let remotes = ["no.such.host.invalid:2377", "192.0.2.77:2377", &format!("{own}:2377"), &manager.address().to_string()];
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": own, "RemoteAddrs": remotes[..3], "JoinToken": token });
    let refused = post(worker, "/swarm/join", &body).await;
    assert!(refused.status == 503 && said(&refused).contains("192.0.2.77:2377"), "{}", said(&refused));
    assert!(said(&refused).contains(&format!("{own}:2377")), "{}", said(&refused));
    let body = json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": own, "RemoteAddrs": remotes, "JoinToken": token });
    ok(&post(worker, "/swarm/join", &body).await);
    swarm.ready(2).await;
    let again = join(worker, manager.address(), &token).await;
    assert_eq!(again.status, 503);
    assert!(said(&again).contains("already part of a swarm"), "{}", said(&again));
    swarm.stop().await;
}

async fn block_udp(swarm: &Swarm, from: &str) {
    let rules = swarm.lab.dir().join("block.nft");
    let text = format!(
        "table bridge block {{ chain f {{ type filter hook forward priority 0; ip saddr {from} udp dport 2377 drop
}}
}}
"
    );
    std::fs::write(&rules, text).expect("rules");
    skep::lab::output(swarm.lab.command("nft").arg("-f").arg(&rules)).await.expect("nft");
}

async fn unblock(swarm: &Swarm) {
    skep::lab::output(swarm.lab.command("nft").args(["delete", "table", "bridge", "block"])).await.expect("nft");
}

#[tokio::test]
async fn garbage_on_2377_and_a_port_in_use_disturb_no_other_traffic() {
    let swarm = swarm("garbage", 2, "").await;
    let (manager, worker) = (&swarm.hosts[0], &swarm.hosts[1]);
    // Another program has the port on the worker.
    let mut squatter = worker.command("busybox").args(["nc", "-l", "-p", "8080"]).kill_on_drop(true).spawn().expect("squatter");
    within(5, "the squatter to listen", || async {
        let sockets = worker.run("ss -ltn").await?;
        anyhow::ensure!(sockets.contains(":8080"), "{sockets}");
        Ok(())
    })
    .await;
    swarm.service("web", 2, Some(8080), json!({})).await;
    swarm.running("web", 2).await;

    let garbage = r"for i in $(busybox seq 40); do
        busybox head -c 2000 /dev/urandom | busybox nc -w 1 192.0.2.1 2377 >/dev/null 2>&1 &
        busybox head -c 1200 /dev/urandom | busybox nc -u -w 1 192.0.2.1 2377 >/dev/null 2>&1 &
    done; printf 'GET / HTTP/1.1\r\n\r\n' | busybox nc -w 1 192.0.2.1 2377 >/dev/null 2>&1; wait; true";
    skep::lab::output(worker.command("sh").args(["-c", garbage])).await.expect("garbage sent");

    swarm.ready(2).await;
    let to: SocketAddr = (manager.address(), 8080).into();
    within(10, "the manager's port to answer", || ask(worker, to)).await;
    let ports = within(5, "the port in use to be reported", || async {
        let status = status(worker).await;
        let port = status["ports"].as_array().into_iter().flatten().find(|p| p["port"] == 8080).cloned();
        let port = port.ok_or_else(|| anyhow::anyhow!("no line for 8080: {status:#}"))?;
        anyhow::ensure!(port["state"]["taken"].is_string(), "{port}");
        Ok(port)
    })
    .await;
    assert!(ports["state"]["taken"].as_str().is_some_and(|t| t.contains("in use")), "{ports}");

    let metrics = skep::http::UnixClient::new(manager.run_dir().join("admin.sock")).get("/metrics").await.expect("answers");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let refused = r#"skep_manager_refused_connections_total{reason="handshake"} "#;
    let refused = metrics.lines().find_map(|line| line.strip_prefix(refused)).and_then(|count| count.parse::<u64>().ok());
    assert!(refused.is_some_and(|count| count > 0), "{metrics}");

    // Once it is free, skep binds it without intervention.
    squatter.kill().await.expect("squatter ends");
    worker.run("busybox killall nc").await.ok();
    within(15, "the freed port to answer", || ask(manager, (worker.address(), 8080).into())).await;
    swarm.stop().await;
}

#[tokio::test]
async fn bad_requests_and_clients_that_go_away_leave_nothing_open() {
    let swarm = swarm("leak", 1, "").await;
    swarm.service("web", 1, None, json!({})).await;
    swarm.running("web", 1).await;
    bad_requests_leave_nothing_open(&swarm.hosts[0]).await;
    swarm.stop().await;
}

/// Requests of all bad kinds, and clients that go away: within a head, a body, a stream that is upgraded, and one without an end.
async fn bad_requests_leave_nothing_open(host: &Host) {
    const TIMES: usize = 20;
    let container = container_of(host, "web").await.expect("a task");
    let (id, upgrade) = ("x".repeat(5_000), "Connection: Upgrade\r\nUpgrade: tcp\r\n");
    let create =
        |body: &str| format!("POST /v1.44/services/create HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: d\r\n{more}\r\n");
    let requests = [
        create(&format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000))),
        create(r#"{"Name": 5, "TaskTemplate": []}"#),
        create("{").replace("Length: 1", "Length: 900000"),
        create("").replace("Length: 0", "Length: 99999999999"),
        get("/v9.99/services", ""),
        get("/services?filters={%22nosuch%22:[%22a%22]}", ""),
        get("/v1.44/services/..%2f..%2fetc", ""),
        get(&format!("/services/{id}"), ""),
        "GET /serv".to_owned(),
        get("/events", ""),
        get("/services/web/logs?stdout=1&follow=1", ""),
    ];
    let attach = [get(&format!("/containers/{container}/attach?stream=1&stdin=1&stdout=1"), upgrade).replacen("GET", "POST", 1)];
    let send = async |requests: &[String]| {
        for request in requests {
            let mut stream = UnixStream::connect(host.skep_socket()).await.expect("connects");
            // The server may have closed its end while it is written.
            let _ = stream.write_all(request.as_bytes()).await;
            // A request that is cut short has no answer.
            let mut first = [0; 64];
            let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut first)).await;
        }
    };
    // What is kept for the next requests is open before, too.
    send(&requests).await;
    let before = resident(host).await;
    // The engine itself keeps the connection of a client that left its attachment until the container writes something, also where it
    // is asked without skep: there only skep's own are counted.
    for (requests, programs) in [(&requests[..], &["skep", "dockerd"][..]), (&attach, &["skep"])] {
        let open = async || {
            let mut all = 0;
            for program in programs {
                all += descriptors(host, program).await;
            }
            all
        };
        send(requests).await;
        let before = within(20, "the first ones to be closed", || async {
            let (one, other) = (open().await, open().await);
            anyhow::ensure!(one == other, "{one}, {other}");
            Ok(other)
        })
        .await;
        for _ in 0..TIMES {
            send(requests).await;
        }
        within(20, "no descriptor more than before", || async {
            let now = open().await;
            anyhow::ensure!(now <= before, "{now} are open, {before} before");
            Ok(())
        })
        .await;
    }
    let grown = resident(host).await.saturating_sub(before);
    assert!(grown < 16 << 10, "{grown} KiB more than the {before} of before, after {} requests", TIMES * (requests.len() + 1));
}

/// Memory of skep's processes on a host, in KiB.
async fn resident(host: &Host) -> u64 {
    let mut all = 0;
    for pid in host.run("busybox pidof skep").await.expect("runs").split_whitespace() {
        let line = host.run(&format!("busybox grep VmRSS /proc/{pid}/status")).await.expect("its memory");
        all += line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number");
    }
    all
}

#[tokio::test]
async fn an_engine_that_does_not_answer_is_named() {
    let mut swarm = hosts("engine", 1, "").await;
    swarm.hosts[0].stop_engine().await.expect("engine stops");
    let host = &swarm.hosts[0];
    let reply =
        post(host, "/swarm/init", &json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "192.0.2.1", "Spec": {} })).await;
    assert!(reply.status.is_server_error());
    assert!(said(&reply).contains("engine.sock"), "names the socket: {}", said(&reply));
    let reply = skep::http::UnixClient::new(host.skep_socket()).get("/containers/json").await.expect("skep itself answers");
    assert!(reply.status.is_server_error(), "{}", reply.status);
    assert!(said(&reply).contains("engine.sock"), "{}", said(&reply));

    // With the engine back everything works again.
    let mut host = swarm.hosts.pop().expect("host");
    host.start_engine(&super::super::lab::engine_root()).await.expect("engine");
    init(&host).await;
    swarm.hosts.push(host);
    swarm.ready(1).await;
    swarm.service("web", 1, None, json!({})).await;
    let before = swarm.running("web", 1).await;
    let mut host = swarm.hosts.pop().expect("host");
    host.stop_engine().await.expect("engine stops");
    host.start_engine(&super::super::lab::engine_root()).await.expect("engine");
    swarm.hosts.push(host);
    let after = within(40, "the task to run again", || async {
        let tasks = swarm.tasks("web").await;
        let running = tasks.iter().find(|t| t["Status"]["State"] == "running" && t["ID"] != before[0]["ID"]).cloned();
        running.ok_or_else(|| anyhow::anyhow!("{tasks:#?}"))
    })
    .await;
    assert_eq!(after["Slot"], before[0]["Slot"]);
    swarm.stop().await;
}

#[tokio::test]
async fn a_damaged_or_foreign_data_directory_is_named_and_left_untouched() {
    let mut swarm = swarm("data", 1, "").await;
    let mut host = swarm.hosts.pop().expect("host");
    host.stop_daemon(false).await.expect("stops");
    // Without its log a manager's node goes on as the last view says; without its identity it does not start.
    for (file, bytes, blocked, state) in [
        ("node.json", &b"\0\0\0"[..], "node", "error"),
        ("certificates/node.crt", b"garbage", "node", "error"),
        ("endpoints.json", b"{", "node", "error"),
        ("attachments.json", b"[]", "node", "error"),
        ("raft/raft.redb", b"garbage", "manager", "active"),
    ] {
        let path = host.data_dir().join(file);
        // A node that never had a plain container on its networks has no `attachments.json`.
        let whole = std::fs::read(&path).ok();
        std::fs::write(&path, bytes).expect("damaged");
        start(&mut host).await;
        let status = status(&host).await;
        let name = file.rsplit('/').next().expect("name");
        assert!(status["blockers"][blocked].as_str().is_some_and(|e| e.contains(name)), "{file}: {status:#}");
        assert_eq!(get(&host, "/info").await["Swarm"]["LocalNodeState"], state, "{file}");
        host.stop_daemon(false).await.expect("stops");
        assert_eq!(std::fs::read(&path).expect("still exists"), bytes, "{file}: the damaged file is left untouched");
        match whole {
            Some(whole) => std::fs::write(&path, whole).expect("restored"),
            None => std::fs::remove_file(&path).expect("removed"),
        }
    }
    // The identity of another cluster.
    let node = host.data_dir().join("node.json");
    let own = std::fs::read_to_string(&node).expect("record");
    let record: serde_json::Value = serde_json::from_str(&own).expect("json");
    let cluster = record["cluster_id"].as_str().expect("cluster");
    std::fs::write(&node, own.replace(cluster, &"z".repeat(25))).expect("foreign");
    start(&mut host).await;
    let status = status(&host).await;
    assert!(status["error"].as_str().is_some_and(|e| e.contains("another cluster")), "{status:#}");
    host.stop_daemon(false).await.expect("stops");
    std::fs::write(&node, own).expect("restored");
    start(&mut host).await;
    swarm.hosts.push(host);
    swarm.ready(1).await;
    swarm.stop().await;
}

#[tokio::test]
async fn usage_and_privileges_have_their_exit_codes() {
    let run = |args: &'static [&'static str]| async move { Command::new(SKEP).args(args).output().await.expect("runs") };
    let bad = run(&["daemon", "--no-such-flag"]).await;
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("--no-such-flag"));
    assert_eq!(run(&["daemon", "--tunnel", "vxlan"]).await.status.code(), Some(2));
    let missing = run(&["daemon", "--config", "/nonexistent/skep.toml"]).await;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/skep.toml"));
    let no_daemon = run(&["status", "--run-dir", "/nonexistent"]).await;
    assert_eq!(no_daemon.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&no_daemon.stderr).contains("/nonexistent/admin.sock"));

    // As an unprivileged user, from a path that this user can read.
    let copy = format!("/tmp/skep-unprivileged-{}", std::process::id());
    std::fs::copy(SKEP, &copy).expect("copy");
    for verb in ["daemon", "demo"] {
        let out = Command::new("setpriv").args(["--reuid", "65534", "--clear-groups", &copy, verb]).output().await.expect("runs");
        assert_eq!(out.status.code(), Some(1), "{verb}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("root"), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
    }
    std::fs::remove_file(&copy).expect("removed");
}
