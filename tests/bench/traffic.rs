//! Traffic through a swarm of two hosts with engines.

use crate::report::{Report, spread};
use crate::stats;
use crate::swarm::kit::*;
use crate::work::{Place, Side, connections, datagrams, download, rounds, trips, upload};
use serde_json::{Value, json};
use skep::lab::{Host, WHOAMI_IMAGE, output};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Where the servers listen in containers.
const PORT: u16 = 7000;
/// Published: to a task of the host that is asked, and to one of the other.
const NEAR: u16 = 9000;
const FAR: u16 = 9001;
/// Turned by a rule of nftables.
const TURNED: u16 = 9900;
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

/// A task: its host, its namespace, its address.
struct Task {
    host: usize,
    place: Place,
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
                let place = Place::at(&format!("/proc/{}/root/proc/{pid}/ns/net", host.pid()));
                all.push(Task { host: number, place, address });
            }
        }
    }
    all.sort_by_key(|task| task.host);
    all
}

async fn sh(host: &Host, script: &str) {
    output(host.command("sh").args(["-c", script])).await.unwrap();
}

/// The daemon's number outside.
fn daemon(host: &Host) -> u32 {
    let run_dir = host.run_dir().display().to_string();
    let is = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|b| *b == 0).collect();
        words.first().is_some_and(|w| w.ends_with(b"/skep"))
            && words.get(1) == Some(&b"daemon".as_slice())
            && words.contains(&run_dir.as_bytes())
    };
    let numbers = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(is).max().unwrap()
}

/// One comparison of two sides; the first side twice, to see what the machine makes of the same.
fn compare(
    report: &mut Report,
    what: &str,
    goal: &str,
    slices: u32,
    base: impl Fn() -> Side,
    ours: Side,
    unit: impl Fn(f64) -> String,
    inverse: bool,
) {
    let all = rounds(slices, SLICE, &mut [base(), ours, base()]);
    let ratio =
        |at: usize| -> Vec<f64> { all.iter().map(|round| if inverse { 1.0 / round[at].1 } else { round[at].1 }).collect() };
    let column = |at: usize| unit(crate::report::median(&all.iter().map(|round| round[at].0).collect::<Vec<_>>()));
    report.row(&[what.to_owned(), spread(&ratio(1), 3), goal.to_owned(), spread(&ratio(2), 3), column(0), column(1)]);
}

fn micros(per_second: f64) -> String {
    format!("{:.1} µs", 1e6 / per_second)
}

fn gigabits(bytes_per_second: f64) -> String {
    format!("{:.2} Gbit/s", bytes_per_second * 8.0 / 1e9)
}

pub async fn run(report: &mut Report) {
    let swarm = swarm("bench", 2, "ebpf_datapath = \"auto\"\n").await;
    ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "net", "Driver": "overlay" })).await);
    create(&swarm, "srv", 1, Some("net"), None).await;
    create(&swarm, "cli", 2, Some("net"), None).await;
    create(&swarm, "near", 2, None, Some(NEAR)).await;
    create(&swarm, "far", 2, None, Some(FAR)).await;
    let client = swarm.lab.host("client", 9).await.unwrap();
    let (server, clients) = (tasks(&swarm, "srv", 1).await.remove(0), tasks(&swarm, "cli", 2).await);
    let (near, far) = (tasks(&swarm, "near", 2).await, tasks(&swarm, "far", 2).await);
    // Only who listens is given clients: so each port has one task.
    near[0].place.serve(PORT);
    far[1].place.serve(PORT);
    server.place.serve(PORT);
    clients[1].place.serve(PORT);
    sh(&swarm.hosts[0], &format!("ip netns add turned && ip link add t0 type veth peer name eth0 netns turned && ip addr add 198.18.0.1/24 dev t0 && ip link set t0 up && ip -n turned link set lo up && ip -n turned addr add 198.18.0.2/24 dev eth0 && ip -n turned link set eth0 up && ip -n turned route add default via 198.18.0.1 && echo 1 >/proc/sys/net/ipv4/ip_forward && (iptables -P FORWARD ACCEPT || true) && nft add table ip bench && nft 'add chain ip bench pre {{ type nat hook prerouting priority -100; }}' && nft add rule ip bench pre tcp dport {TURNED} dnat to 198.18.0.2:{PORT}")).await;
    let turned = Place::at(&format!("/proc/{}/root/run/netns/turned", swarm.hosts[0].pid()));
    turned.serve(PORT);

    let outside = Place::at(&format!("/proc/{}/ns/net", client.pid()));
    let vip = vip(&swarm).await;
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
    within(30, "everybody to answer", || async {
        for (place, target) in [
            (&outside, to(entry, NEAR)),
            (&outside, to(entry, FAR)),
            (&outside, to(entry, TURNED)),
            (&clients[server.host].place, to(vip, PORT)),
            (&clients[0].place, to(clients[1].address, PORT)),
        ] {
            place.connect(target).map_err(|e| anyhow::anyhow!("{target}: {e}"))?;
        }
        Ok(())
    })
    .await;
    let pids = [daemon(&swarm.hosts[0]), daemon(&swarm.hosts[1])];

    tokio::task::block_in_place(|| {
        report.section(
            "Traffic: ratios",
            "Two hosts, client and servers are threads of one process in the namespaces. Round trips: 64 bytes over one connection, each end on a processor of its own. The last ratio is the other side against itself: what differs less than that says nothing.",
            &["what", "ratio", "goal", "same against same", "other side", "skep"],
        );
        let asker = &clients[server.host].place;
        let (direct, virtual_) = (to(server.address, PORT), to(vip, PORT));
        let dropper = |address: SocketAddr| SocketAddr::new(address.ip(), PORT + 1);
        compare(
            report,
            "established TCP by virtual address ÷ direct, time per round trip",
            "1.00",
            12,
            || trips(asker, direct),
            trips(asker, virtual_),
            micros,
            true,
        );
        compare(
            report,
            "connect by virtual address ÷ direct, time",
            "≤ 1.05",
            12,
            || connections(asker, dropper(direct)),
            connections(asker, dropper(virtual_)),
            micros,
            true,
        );
        let (near, far, turned) = (to(entry, NEAR), to(entry, FAR), to(entry, TURNED));
        compare(
            report,
            "published port, task here ÷ nftables DNAT, upload",
            "≥ 1.0",
            12,
            || upload(&outside, turned),
            upload(&outside, near),
            gigabits,
            false,
        );
        compare(
            report,
            "published port, task here ÷ nftables DNAT, download",
            "≥ 1.0",
            12,
            || download(&outside, turned),
            download(&outside, near),
            gigabits,
            false,
        );
        compare(
            report,
            "published port, task here ÷ nftables DNAT, time per round trip",
            "",
            12,
            || trips(&outside, turned),
            trips(&outside, near),
            micros,
            true,
        );
        let (east, west) = (&clients[0].place, to(clients[1].address, PORT));
        compare(
            report,
            "published port, task elsewhere ÷ container to container, upload",
            "≥ 0.9",
            12,
            || upload(east, west),
            upload(&outside, far),
            gigabits,
            false,
        );
        compare(
            report,
            "published port, task elsewhere ÷ container to container, download",
            "≥ 0.9",
            12,
            || download(east, west),
            download(&outside, far),
            gigabits,
            false,
        );
        compare(
            report,
            "published port, task elsewhere ÷ container to container, time per round trip",
            "",
            12,
            || trips(east, west),
            trips(&outside, far),
            micros,
            true,
        );

        report.section(
            "Run time of each hook",
            "`kernel.bpf_stats_enabled` while one kind of traffic flows for 0.6 s; both hosts' programs together. ns per run (runs). A packet of a stream may be 64 KB.",
            &["traffic", "hooks"],
        );
        let mut hooks = |what: &str, mut side: Side| {
            let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
            let before = pids.map(stats::runs);
            side(Duration::from_millis(600));
            let mut all = std::collections::BTreeMap::<String, (u64, f64)>::new();
            for (pid, before) in pids.iter().zip(&before) {
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
        hooks("TCP round trips, task here", trips(&outside, near));
        hooks("TCP round trips, task elsewhere", trips(&outside, far));
        hooks("UDP round trips, task here", datagrams(&outside, near));
        hooks("UDP round trips, task elsewhere", datagrams(&outside, far));
        hooks("TCP upload, task here", upload(&outside, near));
        hooks("TCP download, task here", download(&outside, near));
        hooks("TCP upload, task elsewhere", upload(&outside, far));
        hooks("TCP download, task elsewhere", download(&outside, far));
        hooks("connections by virtual address", connections(asker, dropper(virtual_)));
        hooks("TCP round trips by virtual address", trips(asker, virtual_));
        hooks("UDP round trips by virtual address", datagrams(asker, virtual_));
        hooks("TCP round trips, container to container, elsewhere", trips(east, west));
    });
    client.stop().await;
    swarm.stop().await;
}

async fn vip(swarm: &Swarm) -> Ipv4Addr {
    let service = get(&swarm.hosts[0], "/services/srv").await;
    let text = service["Endpoint"]["VirtualIPs"][0]["Addr"].as_str().unwrap().to_owned();
    text.split('/').next().unwrap().parse().unwrap()
}
