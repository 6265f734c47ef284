//! What is lost: the leader, by SIGKILL, until a write succeeds again; a node, by a cut link, until the leader says that it is down.

use super::clients::Writer;
use super::cluster::{Clusters, MEMBERS, System};
use crate::report::{Report, spread};
use serde_json::Value;
use skep::http::UnixClient;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Between the begin of one attempt to write and the next: each is a client of its own.
const EVERY: Duration = Duration::from_millis(20);
/// An attempt that waited for this long is given up.
const PATIENCE: Duration = Duration::from_secs(8);
/// Longest wait for any of it.
const LONGEST: Duration = Duration::from_mins(2);

fn times(default: usize) -> usize {
    std::env::var("SKEP_BENCH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

pub async fn run(report: &mut Report, clusters: &mut Clusters) {
    report.section(
        "Losses beside Docker Swarm and etcd",
        &format!(
            "Three members of each, default settings. The leader is killed (Docker Swarm's with its containerd); from then on a new client of another \
             member begins to write every {} ms, until the first write succeeds: milliseconds from the kill. Then the killed one comes back. A node whose link \
             is cut: milliseconds until the leader lists it as down. The systems in turn.",
            EVERY.as_millis()
        ),
        &["", "", "times", "ms, median [least … most]", "skep ÷ other", "goal"],
    );
    let systems: Vec<System> = clusters.systems().into_iter().filter(|s| *s != System::EtcdTls).collect();
    let mut kills: Vec<Vec<f64>> = vec![Vec::new(); systems.len()];
    for number in 0..times(20) {
        for (system, all) in systems.iter().zip(&mut kills) {
            let took = kill(clusters, *system, number).await.as_secs_f64() * 1e3;
            println!("{} {number}: {took:.0} ms", system.name());
            all.push(took);
        }
    }
    rows(report, "leader killed", &systems, &kills, |system| match system {
        System::Swarm => "≤ 0.1",
        System::Etcd => "≤ 1.0",
        _ => "",
    });
    let systems = [System::Skep, System::Swarm];
    let mut cuts: Vec<Vec<f64>> = vec![Vec::new(); systems.len()];
    for number in 0..times(20).div_ceil(4) {
        for (system, all) in systems.iter().zip(&mut cuts) {
            let took = cut(clusters, *system, number).await.as_secs_f64() * 1e3;
            println!("{} {number}: {took:.0} ms", system.name());
            all.push(took);
        }
    }
    rows(report, "link cut until the node is down", &systems, &cuts, |_| "");
}

fn rows(report: &mut Report, what: &str, systems: &[System], all: &[Vec<f64>], goal: impl Fn(System) -> &'static str) {
    for (system, times) in systems.iter().zip(all) {
        let ratio = crate::report::median(&all[0]) / crate::report::median(times);
        let ratio = if *system == System::Skep { String::new() } else { format!("{ratio:.3}") };
        let cells = [what, system.name(), &times.len().to_string(), &spread(times, 0), &ratio, goal(*system)];
        report.row(&cells.map(str::to_owned));
    }
}

async fn kill(clusters: &mut Clusters, system: System, number: usize) -> Duration {
    let leader = clusters.leader(system).await;
    let target = clusters.target(system, (leader + 1 + number % 2) % MEMBERS);
    // At another moment between two heartbeats each time.
    tokio::time::sleep(Duration::from_millis((number as u64 * 37) % 100 + 600)).await;
    clusters.kill(system, leader).await;
    let begin = Instant::now();
    let mut attempts = JoinSet::new();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let mut writer = Writer::new(target.clone(), None, number);
                attempts.spawn(async move { matches!(tokio::time::timeout(PATIENCE, writer.write()).await, Ok(Ok(()))) });
            }
            Some(Ok(true)) = attempts.join_next() => break,
        }
        assert!(begin.elapsed() < LONGEST, "{}: no write succeeds", system.name());
    }
    let took = begin.elapsed();
    attempts.shutdown().await;
    clusters.start_again(system, leader).await;
    took
}

async fn cut(clusters: &Clusters, system: System, number: usize) -> Duration {
    let leader = clusters.leader(system).await;
    let lost = (leader + 1 + number % 2) % MEMBERS;
    tokio::time::sleep(Duration::from_millis((number as u64 * 731) % 5_000)).await;
    let host = clusters.host(system, lost);
    let client = UnixClient::new(clusters.socket(system, leader));
    clusters.swarm.lab.cut(host).await.unwrap();
    let begin = Instant::now();
    loop {
        let nodes: Value = client.get("/nodes").await.unwrap().json().unwrap_or_default();
        let node = nodes.as_array().into_iter().flatten().find(|n| n["Description"]["Hostname"] == host.name());
        if node.is_some_and(|node| node["Status"]["State"] == "down") {
            break;
        }
        assert!(begin.elapsed() < LONGEST, "{}: never down", system.name());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = begin.elapsed();
    clusters.swarm.lab.heal(host).await.unwrap();
    took
}
