//! Removal in order: a task leaves every port and every name before it is told to stop, so clients see nothing of it.

use super::*;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Requests without a pause to one address until told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    running: Vec<tokio::task::JoinHandle<Tally>>,
}

#[derive(Default, Debug)]
struct Tally {
    to: String,
    answered: BTreeMap<String, usize>,
    failed: Vec<String>,
    slowest: Duration,
}

impl Load {
    fn start(client: &Host, targets: impl IntoIterator<Item = SocketAddr>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let start = Instant::now();
        let running = targets
            .into_iter()
            .map(|to| {
                let (namespace, stop) = (of_host(client), Arc::clone(&stop));
                tokio::spawn(inside(namespace, move || {
                    let mut tally = Tally { to: to.to_string(), ..Tally::default() };
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        match request(to) {
                            Ok(who) => *tally.answered.entry(who).or_default() += 1,
                            Err(e) => {
                                tally.failed.push(format!("at {:.2?} after {:.2?}: {e:#}", start.elapsed(), begun.elapsed()))
                            }
                        }
                        tally.slowest = tally.slowest.max(begun.elapsed());
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    tally
                }))
            })
            .collect();
        Self { stop, running }
    }

    async fn stop(self) -> Vec<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for one in self.running {
            all.push(one.await.expect("no panic"));
        }
        all
    }
}

fn request(to: SocketAddr) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("connect")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET / HTTP/1.0\r\n\r\n").context("write")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read")?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    body.split_whitespace().next().map(str::to_owned).with_context(|| format!("not an answer: {answer:?}"))
}

async fn availability(swarm: &Swarm, host: &str, value: &str) {
    swarm.hosts[0].docker_run(&format!("node update --availability {value} {host}")).await.expect("node update");
}

/// So many tasks of the service run, and every other one has ended.
async fn settled(swarm: &Swarm, service: &str, count: usize) {
    swarm.running(service, count).await;
    within(20, "the others to end", || async {
        let tasks = swarm.tasks(service).await;
        let live =
            tasks.iter().filter(|t| ["running", "starting", "ready", "preparing"].iter().any(|s| t["Status"]["State"] == *s));
        let live = live.count();
        anyhow::ensure!(live == count, "{live} live tasks, not {count}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_notices_when_tasks_come_and_go() {
    let swarm = swarm("po", 3, "log = \"info,skep::balance=debug\"").await;
    let client = client(&swarm).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let on = json!({ "Networks": [{ "Target": "back" }] });
    // Told to stop it listens no more, at once, and finishes what it began: as a good server does.
    let server = "httpd -f -p 80 -h /www & s=$!; trap 'kill $s; sleep 1; exit 0' TERM; wait";
    let web = json!({
        "Networks": [{ "Target": "back" }],
        "ContainerSpec": { "Command": ["sh", "-c", server], "StopGracePeriod": 5_000_000_000_u64 },
    });
    swarm.service("web", 6, Some(8080), web).await;
    swarm.service("ask", 3, None, on).await;
    let asking = swarm.running("ask", 3).await;
    settled(&swarm, "web", 6).await;
    // One that asks by name, on the manager's node, which is not drained.
    let here = swarm.node_id(&swarm.hosts[0]).await;
    let asker = asking.iter().find(|t| t["NodeID"] == json!(here)).expect("one on each node");
    let asker = asker["Status"]["ContainerStatus"]["ContainerID"].as_str().expect("container").to_owned();
    // By name: what was resolved is connected to at once, as programs do.
    let script = r"while [ ! -e /tmp/stop ]; do
        set -- $(nslookup -type=a web | /bin/busybox sed -n '/^Name/,$s/^Address[ 0-9]*: *//p')
        timeout 5 wget -q -O - http://$1/ || echo failed to reach $1
    done";
    let mut by_name = swarm.hosts[0].engine_cli();
    by_name.args(["exec", &asker, "sh", "-c", script]);
    let by_name = tokio::spawn(async move { by_name.output().await });

    let load = Load::start(&client, swarm.hosts.iter().map(|h| SocketAddr::new(h.address().into(), 8080)));
    for _ in 0..2 {
        scale(&swarm, "web", 2).await;
        settled(&swarm, "web", 2).await;
        scale(&swarm, "web", 6).await;
        settled(&swarm, "web", 6).await;
    }
    for host in ["n2", "n3"] {
        availability(&swarm, host, "drain").await;
        settled(&swarm, "web", 6).await;
        availability(&swarm, host, "active").await;
    }
    scale(&swarm, "web", 2).await;
    settled(&swarm, "web", 2).await;
    let tallies = load.stop().await;
    swarm.hosts[0].engine_cli().args(["exec", &asker, "sh", "-c", "echo > /tmp/stop"]).output().await.expect("stop");
    let by_name = by_name.await.expect("no panic").expect("docker exec");
    let (by_name, stderr) =
        (String::from_utf8_lossy(&by_name.stdout).into_owned(), String::from_utf8_lossy(&by_name.stderr).into_owned());
    eprintln!("{}", stderr.lines().take(5).collect::<Vec<_>>().join("\n"));

    for tally in &tallies {
        let answered: usize = tally.answered.values().sum();
        eprintln!(
            "{}: {answered} answered by {} tasks, slowest {:.2?}, failed {:#?}",
            tally.to,
            tally.answered.len(),
            tally.slowest,
            tally.failed
        );
    }
    for host in &swarm.hosts {
        let log = std::fs::read_to_string(host.dir().join("skep.log")).unwrap_or_default();
        let passed_over = log.lines().filter(|l| l.contains("backend does not accept")).count();
        eprintln!("{}: {passed_over} times a backend was passed over", host.name());
    }
    eprintln!("{}", by_name.lines().take(5).collect::<Vec<_>>().join("\n"));
    let (failed, answered) = (by_name.matches("failed").count(), by_name.lines().count());
    eprintln!("by name: {answered} answers, {failed} failed");
    assert!(tallies.iter().all(|t| t.failed.is_empty() && t.answered.len() > 6), "requests to the port failed");
    assert!(failed == 0 && answered > 50, "requests by name failed");
    client.stop().await;
    swarm.stop().await;
}
