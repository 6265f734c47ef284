//! How soon a change of a route is live on all nodes of a swarm.

use crate::report::{Report, spread};
use crate::swarm::kit::*;
use crate::work::Namespace;
use serde_json::{Value, json};
use skep::lab::WHOAMI_IMAGE;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const NODES: u8 = 3;
const CHANGES: usize = 10;

fn spec(host: &str) -> Value {
    json!({
        "Name": "site",
        "Labels": { "skep.http": format!("always.test,{host}"), "skep.http.port": "80" },
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 } },
        "Mode": { "Replicated": { "Replicas": 2 } },
    })
}

/// Whether a request for a host is answered by a task. A new connection.
fn is_live(from: &Namespace, to: SocketAddr, host: &str) -> bool {
    let Ok(mut stream) = from.connect(to) else { return false };
    let mut answer = String::new();
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

pub async fn run(report: &mut Report) {
    let swarm = swarm("bench-http", NODES, "").await;
    ok(&post(&swarm.hosts[0], "/services/create", &spec("first.test")).await);
    swarm.running("site", 2).await;
    let nodes: Vec<(Namespace, SocketAddr)> = swarm
        .hosts
        .iter()
        .map(|host| (Namespace::open(&format!("/proc/{}/ns/net", host.pid())), (host.address(), 80).into()))
        .collect();
    within(30, "the first route on every node", || async {
        tokio::task::block_in_place(|| {
            let missing = nodes.iter().find(|(from, to)| !is_live(from, *to, "first.test"));
            anyhow::ensure!(missing.is_none(), "{:?}", missing.map(|(_, to)| to));
            Ok(())
        })
    })
    .await;
    let (mut times, mut answered) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let host = format!("change{number}.test");
        let service = get(&swarm.hosts[0], "/services/site").await;
        let (id, version) = (service["ID"].as_str().unwrap(), service["Version"]["Index"].as_u64().unwrap());
        let started = Instant::now();
        // The nodes are asked while the request is served: it may be answered after the change is live.
        let watched = nodes.clone().into_iter().map(|(from, to)| {
            let host = host.clone();
            std::thread::spawn(move || {
                while !is_live(&from, to, &host) {
                    assert!(started.elapsed() < Duration::from_secs(30), "{host} is not live on {to}");
                    std::thread::sleep(Duration::from_millis(1));
                }
                started.elapsed()
            })
        });
        let watched: Vec<_> = watched.collect();
        ok(&post(&swarm.hosts[0], &format!("/services/{id}/update?version={version}"), &spec(&host)).await);
        answered.push(started.elapsed().as_secs_f64() * 1e3);
        let live = tokio::task::block_in_place(|| watched.into_iter().map(|watch| watch.join().unwrap()).max().unwrap());
        times.push(live.as_secs_f64() * 1e3);
    }
    report.section(
        "A change of an HTTP route",
        &format!(
            "{NODES} nodes with engines on this machine. A service gets another host while its tasks stay; from the request to the API until \
             each node answers a request for the new host by a task. {CHANGES} changes, ms."
        ),
        &["what", "time", "goal"],
    );
    report.row(&["the API answers".to_owned(), spread(&answered, 1), String::new()]);
    report.row(&["live on all nodes".to_owned(), spread(&times, 1), "≤ 100".to_owned()]);
    swarm.stop().await;
}
