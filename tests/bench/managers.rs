//! Three managers of skep beside three of Docker Swarm (the installed engine's) and three members of etcd, each in a host of the lab:
//! writes, processor time and fsyncs per write, failover, detection of lost nodes, memory. A table, and a plot as SVG beside it.
//! `SKEP_BENCH_KILLS=3` shortens the failovers, `SKEP_BENCH_SCALE=4` the slices. Needs etcd; perf for the fsyncs.

mod clients;
mod cluster;
mod losses;
mod memory;
mod plot;

use crate::report::{Report, median, spread};
use clients::{Load, Measured};
pub use cluster::engine;
use cluster::{Clusters, System};
use plot::Plot;
use std::collections::BTreeMap;
use std::time::Duration;

/// Clients at a time.
const CLIENTS: [usize; 5] = [1, 8, 64, 256, 1024];
const ROUNDS: usize = 3;
const SLICE: Duration = Duration::from_secs(2);
/// Before each slice: connections are open, and what the slice before left is written.
const WARM_UP: Duration = Duration::from_millis(300);
/// Where goals are set.
const MIDDLE: usize = 64;

fn slice() -> Duration {
    let scale = std::env::var("SKEP_BENCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (SLICE / scale).max(Duration::from_millis(100))
}

/// `what` is `all`, or one of `writes`, `losses`, `memory`.
pub async fn run(report: &mut Report, what: &str) {
    let all = what == "all";
    if all || what == "writes" {
        let mut plot = Plot::default();
        for medium in ["tmpfs", "disk"] {
            let clusters = Clusters::start(&format!("bm{}", &medium[..1]), medium == "tmpfs").await;
            writes(report, &clusters, medium, &mut plot).await;
            clusters.stop().await;
        }
        plot.write("managers.svg");
    }
    if all || what == "losses" {
        let mut clusters = Clusters::start("bml", false).await;
        losses::run(report, &mut clusters).await;
        clusters.stop().await;
    }
    if all || what == "memory" {
        let clusters = Clusters::start("bmm", false).await;
        memory::run(report, &clusters).await;
        clusters.stop().await;
    }
}

async fn writes(report: &mut Report, clusters: &Clusters, medium: &str, plot: &mut Plot) {
    report.section(
        &format!("Writes of three managers, {medium}"),
        &format!(
            "Three members of each, in network namespaces of one machine. Clients of the leader write one after the other, {} ms in each of {ROUNDS} \
             rounds, the systems in turn. skep and Docker Swarm: a config is created, then removed, over the API's unix socket; etcd: put of 64 bytes by gRPC \
             over TCP, ten clients on a connection. Processor time (user and system) of all three members, skep's tunnels included; clients take theirs from \
             the same processors. fsync: calls of all three members per write, counted apart. skep encrypts what its members say to each other twice (tunnel and TLS), Docker \
             Swarm once, etcd does not as it is set here; \"etcd, TLS\" is etcd with certificates between members.",
            slice().as_millis()
        ),
        &["clients", "", "writes/s", "µs of processor per write", "p50, ms", "p99, ms", "fsync per write", "skep ÷ other: writes", "skep ÷ other: processor"],
    );
    for clients in CLIENTS {
        let mut all: BTreeMap<System, Vec<Measured>> = BTreeMap::new();
        for _ in 0..ROUNDS {
            for system in clusters.systems() {
                let measured = clusters.load(system, clients).await.run(clusters, WARM_UP, slice()).await;
                all.entry(system).or_default().push(measured);
            }
        }
        for system in clusters.systems() {
            let fsyncs = fsyncs(clusters, system, clients).await;
            let runs = &all[&system];
            let column = |f: fn(&Measured) -> f64| runs.iter().map(f).collect::<Vec<_>>();
            let ratio = |f: fn(&Measured) -> f64, digits| {
                let ratios: Vec<f64> = all[&System::Skep].iter().zip(runs).map(|(skep, other)| f(skep) / f(other)).collect();
                if system == System::Skep { String::new() } else { spread(&ratios, digits) }
            };
            let goal = |text: &str, of: System| {
                if system == of && clients == MIDDLE { format!(" (goal {text})") } else { String::new() }
            };
            let rate = median(&column(|m| m.rate));
            plot.point(medium, system.name(), clients, rate, median(&column(|m| m.cpu)));
            let writes =
                ratio(|m| m.rate, 2) + if medium == "disk" { goal("≥ 1.0", System::Etcd) } else { String::new() }.as_str();
            let processor = ratio(|m| m.cpu, 2) + &goal("≤ 0.5", System::Swarm);
            report.row(&[
                clients.to_string(),
                system.name().to_owned(),
                format!("{rate:.0}"),
                format!("{:.0}", median(&column(|m| m.cpu))),
                format!("{:.1}", median(&column(|m| m.p50))),
                format!("{:.1}", median(&column(|m| m.p99))),
                fsyncs,
                writes,
                processor,
            ]);
        }
    }
}

/// Calls of all members per write, counted by tracepoints.
async fn fsyncs(clusters: &Clusters, system: System, clients: usize) -> String {
    let pids: Vec<String> = clusters.pids(system).iter().map(u32::to_string).collect();
    let time = slice();
    let load: Load = clusters.load(system, clients).await;
    // Starts at once.
    let counted = tokio::process::Command::new("perf")
        .args(["stat", "-x,", "-e", "syscalls:sys_enter_fdatasync,syscalls:sys_enter_fsync", "-p", &pids.join(",")])
        .args(["--", "sleep", &format!("{:.3}", time.as_secs_f64())])
        .output();
    let (measured, counted) = tokio::join!(load.run(clusters, Duration::ZERO, time), counted);
    let Ok(counted) = counted else { return "perf is not installed".to_owned() };
    let text = String::from_utf8_lossy(&counted.stderr).into_owned();
    let calls: f64 = text.lines().filter_map(|line| line.split(',').next()?.parse::<f64>().ok()).sum();
    format!("{:.3}", calls / (measured.rate * time.as_secs_f64()))
}
