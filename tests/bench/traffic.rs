//! Traffic through a swarm of two hosts with engines.

use crate::report::{Report, median, spread};
use crate::stats;
use crate::swarm::kit::*;
use crate::work::{Namespace, Side, connections, datagrams, download, rounds, trips, upload};
use serde_json::{Value, json};
use skep::lab::{Host, WHOAMI_IMAGE, output};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Port that the servers listen on in containers.
const PORT: u16 = 7000;
/// Published port whose task runs on the host that the client connects to.
const LOCAL: u16 = 9000;
/// Published port whose task runs on the other host.
const REMOTE: u16 = 9001;
/// Forwarded by a DNAT rule of nftables.
const DNAT: u16 = 9900;
/// Slices of each side in a round.
const SLICES: u32 = 12;
const SLICE: Duration = Duration::from_millis(100);

async fn create(swarm: &Swarm, name: &str, replicas: usize, network: Option<&str>, published: Option<u16>) {
    let ports: Vec<Value> = published
        .iter()
        .flat_map(|port| {
            ["tcp", "udp"].map(|protocol| json!({ "Protocol": protocol, "TargetPort": PORT, "PublishedPort": port }))
        })
        .collect();
    let networks: Vec<Value> = network.iter().map(|name| json!({ "Target": name })).collect();
    let spec = json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 100_000_000 }, "Networks": networks },
        "Mode": { "Replicated": { "Replicas": replicas } },
        "EndpointSpec": { "Ports": ports },
    });
    ok(&post(&swarm.hosts[0], "/services/create", &spec).await);
}

struct Task {
    /// Index of its host.
    host: usize,
    namespace: Namespace,
    address: Ipv4Addr,
}

async fn tasks(swarm: &Swarm, service: &str, count: usize) -> Vec<Task> {
    let mut all = Vec::new();
    for task in swarm.running(service, count).await {
        for (number, host) in swarm.hosts.iter().enumerate() {
            if task["NodeID"] == json!(swarm.node_id(host).await) {
                let pid = task["Status"]["ContainerStatus"]["PID"].as_u64().unwrap();
                let address = task["NetworksAttachments"][0]["Addresses"][0].as_str().unwrap();
                let address = address.split('/').next().unwrap().parse().unwrap();
                let namespace = Namespace::open(&format!("/proc/{}/root/proc/{pid}/ns/net", host.pid()));
                all.push(Task { host: number, namespace, address });
            }
        }
    }
    all.sort_by_key(|task| task.host);
    all
}

async fn sh(host: &Host, script: &str) {
    output(host.command("sh").args(["-c", script])).await.unwrap();
}

/// Process id of a host's daemon, in the namespace of this process.
pub fn daemon(host: &Host) -> u32 {
    let run_dir = host.run_dir().display().to_string();
    let is_daemon = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.first().is_some_and(|w| w.ends_with(b"/skep"))
            && words.get(1) == Some(&b"daemon".as_slice())
            && words.contains(&run_dir.as_bytes())
    };
    let numbers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(is_daemon).max().unwrap()
}

/// What a comparison reports, and which ratio is the better one.
#[derive(Clone, Copy)]
enum Unit {
    /// Time of one operation; the ratio is that of the times.
    Time,
    /// Bits per second; the ratio is that of the rates.
    Rate,
}

impl Unit {
    /// Work per second, for people.
    fn show(self, per_second: f64) -> String {
        match self {
            Self::Time => format!("{:.1} µs", 1e6 / per_second),
            Self::Rate => format!("{:.2} Gbit/s", per_second * 8.0 / 1e9),
        }
    }

    fn ratio(self, speed_ratio: f64) -> f64 {
        match self {
            Self::Time => 1.0 / speed_ratio,
            Self::Rate => speed_ratio,
        }
    }
}

/// Compares two sides; measures the first one twice, to see how much the same work varies on this machine.
fn compare(report: &mut Report, what: &str, goal: &str, unit: Unit, base: impl Fn() -> Side, ours: Side) {
    let all = rounds(SLICES, SLICE, &mut [base(), ours, base()]);
    let ratios = |side: usize| -> Vec<f64> { all.iter().map(|round| unit.ratio(round[side].1)).collect() };
    let speed = |side: usize| unit.show(median(&all.iter().map(|round| round[side].0).collect::<Vec<_>>()));
    report.row(&[what.to_owned(), spread(&ratios(1), 3), goal.to_owned(), spread(&ratios(2), 3), speed(0), speed(1)]);
}

/// Where the measurements connect from and to.
struct Paths {
    /// A host outside the swarm.
    outside: Namespace,
    /// A container on the network of the service that has a virtual address.
    client: Namespace,
    direct: SocketAddr,
    by_vip: SocketAddr,
    /// A published port whose task runs on the host that is connected to.
    local: SocketAddr,
    /// A published port whose task runs on the other host.
    remote: SocketAddr,
    /// Forwarded by nftables on the host.
    dnat: SocketAddr,
    /// A container, and one on the other host that it connects to.
    container: Namespace,
    peer: SocketAddr,
}

/// The port on which a server closes each connection at once.
fn dropper(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), PORT + 1)
}

pub async fn run(report: &mut Report) {
    let swarm = swarm("bench", 2, "ebpf_datapath = \"auto\"\n").await;
    let client = swarm.lab.host("client", 9).await.unwrap();
    let paths = start(&swarm, &client).await;
    let daemons = [daemon(&swarm.hosts[0]), daemon(&swarm.hosts[1])];
    tokio::task::block_in_place(|| {
        compare_all(report, &paths);
        hook_times(report, &paths, daemons);
    });
    client.stop().await;
    swarm.stop().await;
}

/// Starts services and servers, and waits until every path works.
async fn start(swarm: &Swarm, client: &Host) -> Paths {
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "net", "Driver": "overlay" })).await);
    create(swarm, "srv", 1, Some("net"), None).await;
    create(swarm, "cli", 2, Some("net"), None).await;
    create(swarm, "local", 2, None, Some(LOCAL)).await;
    create(swarm, "remote", 2, None, Some(REMOTE)).await;
    let (server, clients) = (tasks(swarm, "srv", 1).await.remove(0), tasks(swarm, "cli", 2).await);
    let (local, remote) = (tasks(swarm, "local", 2).await, tasks(swarm, "remote", 2).await);
    // Only a task that listens gets connections, so each port has one.
    local[0].namespace.serve(PORT);
    remote[1].namespace.serve(PORT);
    server.namespace.serve(PORT);
    clients[1].namespace.serve(PORT);
    start_dnat(&swarm.hosts[0]).await;
    for host in &swarm.hosts {
        within(40, "the eBPF datapath to serve both ports", || async {
            let now = status(host).await;
            let ports = now["ebpf"]["ports"].to_string();
            anyhow::ensure!(
                ports.contains("9000/tcp\"") && ports.contains("9001/tcp\"") && ports.contains("9001/udp\""),
                "{}",
                now["ebpf"]
            );
            Ok(())
        })
        .await;
    }
    let entry = swarm.hosts[0].address();
    let to = |address: Ipv4Addr, port: u16| SocketAddr::from((address, port));
    let paths = Paths {
        outside: Namespace::open(&format!("/proc/{}/ns/net", client.pid())),
        client: clients[server.host].namespace.clone(),
        direct: to(server.address, PORT),
        by_vip: to(vip(swarm).await, PORT),
        local: to(entry, LOCAL),
        remote: to(entry, REMOTE),
        dnat: to(entry, DNAT),
        container: clients[0].namespace.clone(),
        peer: to(clients[1].address, PORT),
    };
    within(30, "every server to accept", || async {
        for (namespace, target) in [
            (&paths.outside, paths.local),
            (&paths.outside, paths.remote),
            (&paths.outside, paths.dnat),
            (&paths.client, paths.by_vip),
            (&paths.container, paths.peer),
        ] {
            namespace.connect(target).map_err(|e| anyhow::anyhow!("{target}: {e}"))?;
        }
        Ok(())
    })
    .await;
    paths
}

/// A server in a separate namespace behind a DNAT rule of the host.
async fn start_dnat(host: &Host) {
    let script = format!(
        "ip netns add dnat && ip link add t0 type veth peer name eth0 netns dnat && ip addr add 198.18.0.1/24 dev t0 && \
         ip link set t0 up && ip -n dnat link set lo up && ip -n dnat addr add 198.18.0.2/24 dev eth0 && \
         ip -n dnat link set eth0 up && ip -n dnat route add default via 198.18.0.1 && \
         echo 1 >/proc/sys/net/ipv4/ip_forward && (iptables -P FORWARD ACCEPT || true) && nft add table ip bench && \
         nft 'add chain ip bench pre {{ type nat hook prerouting priority -100; }}' && \
         nft add rule ip bench pre tcp dport {DNAT} dnat to 198.18.0.2:{PORT}"
    );
    sh(host, &script).await;
    Namespace::open(&format!("/proc/{}/root/run/netns/dnat", host.pid())).serve(PORT);
}

fn compare_all(report: &mut Report, paths: &Paths) {
    report.section(
        "Traffic: ratios",
        "Two hosts; client and servers are threads of one process in the namespaces. Round trips: 64 bytes over one connection, each end pinned to its own processor. The last ratio compares the other side with itself: smaller differences mean nothing.",
        &["what", "ratio", "goal", "same against same", "other side", "skep"],
    );
    let Paths { outside, client, direct, by_vip, local, remote, dnat, container, peer } = paths;
    compare(
        report,
        "established TCP by virtual address ÷ direct, time per round trip",
        "1.00",
        Unit::Time,
        || trips(client, *direct),
        trips(client, *by_vip),
    );
    compare(
        report,
        "connect by virtual address ÷ direct, time",
        "≤ 1.05",
        Unit::Time,
        || connections(client, dropper(*direct)),
        connections(client, dropper(*by_vip)),
    );
    let what = "published port, local task ÷ nftables DNAT";
    compare(report, &format!("{what}, upload"), "≥ 1.0", Unit::Rate, || upload(outside, *dnat), upload(outside, *local));
    compare(report, &format!("{what}, download"), "≥ 1.0", Unit::Rate, || download(outside, *dnat), download(outside, *local));
    compare(report, &format!("{what}, time per round trip"), "", Unit::Time, || trips(outside, *dnat), trips(outside, *local));
    let what = "published port, remote task ÷ container to container";
    compare(report, &format!("{what}, upload"), "≥ 0.9", Unit::Rate, || upload(container, *peer), upload(outside, *remote));
    compare(report, &format!("{what}, download"), "≥ 0.9", Unit::Rate, || download(container, *peer), download(outside, *remote));
    compare(report, &format!("{what}, time per round trip"), "", Unit::Time, || trips(container, *peer), trips(outside, *remote));
}

fn hook_times(report: &mut Report, paths: &Paths, daemons: [u32; 2]) {
    report.section(
        "Run time of each hook",
        "`kernel.bpf_stats_enabled` while one kind of traffic flows for 0.6 s; both hosts' programs together. ns per run (runs). A packet of a stream may be 64 KB.",
        &["traffic", "hooks"],
    );
    let mut measure = |what: &str, mut side: Side| {
        let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
        let before = daemons.map(stats::runs);
        side(Duration::from_millis(600));
        let mut all = std::collections::BTreeMap::<String, (u64, f64)>::new();
        for (pid, before) in daemons.iter().zip(&before) {
            for (name, (runs, each)) in stats::between(before, &stats::runs(*pid)) {
                let entry = all.entry(name).or_default();
                entry.0 += runs;
                entry.1 += runs as f64 * each;
            }
        }
        drop(counting);
        let cells: Vec<String> =
            all.iter().map(|(name, (runs, time))| format!("{name} {:.0} ({runs})", time / *runs as f64)).collect();
        report.row(&[what.to_owned(), cells.join(", ")]);
    };
    let Paths { outside, client, by_vip, local, remote, container, peer, .. } = paths;
    measure("TCP round trips, local task", trips(outside, *local));
    measure("TCP round trips, remote task", trips(outside, *remote));
    measure("UDP round trips, local task", datagrams(outside, *local));
    measure("UDP round trips, remote task", datagrams(outside, *remote));
    measure("TCP upload, local task", upload(outside, *local));
    measure("TCP download, local task", download(outside, *local));
    measure("TCP upload, remote task", upload(outside, *remote));
    measure("TCP download, remote task", download(outside, *remote));
    measure("connections by virtual address", connections(client, dropper(*by_vip)));
    measure("TCP round trips by virtual address", trips(client, *by_vip));
    measure("UDP round trips by virtual address", datagrams(client, *by_vip));
    measure("TCP round trips, container to container, remote", trips(container, *peer));
}

async fn vip(swarm: &Swarm) -> Ipv4Addr {
    let service = get(&swarm.hosts[0], "/services/srv").await;
    let text = service["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().unwrap().to_owned();
    text.split('/').next().unwrap().parse().unwrap()
}
