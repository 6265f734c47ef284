//! Three managers of the release before last are upgraded one at a time: the cluster goes on writing, and its feature level rises at
//! the end.

use super::super::managers::{managers_of, reachable};
use super::*;
use serde_json::Value;
use skep::http::UnixClient;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

/// As soon as every manager has it.
const AT_ONCE: &str = "[timeouts]\nnode_down_ms = 20000\n[manager]\nrollback_window_s = 0\n";

/// Configs, each through the next manager that is not being replaced.
struct Writes {
    /// The manager that is; held for reading during a write.
    replaced: Arc<RwLock<Option<usize>>>,
    stop: Arc<AtomicBool>,
    running: JoinHandle<Written>,
}

#[derive(Default)]
struct Written {
    names: Vec<String>,
    refused: Vec<String>,
    slowest: Duration,
}

impl Writes {
    fn start(hosts: &[Host]) -> Self {
        let clients: Vec<UnixClient> = hosts.iter().map(|host| UnixClient::new(host.skep_socket())).collect();
        let (replaced, stop) = (Arc::new(RwLock::new(None)), Arc::new(AtomicBool::new(false)));
        let (replaced_now, stopped) = (Arc::clone(&replaced), Arc::clone(&stop));
        let running = tokio::spawn(async move {
            let mut written = Written::default();
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                number += 1;
                let replaced = replaced_now.read().await;
                let through = number % clients.len();
                if *replaced == Some(through) {
                    continue;
                }
                let name = format!("w{number}");
                let begin = Instant::now();
                let body = json!({ "Name": name, "Data": "eA==" });
                let reply = clients[through].request("POST", "/configs/create", Some(&body)).await;
                written.slowest = written.slowest.max(begin.elapsed());
                match reply {
                    Ok(reply) if reply.status.is_success() => written.names.push(name),
                    Ok(reply) => written.refused.push(format!("{name}: {} {}", reply.status, said(&reply))),
                    Err(error) => written.refused.push(format!("{name}: {error:#}")),
                }
                drop(replaced);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            written
        });
        Self { replaced, stop, running }
    }

    async fn replaces(&self, manager: Option<usize>) {
        *self.replaced.write().await = manager;
    }

    async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.running.await.expect("no panic")
    }
}

async fn feature_level(host: &Host) -> Value {
    status(host).await["manager"]["feature_level"].take()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a build of a release before: make test-upgrade"]
async fn three_managers_are_upgraded_one_at_a_time_and_no_write_and_no_request_is_lost() {
    let previous =
        variable("SKEP_PREVIOUS_MANAGERS").expect("run `make test-upgrade`: it builds a release with several managers");
    let mut swarm = managers_of("um", AT_ONCE, &previous).await;
    let client = swarm.lab.host("client", 9).await.expect("host");
    swarm.service("web", 3, Some(8080), json!({})).await;
    let before = places(&swarm, "web", 3).await;
    for host in &swarm.hosts {
        within(30, "the port to answer", || ask(&client, (host.address(), 8080).into())).await;
    }
    let old_level = feature_level(&swarm.hosts[0]).await;
    let load = load(&client, &swarm);
    let writes = Writes::start(&swarm.hosts);
    // The leader in the middle: its successor is of the build before, or of this one.
    let leader = reachable(&swarm.hosts[0], 3).await;
    let mut order: Vec<usize> = (0..3).filter(|at| swarm.hosts[*at].name() != leader).collect();
    order.insert(1, swarm.hosts.iter().position(|host| host.name() == leader).expect("a host"));
    for at in order {
        writes.replaces(Some(at)).await;
        let host = &mut swarm.hosts[at];
        eprintln!("{} is upgraded", host.name());
        host.stop_daemon(false).await.expect("stopped");
        start_as(host, Path::new(SKEP)).await;
        for host in &swarm.hosts {
            in_session(host).await;
        }
        swarm.ready(3).await;
        reachable(&swarm.hosts[at], 3).await;
        writes.replaces(None).await;
        assert_eq!(places(&swarm, "web", 3).await, before, "no task moved, no container was started again");
        let answered = load.answers();
        within(60, "every node to answer", || async {
            let now = load.answers();
            ensure!(now.iter().zip(&answered).all(|(now, then)| now > &(then + 20)), "{answered:?}, now {now:?}");
            Ok(())
        })
        .await;
    }
    within(30, "the feature level to rise", || async {
        let mut levels = Vec::new();
        for host in &swarm.hosts {
            levels.push(feature_level(host).await);
        }
        ensure!(levels.iter().all(|level| level.as_u64() > old_level.as_u64()), "{old_level}, now {levels:?}");
        Ok(())
    })
    .await;
    let written = writes.stop().await;
    eprintln!("{} writes, the slowest after {:.2?}", written.names.len(), written.slowest);
    assert!(written.refused.is_empty() && written.names.len() > 100, "{} written; {:#?}", written.names.len(), written.refused);
    for host in &swarm.hosts {
        within(10, "every write", || async {
            let configs: Vec<Value> = UnixClient::new(host.skep_socket()).get("/configs").await?.json()?;
            let names: BTreeSet<&str> = configs.iter().filter_map(|config| config["Spec"]["Name"].as_str()).collect();
            let lost: Vec<_> = written.names.iter().filter(|name| !names.contains(name.as_str())).collect();
            ensure!(lost.is_empty(), "{}: {lost:?}", host.name());
            Ok(())
        })
        .await;
    }
    for tally in load.stop().await {
        assert!(tally.failed.is_empty() && tally.answers() > 100, "{tally}");
        assert_eq!(tally.answered.len(), 3, "all tasks answer on every node: {tally}");
    }
    client.stop().await;
    swarm.stop().await;
}
