//! The name server beside unbound and the resolver of the Docker Engine: processor time per question at one rate, in turn. Needs
//! dnsperf and unbound.

use crate::process::{cpu, inside, sh};
use crate::report::{Report, median, spread};
use skep::datapath::sockets::HereSockets;
use skep::dns::{DnsChannels, DnsCounts, DnsSettings, run};
use skep::lab::{EngineRoot, Host, Lab, WHOAMI_IMAGE, output, whoami_image};
use skep::model::fixture;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 5;
const SECONDS: u32 = 4;
/// Questions per second: far from saturation, so that what is compared is the time per question, not the size of batches.
const RATE: u32 = 10_000;
/// As many as the engine's resolver answers on a busy machine.
const ENGINE_RATE: u32 = 1_000;
const NAMES: u32 = 1_000;
const SPACE: &str = "skb-names";
/// All of 10.99.0.0/16 is local in the namespace.
const GATEWAY: &str = "10.99.0.1";
const UNBOUND: &str = "10.99.0.2";
const CLIENT: &str = "10.99.1.1";

/// Argument by which this program serves names for the measurement, in a process of its own.
pub const SERVE: &str = "--serve-names";

/// One network with [`NAMES`] services of one task; never returns.
pub fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let subnet = format!("{GATEWAY}/16").parse::<ipnet::Ipv4Net>().unwrap().trunc();
    let members = (0..NAMES).map(|n| {
        let address = std::net::Ipv4Addr::from(u32::from(CLIENT.parse::<std::net::Ipv4Addr>().unwrap()) + n);
        fixture::task_endpoint(&format!("name{n}"), 1, "here", address)
    });
    let network = fixture::network_part("front", subnet, members.collect());
    let view = fixture::node_view(1, vec![network], fixture::cluster_part(Vec::new()));
    let (_keep, view) = watch::channel(Some(Arc::new(view)));
    let (_keep_ready, ready) = watch::channel(skep::datapath::ebpf::VipReadiness::default());
    let (applied, _) = watch::channel(skep::model::Revision::default());
    let channels = DnsChannels { view, ready, applied, counts: Arc::<DnsCounts>::default() };
    runtime.block_on(run("here".into(), channels, Arc::new(HereSockets), DnsSettings::default(), CancellationToken::new()));
}

/// The servers, and the files that they need.
struct Servers {
    dir: String,
    skep: Child,
    unbound: Child,
}

impl Servers {
    fn start() -> Self {
        let dir = format!("/tmp/skb-names-{}", std::process::id());
        std::fs::create_dir_all(&dir).unwrap();
        let mut config = format!(
            "server:\n interface: {UNBOUND}\n num-threads: 1\n username: \"\"\n chroot: \"\"\n do-daemonize: no\n pidfile: \"\"\n \
             use-syslog: no\n access-control: 10.99.0.0/16 allow\n local-zone: \"front.\" static\n"
        );
        let mut questions = String::new();
        for n in 0..NAMES {
            let (third, last) = (1 + (n + 1) / 256, (n + 1) % 256);
            writeln!(config, " local-data: \"name{n}.front. 0 A 10.99.{third}.{last}\"").unwrap();
            writeln!(questions, "name{n}.front A").unwrap();
        }
        std::fs::write(format!("{dir}/unbound.conf"), config).unwrap();
        std::fs::write(format!("{dir}/questions"), questions).unwrap();
        sh(&format!("ip netns add {SPACE}; ip -n {SPACE} link set lo up; ip -n {SPACE} addr add {GATEWAY}/16 dev lo"));
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let skep = quiet(inside(SPACE).arg(std::env::current_exe().unwrap()).arg(SERVE));
        let unbound = quiet(inside(SPACE).args(["unbound", "-d", "-c", &format!("{dir}/unbound.conf")]));
        std::thread::sleep(Duration::from_secs(1));
        Self { dir, skep, unbound }
    }
    fn measure(&self, server: &str, pid: u32, rate: u32) -> f64 {
        let mut command = inside(SPACE);
        command.args(["dnsperf", "-a", CLIENT]);
        measure(command, &self.dir, server, pid, rate)
    }
}

/// Microseconds of processor time of the process per answered question; `command` is dnsperf in a namespace.
fn measure(mut command: Command, dir: &str, server: &str, pid: u32, rate: u32) -> f64 {
    let before = cpu(pid);
    command.args(["-s", server, "-d", &format!("{dir}/questions"), "-c", "20", "-l", &SECONDS.to_string()]);
    let out = command.args(["-Q", &rate.to_string()]).output().unwrap();
    let used = cpu(pid) - before;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = |label: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(label)).unwrap_or_else(|| panic!("no {label} in: {text}"));
        line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
    };
    let (answered, lost) = (number("Queries completed"), number("Queries lost"));
    assert!(text.contains("NOERROR"), "{server}: {text}");
    assert!(lost < answered / 100.0, "{server}: {text}");
    used / answered * 1e6
}

/// An engine of its own, with a container that has all names on a network.
struct Engine {
    lab: Lab,
    host: Host,
    pid: u32,
    /// The container's network namespace.
    namespace: String,
}

impl Engine {
    async fn start() -> Self {
        let lab = Lab::new(crate::lab::lab_dir("bn")).await.unwrap();
        let mut host = lab.host("n1", 1).await.unwrap();
        host.start_engine(&EngineRoot::Machine).await.unwrap();
        whoami_image(&host).await.unwrap();
        let docker = async |words: &[&str]| output(host.engine_cli().args(words)).await.unwrap();
        docker(&["network", "create", "front"]).await;
        let aliases: Vec<String> = (0..NAMES).map(|n| format!("--network-alias=name{n}")).collect();
        let mut run = vec!["run", "-d", "--name=all", "--network=front"];
        run.extend(aliases.iter().map(String::as_str));
        run.extend([WHOAMI_IMAGE, "sh", "-c", "sleep 10000"]);
        docker(&run).await;
        let inside = docker(&["inspect", "-f", "{{.State.Pid}}", "all"]).await;
        let namespace = format!("/proc/{}/root/proc/{}/ns/net", host.pid(), inside.trim());
        let pid = crate::managers::engine(&host);
        Self { lab, host, pid, namespace }
    }
    async fn stop(self) {
        self.host.stop().await;
        self.lab.stop().await.unwrap();
    }
    fn measure(&self, dir: &str) -> f64 {
        let mut command = Command::new("nsenter");
        command.args([&format!("--net={}", self.namespace), "dnsperf"]);
        measure(command, dir, "127.0.0.11", self.pid, ENGINE_RATE)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in [&mut self.skep, &mut self.unbound] {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", SPACE]).status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub async fn run_all(report: &mut Report) {
    report.section(
        "The name server",
        &format!(
            "{RATE} questions a second, {ENGINE_RATE} beside the Docker Engine's resolver (dnsperf, UDP, 20 clients), for {NAMES} names with one A record each, \
             on loopback; processor time of the server's process per answer. The engine's resolver is asked in a container's namespace, where its own \
             rules pass questions on to it. {ROUNDS} rounds in turn."
        ),
        &["", "skep ÷ other", "goal", "other, µs", "skep, µs"],
    );
    for program in ["dnsperf", "unbound"] {
        if Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| !s.success())
        {
            report.row(&[format!("{program} is not installed: not measured")]);
            return;
        }
    }
    let servers = Servers::start();
    let engine = Engine::start().await;
    // `nsenter` executes the program: its process id is the program's.
    let skep = |rate| servers.measure(GATEWAY, servers.skep.id(), rate);
    let mut rounds: [Vec<(f64, f64)>; 2] = Default::default();
    for _ in 0..ROUNDS {
        rounds[0].push((servers.measure(UNBOUND, servers.unbound.id(), RATE), skep(RATE)));
        rounds[1].push((engine.measure(&servers.dir), skep(ENGINE_RATE)));
    }
    engine.stop().await;
    let names = ["unbound (local-data, one thread)", "resolver of the Docker Engine"];
    for ((name, goal), rounds) in names.iter().zip(["≤ 0.7", "≤ 0.1"]).zip(rounds) {
        let ratios: Vec<f64> = rounds.iter().map(|(other, skep)| skep / other).collect();
        let (other, skep): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        let figures = [other, skep].map(|values| format!("{:.1}", median(&values)));
        report.row(&[(*name).to_owned(), spread(&ratios, 3), goal.to_owned(), figures[0].clone(), figures[1].clone()]);
    }
}
