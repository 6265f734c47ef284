//! Ten minutes of tasks that are created, removed and killed under load, with a host disconnected for a while. `make soak`
//! runs it.

use super::*;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use skep::http::{HttpReply, UnixClient};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::time::Instant;

/// Time between two changes.
const CHURN: Duration = Duration::from_millis(200);
/// Time between two requests of one client.
const PAUSE: Duration = Duration::from_millis(200);
/// Services that are scaled, with the least and the greatest number of replicas.
const SCALED: [&str; 3] = ["web0", "web1", "web2"];
const REPLICAS: (usize, usize) = (2, 5);
/// Services that are created and removed, and whose containers are killed. Without load: their requests may be lost.
const ODD: [&str; 3] = ["odd0", "odd1", "odd2"];
/// A service whose tasks stay, on other hosts than the one that is disconnected.
const STEADY: &str = "steady";
/// UDP port of the steady service.
const DATAGRAMS: u16 = 5300;
/// TCP port of the steady service for connections that are kept, and the time between two lines of one.
const KEPT: u16 = 7007;
const IDLE: Duration = Duration::from_mins(1);

fn port_of(service: &str) -> u16 {
    let at = SCALED.iter().chain(&ODD).position(|name| *name == service).map_or(0, |at| at + 1);
    8000 + u16::try_from(at).expect("few")
}

/// Length of the soak.
#[expect(clippy::disallowed_methods, reason = "a test has no settings file")]
fn length() -> Duration {
    let seconds = std::env::var("SKEP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(600))
}

/// A change, and its service.
#[derive(Clone, Copy)]
enum Change {
    Scale(&'static str, usize),
    Kill(&'static str),
    Make(&'static str),
    Remove(&'static str),
}

impl Change {
    fn service(self) -> &'static str {
        match self {
            Self::Scale(name, _) | Self::Kill(name) | Self::Make(name) | Self::Remove(name) => name,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::Scale(..) => "scaled",
            Self::Kill(_) => "killed",
            Self::Make(_) => "made",
            Self::Remove(_) => "removed",
        }
    }
}

/// Changes in progress, one per service at most; each returns whether it was made.
type UnderWay<'a> = FuturesUnordered<Pin<Box<dyn Future<Output = (Change, bool)> + 'a>>>;

/// Makes random changes.
struct Churn<'a> {
    swarm: &'a Swarm,
    rng: StdRng,
    replicas: BTreeMap<&'static str, usize>,
    odd: BTreeMap<&'static str, bool>,
    nodes: BTreeMap<String, usize>,
    busy: BTreeSet<&'static str>,
    under_way: UnderWay<'a>,
    /// Number of changes that are due and not made.
    due: usize,
    /// Number of changes by kind, and of attempts without effect: no task to kill, or the manager refused an old version.
    done: BTreeMap<&'static str, usize>,
}

impl<'a> Churn<'a> {
    async fn new(swarm: &'a Swarm, seed: u64) -> Self {
        let mut nodes = BTreeMap::new();
        for (at, host) in swarm.hosts.iter().enumerate() {
            nodes.insert(swarm.node_id(host).await, at);
        }
        Self {
            swarm,
            rng: StdRng::seed_from_u64(seed),
            replicas: SCALED.map(|name| (name, 3)).into(),
            odd: ODD.map(|n| (n, false)).into(),
            nodes,
            busy: BTreeSet::new(),
            under_way: UnderWay::new(),
            due: 0,
            done: BTreeMap::new(),
        }
    }

    /// Of ten changes about six scale, three kill, one creates or removes. Only services that are not being changed.
    fn choose(&mut self) -> Option<Change> {
        let idle = |name: &&&str| !self.busy.contains(**name);
        let scaled: Vec<&'static str> = SCALED.iter().filter(idle).copied().collect();
        let (present, absent): (Vec<_>, Vec<_>) = ODD.iter().filter(idle).copied().partition(|name| self.odd[name]);
        let kind = self.rng.random_range(0..10);
        if kind >= 9 || (kind >= 6 && present.is_empty()) || (kind < 6 && scaled.is_empty()) {
            let all: Vec<Change> = present.into_iter().map(Change::Remove).chain(absent.into_iter().map(Change::Make)).collect();
            return all.choose(&mut self.rng).copied();
        }
        if kind >= 6 {
            return present.choose(&mut self.rng).copied().map(Change::Kill);
        }
        let name = *scaled.choose(&mut self.rng)?;
        let now = self.replicas[name];
        let up = now <= REPLICAS.0 || (now < REPLICAS.1 && self.rng.random());
        Some(Change::Scale(name, if up { now + 1 } else { now - 1 }))
    }

    fn begin(&mut self, change: Change) {
        self.busy.insert(change.service());
        let (swarm, nodes, pick) = (self.swarm, self.nodes.clone(), self.rng.random());
        self.under_way.push(Box::pin(async move {
            let made = match change {
                Change::Scale(name, replicas) => try_to_scale(swarm, name, replicas).await.status.is_success(),
                Change::Kill(name) => kill(swarm, &nodes, name, pick).await.is_some(),
                Change::Make(name) => make(swarm, name).await,
                Change::Remove(name) => remove(swarm, name).await.is_some_and(|reply| reply.status.is_success()),
            };
            (change, made)
        }));
    }

    fn ended(&mut self, change: Change, made: bool) {
        self.busy.remove(change.service());
        *self.done.entry(if made { change.name() } else { "none" }).or_default() += 1;
        self.due -= usize::from(made);
        match change {
            Change::Scale(name, replicas) if made => drop(self.replicas.insert(name, replicas)),
            Change::Make(name) if made => drop(self.odd.insert(name, true)),
            Change::Remove(name) => drop(self.odd.insert(name, false)),
            _ => {}
        }
    }

    /// Makes one change every [`CHURN`] until `over`, and waits for those in progress.
    async fn until(&mut self, over: impl Future<Output = ()>) {
        let mut over = std::pin::pin!(over);
        let mut tick = tokio::time::interval(CHURN);
        loop {
            tokio::select! {
                () = &mut over => break,
                _ = tick.tick() => self.due += 1,
                Some((change, made)) = self.under_way.next() => self.ended(change, made),
            }
            while self.due > self.under_way.len()
                && let Some(change) = self.choose()
            {
                self.begin(change);
            }
        }
        while let Some((change, made)) = self.under_way.next().await {
            self.ended(change, made);
        }
    }

    /// Number of changes that were made.
    fn made(&self) -> usize {
        self.done.iter().filter(|(what, _)| **what != "none").map(|(_, count)| count).sum()
    }
}

/// Kills the container of a running task through its host's engine.
async fn kill(swarm: &Swarm, nodes: &BTreeMap<String, usize>, name: &str, pick: u32) -> Option<()> {
    let tasks = swarm.tasks(name).await;
    let running: Vec<&Value> = tasks.iter().filter(|task| task["Status"]["State"] == "running").collect();
    let task = running.get(pick as usize % running.len().max(1))?;
    let host = &swarm.hosts[*nodes.get(task["NodeID"].as_str()?)?];
    let container = task["Status"]["ContainerStatus"]["ContainerID"].as_str()?;
    let engine = UnixClient::new(host.engine_socket());
    let killed = engine.request("POST", &format!("/containers/{container}/kill"), None).await.ok()?;
    killed.status.is_success().then_some(())
}

async fn make(swarm: &Swarm, name: &str) -> bool {
    let ports = json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port_of(name) }]);
    let spec = json!({
        "Name": name, "Mode": { "Replicated": { "Replicas": 2 } }, "EndpointSpec": { "Ports": ports },
        "TaskTemplate": {
            "ContainerSpec": { "Image": skep::lab::WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 },
            "RestartPolicy": { "Condition": "any", "Delay": 100_000_000 }, "Networks": [{ "Target": "back" }],
        },
    });
    post(&swarm.hosts[0], "/services/create", &spec).await.status.is_success()
}

async fn remove(swarm: &Swarm, name: &str) -> Option<HttpReply> {
    UnixClient::new(swarm.hosts[0].skep_socket()).request("DELETE", &format!("/services/{name}"), None).await.ok()
}

/// Waits until every loop of a node has applied the newest view.
async fn wait_for_node(swarm: &Swarm, host: &Host) {
    let newest = status(&swarm.hosts[0]).await["view_revision"]["index"].as_u64().expect("a revision");
    within(120, "the node to apply the newest view", || async {
        let status = status(host).await;
        let applied = status["applied"].as_object().expect("loops");
        let behind = applied.iter().filter(|(_, at)| at["index"].as_u64() < Some(newest)).map(|(name, _)| name.as_str());
        let behind: Vec<&str> = behind.collect();
        anyhow::ensure!(behind.is_empty(), "{}: {behind:?} behind {newest}", host.name());
        Ok(())
    })
    .await;
}

/// A client in 10.0.0.0/8, the range of the swarm's own networks, beside that in 192.0.2.0/24.
async fn office(swarm: &Swarm) -> Host {
    let office = swarm.lab.host("office", 10).await.expect("client");
    for line in
        ["ip addr flush dev eth0 scope global", "ip addr add 10.200.0.10/24 dev eth0", "ip route add 192.0.2.0/24 dev eth0"]
    {
        office.run(line).await.expect("an address");
    }
    for host in &swarm.hosts {
        host.run("ip route add 10.200.0.0/24 dev eth0").await.expect("a route");
    }
    office
}

#[ignore = "ten minutes: `make soak`"]
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_tasks_change_and_a_host_is_disconnected() {
    let swarm = swarm("ks", 3, "ebpf_datapath = \"auto\"\n[timeouts]\nreconcile_ms = 1000\n").await;
    let client = client(&swarm).await;
    let office = office(&swarm).await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
    let networks = json!([{ "Target": "back" }]);
    // The steady tasks and the callers must not run on the host that will be disconnected.
    availability(&swarm, "n3", "drain").await;
    let ports = json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": port_of(STEADY) },
        { "Protocol": "udp", "TargetPort": DATAGRAMS, "PublishedPort": DATAGRAMS },
        { "Protocol": "tcp", "TargetPort": KEPT, "PublishedPort": KEPT },
    ]);
    let mut template = good_server(&networks);
    template["ContainerSpec"]["Image"] = json!(skep::lab::WHOAMI_IMAGE);
    let spec = json!({
        "Name": STEADY, "Mode": { "Replicated": { "Replicas": 4 } }, "EndpointSpec": { "Ports": ports },
        "TaskTemplate": template,
    });
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
    swarm.service("caller", 2, None, json!({ "Networks": networks })).await;
    let callers = swarm.running("caller", 2).await;
    for task in &swarm.running(STEADY, 4).await {
        echo(&swarm, task, DATAGRAMS).await;
        serve_lines(of_task(&swarm, task).await, KEPT).await;
    }
    availability(&swarm, "n3", "active").await;
    // With a health check a task is running only once its server answers.
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
    let mut ports: Vec<String> = services.iter().map(|name| format!("{}/tcp", port_of(name))).collect();
    ports.extend([format!("{DATAGRAMS}/udp"), format!("{KEPT}/tcp")]);
    serves(&swarm.hosts, &ports.iter().map(String::as_str).collect::<Vec<_>>()).await;

    let clients = [(of_host(&client), "192.0.2.0/24"), (of_host(&office), "10.0.0.0/8")];
    let mut targets = Vec::new();
    for name in &services {
        for ((outside, range), host) in clients.iter().flat_map(|client| swarm.hosts.iter().map(move |host| (client, host))) {
            let label = format!("{name} from {range} by {}", host.name());
            targets.push(Target::new(outside, (host.address(), port_of(name)).into(), label));
        }
        let vip = vip(&swarm, name).await;
        for task in &callers {
            let from = host_of(&swarm, task).await.name().to_owned();
            targets.push(Target::new(
                &of_task(&swarm, task).await,
                (vip, 80).into(),
                format!("{name} by virtual address on {from}"),
            ));
        }
    }
    let mut flows = Vec::new();
    let mut kept = Vec::new();
    for ((outside, range), host) in clients.iter().flat_map(|client| swarm.hosts.iter().map(move |host| (client, host))) {
        let label = |what, at| format!("{STEADY}, {what} {at} from {range} by {}", host.name());
        flows.extend((0..2).map(|at| Target::new(outside, (host.address(), DATAGRAMS).into(), label("flow", at))));
        // A connection by the host that will be disconnected may end.
        if host.name() != "n3" {
            let to = (host.address(), KEPT).into();
            kept.extend((0..12).map(|at| Target::new(outside, to, label("idle connection", at))));
        }
    }
    let vip = vip(&swarm, STEADY).await;
    for task in &callers {
        let label = format!("{STEADY}, flow by address on {}", host_of(&swarm, task).await.name());
        flows.push(Target::new(&of_task(&swarm, task).await, (vip, DATAGRAMS).into(), label));
    }
    eprintln!("{} clients that ask, {} connections that are idle", targets.len() + flows.len(), kept.len());
    let loads = [Load::start(targets, PAUSE), Load::flows(flows, PAUSE), Load::kept(kept, IDLE)];

    let seed = rand::random();
    let (begun, length) = (Instant::now(), length());
    eprintln!("soak of {length:?}, seed {seed}");
    let mut churn = Churn::new(&swarm, seed).await;
    let at = |part: f32| tokio::time::sleep_until((begun + length.mul_f32(part)).into());
    churn.until(at(0.4)).await;
    let cut = Instant::now();
    swarm.lab.cut(&swarm.hosts[2]).await.expect("cut");
    churn.until(at(0.6)).await;
    swarm.lab.heal(&swarm.hosts[2]).await.expect("healed");
    let healed = Instant::now();
    churn.until(wait_for_node(&swarm, &swarm.hosts[2])).await;
    let back = Instant::now();
    eprintln!("disconnected for {:.1?}, up to date {:.1?} after it was connected again", healed - cut, back - healed);
    churn.until(at(1.0)).await;
    let took = begun.elapsed();
    eprintln!("changes: {:?} in {took:.0?}, one each {:.0?}", churn.done, took / u32::try_from(churn.made()).expect("some"));

    for name in SCALED {
        within(20, "the last change", || async {
            anyhow::ensure!(try_to_scale(&swarm, name, 3).await.status.is_success(), "refused");
            Ok(())
        })
        .await;
        settled(&swarm, name, 3).await;
    }
    for host in &swarm.hosts {
        wait_for_node(&swarm, host).await;
    }
    let mut tallies = Vec::new();
    for load in loads {
        tallies.extend(load.stop().await);
    }

    // Requests that could be sent to the disconnected host are counted separately.
    let (mut lost, mut excused, mut answered) = (Vec::new(), 0, 0);
    for tally in &tallies {
        answered += tally.answers();
        let may_miss = tally.label.ends_with("by n3") || !tally.label.starts_with(STEADY);
        for failed in &tally.failed {
            if may_miss && failed.from <= back && failed.to >= cut {
                excused += 1;
            } else {
                lost.push(format!("{} at {:.1?}: {}", tally.label, failed.from - begun, failed.why));
            }
        }
    }
    eprintln!("{answered} answered, {} lost on healthy paths, {excused} on paths to the disconnected host", lost.len());
    eprintln!("{lost:#?}");
    for host in &swarm.hosts {
        settled_tables(&swarm, host, &services).await;
    }
    assert!(lost.is_empty(), "requests on healthy paths were lost");
    drop(churn);
    client.stop().await;
    office.stop().await;
    swarm.stop().await;
}

/// Checks that a node's tables are those of its view: no change is pending, nothing was repaired, and the backends of each port
/// and address are exactly the running tasks.
async fn settled_tables(swarm: &Swarm, host: &Host, services: &[&str]) {
    within(30, "no pending change", || async {
        let status = status(host).await;
        let ebpf = &status["ebpf"];
        anyhow::ensure!(ebpf["changed"] == 0 && ebpf["reason"] == "", "{}: {ebpf:#}", host.name());
        anyhow::ensure!(status["applied"]["ebpf"] == status["view_revision"], "{}: {status:#}", host.name());
        Ok(())
    })
    .await;
    let ebpf = status(host).await["ebpf"].clone();
    eprintln!("{}: repaired {}, counters {}", host.name(), ebpf["repaired"], ebpf["counters"]);
    let dump = dump(host).await.expect("answers")["ebpf"].take();
    assert_eq!(dump["stale"], json!([]), "{}: stale pins", host.name());
    for name in services {
        let tasks = swarm.running(name, if *name == STEADY { 4 } else { 3 }).await;
        let addresses = |network: &str| addresses_on(&tasks, network);
        let port = format!("{}/tcp", port_of(name));
        let backends: BTreeSet<&str> =
            dump["ports"][&port]["backends"].as_object().into_iter().flatten().map(|(a, _)| a.as_str()).collect();
        assert_eq!(backends, addresses("ingress"), "{}: {port}", host.name());
        let vip = vip(swarm, name).await.to_string();
        let backends: BTreeSet<&str> =
            dump["vips"][&vip]["backends"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert_eq!(backends, addresses("back"), "{}: {name} at {vip}", host.name());
    }
    assert_eq!(ebpf["repaired"], 0, "{}: repairs without damage", host.name());
}

/// Addresses of tasks on the network of this name.
fn addresses_on<'a>(tasks: &'a [Value], network: &str) -> BTreeSet<&'a str> {
    let attachments = tasks.iter().flat_map(|task| task["NetworksAttachments"].as_array().into_iter().flatten());
    let on = attachments.filter(|attachment| attachment["Network"]["Spec"]["Name"] == network);
    on.filter_map(|attachment| attachment["Addresses"][0].as_str()?.split('/').next()).collect()
}
