//! HTTP routes of a swarm as a user sees them: on every node, with real engines, through updates, a killed daemon and an upgrade.

use super::super::load::{Load, Target, of_host, server};
use super::super::ports::client;
use super::kit::*;
use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::lab::Host;
use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Creates the test server as a service with these labels and further parts of its spec.
async fn create(swarm: &Swarm, name: &str, replicas: usize, labels: Value, more: Value) {
    let mut spec = json!({
        "Name": name, "Labels": labels, "Mode": { "Replicated": { "Replicas": replicas } },
        "UpdateConfig": { "Parallelism": 1, "Monitor": 1_000_000_000 },
    });
    let mut template = server::template(&json!([]));
    template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
    spec["TaskTemplate"] = template;
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
}

/// Waits until so many tasks of the first route are ready on every host.
async fn ready(hosts: &[Host], count: usize) {
    for host in hosts {
        within(40, "ready tasks of the route", || async {
            let http = status(host).await["http"].take();
            anyhow::ensure!(http["routes"][0]["ready"] == json!(count), "{}: {http:#}", host.name());
            Ok(())
        })
        .await;
    }
}

/// What curl says, from a host.
async fn curl(from: &Host, arguments: &str) -> String {
    from.run(&format!("curl -sS --max-time 10 {arguments}")).await.unwrap_or_else(|error| format!("{error:#}"))
}

async fn pid_of_http(host: &Host) -> Value {
    status(host).await["http"]["pid"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_on_every_node_and_a_killed_daemon_an_upgrade_and_rollouts_lose_no_request() {
    let mut swarm = swarm("ht", 2, "").await;
    let client = client(&swarm).await;
    create(&swarm, "shop", 2, json!({ "skep.http": "test,shop.example.com" }), json!({})).await;
    swarm.running("shop", 2).await;
    ready(&swarm.hosts, 2).await;
    for host in &swarm.hosts {
        let to = host.address();
        let plain = curl(&client, &format!("-w %{{http_code}}/%{{http_version}} -H Host:shop.example.com http://{to}/")).await;
        assert!(plain.contains(" ok ") && plain.ends_with("200/1.1"), "{plain}");
        let resolve = format!("--resolve shop.example.com:443:{to}");
        let tls = curl(&client, &format!("-k -w %{{http_code}}/%{{http_version}} {resolve} https://shop.example.com/")).await;
        assert!(tls.contains(" ok ") && tls.ends_with("200/2"), "{tls}");
        let unknown = curl(&client, &format!("http://{to}/")).await;
        assert!(unknown.starts_with("404 no route for"), "{unknown}");
    }
    let outside = of_host(&client);
    let targets = || swarm.hosts.iter().map(|host| Target::new(&outside, SocketAddr::from((host.address(), 80)), host.name()));
    let pause = Duration::from_millis(20);
    let loads = [("new", Load::http(targets(), pause, false)), ("kept", Load::http(targets(), pause, true))];

    let before = pid_of_http(&swarm.hosts[0]).await;
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    let killed_at = loads[0].1.answers();
    within(10, "answers without a daemon", || async {
        let now = loads[0].1.answers();
        anyhow::ensure!(now.iter().zip(&killed_at).all(|(now, before)| *now > before + 20), "{killed_at:?} {now:?}");
        Ok(())
    })
    .await;
    start(&mut swarm.hosts[0]).await;
    ready(&swarm.hosts[..1], 2).await;
    assert_eq!(pid_of_http(&swarm.hosts[0]).await, before, "the process is adopted");

    // Another build: the same program and a byte.
    let other = swarm.lab.dir().join("skep-next");
    std::fs::copy(SKEP, &other).expect("copied");
    std::fs::OpenOptions::new().append(true).open(&other).and_then(|mut file| file.write_all(b"\n")).expect("appended");
    swarm.hosts[0].stop_daemon(true).await.expect("killed");
    start_as(&mut swarm.hosts[0], &other).await;
    ready(&swarm.hosts[..1], 2).await;
    within(20, "the new build's process", || async {
        let now = pid_of_http(&swarm.hosts[0]).await;
        anyhow::ensure!(now != before && now.is_u64(), "{now}");
        Ok(())
    })
    .await;

    let said = swarm.hosts[0].docker_run("service update --env-add ROUND=1 shop").await.expect("updated");
    assert!(said.contains("converged"), "{said}");
    for (what, load) in loads {
        for tally in load.stop().await {
            eprintln!(
                "{what} {}: {} answers, {} lost, slowest {:?}",
                tally.label,
                tally.answers(),
                tally.failed.len(),
                tally.slowest
            );
            assert!(
                tally.failed.is_empty(),
                "{what} {}: {:?}",
                tally.label,
                tally.failed.iter().map(|f| &f.why).collect::<Vec<_>>()
            );
            assert!(tally.answered.len() >= 4, "old and new tasks are reached: {:?}", tally.answered);
        }
    }

    // Without a route there is no process and no listener.
    let api = UnixClient::new(swarm.hosts[0].skep_socket());
    ok(&api.request("DELETE", "/services/shop", None).await.expect("skep answers"));
    for host in &swarm.hosts {
        within(15, "the process to end", || async {
            let listens = host.run("ss -Hlnt").await?;
            anyhow::ensure!(!listens.contains(":80 ") && !listens.contains(":443 "), "{listens}");
            Ok(())
        })
        .await;
    }
    client.stop().await;
    swarm.stop().await;
}
