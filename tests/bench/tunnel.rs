//! `skep tunnel` beside wireguard-go: one TCP stream between two namespaces, rates and CPU time per gigabyte of both ends, the two
//! programs in turn. Needs iperf3, wg, and the path of wireguard-go in `SKEP_WIREGUARD_GO`.

use crate::process::{cpu, inside, sh};
use crate::report::{Report, median, spread};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ROUNDS: usize = 5;
const SECONDS: u32 = 4;
const ENDS: [(&str, u8); 2] = [("a", 1), ("b", 2)];

/// wireguard-go and skep: Gbit/s, and CPU seconds per gigabyte.
type Round = ((f64, f64), (f64, f64));

struct Tunnels {
    dir: String,
    ends: Vec<(Child, String)>,
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        for (child, space) in &mut self.ends {
            let _ = child.kill();
            let _ = child.wait();
            let _ = Command::new("ip").args(["-n", space, "link", "del", "skb0"]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn key() -> (String, String) {
    let private = sh("wg genkey");
    let public = sh(&format!("echo {private} | wg pubkey"));
    (private, public)
}

/// Starts both ends of skep's tunnel, or of the program `other`, with the addresses 10.66.0.1 and 10.66.0.2.
fn start(other: Option<&str>) -> Tunnels {
    let dir = format!("/tmp/skb-{}", std::process::id());
    std::fs::create_dir_all(&dir).unwrap();
    let keys = [key(), key()];
    let mut tunnels = Tunnels { dir: dir.clone(), ends: Vec::new() };
    for (number, (end, _)) in ENDS.iter().enumerate() {
        let file = format!("{dir}/{end}.key");
        std::fs::write(&file, format!("{}\n", keys[number].0)).unwrap();
        let mut command = inside(&format!("skb-h{end}"));
        match other {
            Some(program) => command.args([program, "-f", "skb0"]),
            None => command
                .args([env!("CARGO_BIN_EXE_skep"), "tunnel", "--mesh", &format!("/run/netns/skb-m{end}")])
                .args(["--control", &format!("{dir}/{end}.sock"), "--key", &file, "--listen", "0.0.0.0:2377"])
                .args(["--mtu", "1420", "--device", "skb0"]),
        };
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        tunnels.ends.push((child, format!("skb-{}{end}", if other.is_some() { "h" } else { "m" })));
        // The sockets for `wg` share one directory: one end after the other.
        std::thread::sleep(Duration::from_millis(700));
        let (peer, address) = (&keys[1 - number].1, ENDS[1 - number].1);
        if other.is_some() {
            sh(&format!(
                "nsenter --net=/run/netns/skb-h{end} wg set skb0 private-key {file} listen-port 2377 peer {peer} endpoint 192.0.2.{address}:2377 allowed-ips 10.66.0.{address}/32
                 mv /run/wireguard/skb0.sock /run/wireguard/skb0.{end}; ip -n skb-h{end} link set skb0 mtu 1420 up"
            ));
        } else {
            let step = serde_json::json!({ "do": "apply", "steps": [{ "Set": [peer, {
                "endpoint": format!("192.0.2.{address}:2377"), "allowed_ips": [format!("10.66.0.{address}/32")], "keepalive": null }] }] });
            let mut stream = UnixStream::connect(format!("{dir}/{end}.sock")).unwrap();
            writeln!(stream, "{step}").unwrap();
            let mut reply = String::new();
            BufReader::new(stream).read_line(&mut reply).unwrap();
            assert_eq!(reply, "\"applied\"\n");
        }
        let space = &tunnels.ends[number].1;
        sh(&format!("ip -n {space} addr add 10.66.0.{}/24 dev skb0", ENDS[number].1));
    }
    sh(&format!(
        "for i in $(seq 20); do nsenter --net=/run/netns/{} busybox ping -c1 -W1 10.66.0.2 && exit; done; exit 1",
        tunnels.ends[0].1
    ));
    tunnels
}

/// Gbit/s, and CPU seconds of both ends per gigabyte.
fn measure(other: Option<&str>) -> (f64, f64) {
    let tunnels = start(other);
    let mut server = inside(&tunnels.ends[1].1).args(["iperf3", "-s", "-1"]).stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let used = || -> f64 { tunnels.ends.iter().map(|(child, _)| cpu(child.id())).sum() };
    let before = used();
    let out = inside(&tunnels.ends[0].1).args(["iperf3", "-J", "-c", "10.66.0.2", "-t", &SECONDS.to_string()]).output().unwrap();
    let cpu = used() - before;
    server.wait().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let received = &report["end"]["sum_received"];
    let bytes = received["bytes"].as_f64().unwrap();
    (bytes * 8.0 / received["seconds"].as_f64().unwrap() / 1e9, cpu / (bytes / 1e9))
}

pub fn run(report: &mut Report) {
    let columns = ["", "skep ÷ wireguard-go", "goal", "wireguard-go", "skep"];
    report.section(
        "The userspace tunnel",
        "One TCP stream (iperf3) between two namespaces, MTU 1420, five rounds in turn.",
        &columns,
    );
    let Some(go) = std::env::var("SKEP_WIREGUARD_GO").ok().filter(|path| Path::new(path).exists()) else {
        report.row(&["SKEP_WIREGUARD_GO names no program: not measured".to_owned()]);
        return;
    };
    let namespaces = "skb-ha skb-hb skb-ma skb-mb";
    sh(&format!(
        "for n in {namespaces}; do ip netns add $n; ip -n $n link set lo up; done; ip link add e0 netns skb-ha type veth peer name e0 netns skb-hb
         ip -n skb-ha addr add 192.0.2.1/24 dev e0; ip -n skb-hb addr add 192.0.2.2/24 dev e0; ip -n skb-ha link set e0 up; ip -n skb-hb link set e0 up"
    ));
    let rounds: Vec<Round> = (0..ROUNDS).map(|_| (measure(Some(&go)), measure(None))).collect();
    sh(&format!("for n in {namespaces}; do ip netns del $n; done"));
    let column = |f: fn(&Round) -> f64| rounds.iter().map(f).collect::<Vec<_>>();
    for (what, goal, ratio, theirs, ours) in [
        ("throughput, Gbit/s", "≥ 1.5", column(|r| r.1.0 / r.0.0), column(|r| r.0.0), column(|r| r.1.0)),
        ("CPU seconds per GB, both ends", "≤ 0.6", column(|r| r.1.1 / r.0.1), column(|r| r.0.1), column(|r| r.1.1)),
    ] {
        let figures = [theirs, ours].map(|values| format!("{:.2}", median(&values)));
        report.row(&[what.to_owned(), spread(&ratio, 2), goal.to_owned(), figures[0].clone(), figures[1].clone()]);
    }
}
