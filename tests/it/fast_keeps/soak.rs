//! Ten minutes of tasks that come, go and die under load, with a host cut off and back in the middle. Run by `make soak`.

use super::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use skep::http::UnixClient;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// Between two changes.
const CHURN: Duration = Duration::from_millis(200);
/// Between two requests of one source.
const PAUSE: Duration = Duration::from_millis(200);
/// Services whose replicas come and go in good order: number of replicas, at least and at most.
const SCALED: [&str; 3] = ["web0", "web1", "web2"];
const REPLICAS: (usize, usize) = (2, 5);
/// Services that are made and removed, and whose containers are killed. No load: what they lose is lost.
const ODD: [&str; 3] = ["odd0", "odd1", "odd2"];
/// Its tasks stay where they are, off the host that is cut.
const STEADY: &str = "steady";

fn port_of(service: &str) -> u16 {
    let at = SCALED.iter().chain(&ODD).position(|name| *name == service).map_or(0, |at| at + 1);
    8000 + u16::try_from(at).expect("few")
}

/// How long it shall take.
fn length() -> Duration {
    let seconds = std::env::var("SKEP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

/// What changes tasks.
struct Churn<'a> {
    swarm: &'a Swarm,
    rng: StdRng,
    replicas: BTreeMap<&'static str, usize>,
    odd: BTreeMap<&'static str, bool>,
    nodes: BTreeMap<String, usize>,
    done: BTreeMap<&'static str, usize>,
}

impl<'a> Churn<'a> {
    async fn new(swarm: &'a Swarm, seed: u64) -> Self {
        let mut nodes = BTreeMap::new();
        for (at, host) in swarm.hosts.iter().enumerate() {
            nodes.insert(swarm.node_id(host).await, at);
        }
        let replicas = SCALED.map(|name| (name, 3)).into();
        Self {
            swarm,
            rng: StdRng::seed_from_u64(seed),
            replicas,
            odd: ODD.map(|n| (n, false)).into(),
            nodes,
            done: BTreeMap::new(),
        }
    }

    /// One change, or none: there is nobody to kill, the manager refuses (a version that is old by now).
    async fn one(&mut self) {
        let what = match self.rng.random_range(0..10) {
            0..6 => self.scale().await,
            6..9 => self.kill().await,
            _ => self.make_or_remove().await,
        };
        *self.done.entry(what.unwrap_or("none")).or_default() += 1;
    }

    async fn scale(&mut self) -> Option<&'static str> {
        let name = *SCALED.choose(&mut self.rng).expect("some");
        let now = self.replicas[name];
        let up = now <= REPLICAS.0 || (now < REPLICAS.1 && self.rng.random());
        let next = if up { now + 1 } else { now - 1 };
        self.set_replicas(name, next).await.then(|| {
            self.replicas.insert(name, next);
            if up { "scaled up" } else { "scaled down" }
        })
    }

    async fn set_replicas(&self, name: &str, replicas: usize) -> bool {
        let manager = &self.swarm.hosts[0];
        let service = get(manager, &format!("/services/{name}")).await;
        let mut spec = service["Spec"].clone();
        spec["Mode"]["Replicated"]["Replicas"] = json!(replicas);
        let target = format!("/services/{name}/update?version={}", service["Version"]["Index"]);
        post(manager, &target, &spec).await.status.is_success()
    }

    async fn kill(&mut self) -> Option<&'static str> {
        let name = *ODD.choose(&mut self.rng).expect("some");
        if !self.odd[name] {
            return None;
        }
        let tasks = self.swarm.tasks(name).await;
        let running: Vec<&Value> = tasks.iter().filter(|task| task["Status"]["State"] == "running").collect();
        let task = *running.choose(&mut self.rng)?;
        let host = &self.swarm.hosts[*self.nodes.get(task["NodeID"].as_str()?)?];
        let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str()?;
        let engine = UnixClient::new(host.engine_socket());
        let killed = engine.request("POST", &format!("/containers/{container}/kill"), None).await.ok()?;
        killed.status.is_success().then_some("killed")
    }

    async fn make_or_remove(&mut self) -> Option<&'static str> {
        let name = *ODD.choose(&mut self.rng).expect("some");
        let manager = &self.swarm.hosts[0];
        if self.odd[name] {
            let reply =
                UnixClient::new(manager.skep_socket()).request("DELETE", &format!("/services/{name}"), None).await.ok()?;
            self.odd.insert(name, false);
            return reply.status.is_success().then_some("removed");
        }
        let ports = json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port_of(name) }]);
        let spec = json!({
            "Name": name, "Mode": { "Replicated": { "Replicas": 2 } }, "EndpointSpec": { "Ports": ports },
            "TaskTemplate": {
                "ContainerSpec": { "Image": skep::lab::WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 },
                "RestartPolicy": { "Condition": "any", "Delay": 100_000_000 }, "Networks": [{ "Target": "back" }],
            },
        });
        let made = post(manager, "/services/create", &spec).await.status.is_success();
        self.odd.insert(name, made);
        made.then_some("made")
    }

    async fn until(&mut self, end: Instant) {
        let mut tick = tokio::time::interval(CHURN);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while Instant::now() < end {
            tick.tick().await;
            self.one().await;
        }
    }
}

/// Waits until a node follows the newest view with every loop.
async fn follows(swarm: &Swarm, host: &Host) {
    let newest = status(&swarm.hosts[0]).await["told"]["index"].as_u64().expect("a revision");
    within(120, "the node to follow", || async {
        let status = status(host).await;
        let applied = status["applied"].as_object().expect("loops");
        let behind = applied.iter().filter(|(_, at)| at["index"].as_u64() < Some(newest)).map(|(name, _)| name.as_str());
        let behind: Vec<&str> = behind.collect();
        anyhow::ensure!(behind.is_empty(), "{}: {behind:?} behind {newest}", host.name());
        Ok(())
    })
    .await;
}

#[ignore = "ten minutes: `make soak`"]
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_tasks_come_and_go_and_a_host_is_cut_and_healed() {
    let swarm = swarm("ks", 3, "fast_plane = \"auto\"\n[timeouts]\nreconcile_ms = 1000\n").await;
    let client = client(&swarm).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!([{ "Target": "back" }]);
    // The steady ones find no place on the host that will be cut; neither do those that ask by virtual address.
    availability(&swarm, "n3", "drain").await;
    swarm.service(STEADY, 4, Some(port_of(STEADY)), good_server(&networks)).await;
    swarm.service("ask", 2, None, json!({ "Networks": networks })).await;
    let asking = swarm.running("ask", 2).await;
    swarm.running(STEADY, 4).await;
    availability(&swarm, "n3", "active").await;
    // A server that is not listening yet is no healthy path: its tasks run once they answer.
    let mut server = good_server(&networks);
    server["ContainerSpec"]["Healthcheck"] =
        json!({ "Test": ["CMD", "wget", "-q", "-O", "/dev/null", "http://127.0.0.1/"], "Interval": 2_000_000_000_u64 });
    for name in SCALED {
        swarm.service(name, 3, Some(port_of(name)), server.clone()).await;
    }
    for name in SCALED {
        swarm.running(name, 3).await;
    }
    let services: Vec<&str> = SCALED.into_iter().chain([STEADY]).collect();
    let ports: Vec<String> = services.iter().map(|name| format!("{}/tcp", port_of(name))).collect();
    serves(&swarm.hosts, &ports.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let outside = of_host(&client);
    let mut targets = Vec::new();
    for name in &services {
        for host in &swarm.hosts {
            targets.push(Target::new(&outside, (host.address(), port_of(name)).into(), format!("{name} by {}", host.name())));
        }
        let vip = vip(&swarm, name).await;
        for task in &asking {
            let from = host_of(&swarm, task).await.name().to_owned();
            targets.push(Target::new(&of_task(&swarm, task).await, (vip, 80).into(), format!("{name} by address on {from}")));
        }
    }
    let load = Load::start(targets, PAUSE);

    let seed = rand::random();
    let (begun, length) = (Instant::now(), length());
    eprintln!("soak of {length:?}, seed {seed}");
    let mut churn = Churn::new(&swarm, seed).await;
    churn.until(begun + length.mul_f32(0.4)).await;
    let cut = Instant::now();
    swarm.lab.cut(&swarm.hosts[2]).await.expect("cut");
    churn.until(begun + length.mul_f32(0.6)).await;
    swarm.lab.heal(&swarm.hosts[2]).await.expect("healed");
    let healed = Instant::now();
    let mut follow = Box::pin(follows(&swarm, &swarm.hosts[2]));
    loop {
        tokio::select! {
            () = &mut follow => break,
            () = tokio::time::sleep(CHURN) => churn.one().await,
        }
    }
    drop(follow);
    let back = Instant::now();
    eprintln!("cut for {:.1?}, followed {:.1?} after it was healed", healed - cut, back - healed);
    churn.until(begun + length).await;

    for name in SCALED {
        within(20, "the last word", || async {
            anyhow::ensure!(churn.set_replicas(name, 3).await, "refused");
            Ok(())
        })
        .await;
        settled(&swarm, name, 3).await;
    }
    for host in &swarm.hosts {
        follows(&swarm, host).await;
    }
    let tallies = load.stop().await;
    eprintln!("changes: {:?} in {:.0?}", churn.done, begun.elapsed());

    // What could have gone to the host that was cut is counted apart.
    let (mut lost, mut apart, mut answered) = (Vec::new(), 0, 0);
    for tally in &tallies {
        answered += tally.answers();
        let may_miss = tally.label.ends_with("by n3") || !tally.label.starts_with(STEADY);
        for failed in &tally.failed {
            if may_miss && failed.from <= back && failed.to >= cut {
                apart += 1;
            } else {
                lost.push(format!("{} at {:.1?}: {}", tally.label, failed.from - begun, failed.why));
            }
        }
    }
    eprintln!("{answered} answered, {} lost on healthy paths, {apart} on paths to the host that was cut", lost.len());
    eprintln!("{lost:#?}");
    for host in &swarm.hosts {
        settled_tables(&swarm, host, &services).await;
    }
    assert!(lost.is_empty(), "requests on healthy paths were lost");
    drop(churn);
    client.stop().await;
    swarm.stop().await;
}

/// A node's tables are those of its view: nothing is left to do, nothing had to be mended, and behind each port and address
/// stand the tasks that run, no other and none is missing.
async fn settled_tables(swarm: &Swarm, host: &Host, services: &[&str]) {
    within(30, "nothing to be left to do", || async {
        let status = status(host).await;
        let fast = &status["fast"];
        anyhow::ensure!(fast["changed"] == 0 && fast["reason"] == "", "{}: {fast:#}", host.name());
        anyhow::ensure!(status["applied"]["fast"] == status["told"], "{}: {status:#}", host.name());
        Ok(())
    })
    .await;
    let fast = status(host).await["fast"].clone();
    eprintln!("{}: mended {}, counters {}", host.name(), fast["mended"], fast["counters"]);
    let admin = UnixClient::new(host.run_dir().join("admin.sock"));
    let dump: Value = admin.get("/dump").await.expect("answers").json().expect("JSON");
    let dump = &dump["fast"];
    assert_eq!(dump["stale"], json!([]), "{}: pins of nobody", host.name());
    for name in services {
        let tasks = swarm.running(name, if *name == STEADY { 4 } else { 3 }).await;
        let of = |network: &str| addresses_on(&tasks, network);
        let port = format!("{}/tcp", port_of(name));
        let there: BTreeSet<&str> =
            dump["ports"][&port]["backends"].as_object().into_iter().flatten().map(|(a, _)| a.as_str()).collect();
        assert_eq!(there, of("ingress"), "{}: {port}", host.name());
        let vip = vip(swarm, name).await.to_string();
        let there: BTreeSet<&str> =
            dump["vips"][&vip]["backends"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(there, of("back"), "{}: {name} at {vip}", host.name());
    }
    assert_eq!(fast["mended"], 0, "{}: what nobody damaged is not mended", host.name());
}

/// Addresses of tasks on the network of this name.
fn addresses_on<'a>(tasks: &'a [Value], network: &str) -> BTreeSet<&'a str> {
    let attachments = tasks.iter().flat_map(|task| task["NetworksAttachments"].as_array().into_iter().flatten());
    let on = attachments.filter(|attachment| attachment["Network"]["Spec"]["Name"] == network);
    on.filter_map(|attachment| attachment["Addresses"][0].as_str()?.split('/').next()).collect()
}
