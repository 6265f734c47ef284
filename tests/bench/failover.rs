//! Failover: how long a write takes that is sent when the leader of three managers is lost. `SKEP_BENCH_KILLS=100` times each.

use crate::report::Report;
use crate::swarm::kit::*;
use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::lab::Host;
use std::time::{Duration, Instant};

/// How a leader is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loss {
    /// SIGKILL.
    Killed,
    /// Its packets vanish.
    Cut,
    /// SIGTERM.
    Stopped,
}

pub async fn run(report: &mut Report) {
    let times = std::env::var("SKEP_BENCH_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    report.section(
        "Failover of managers",
        "Three hosts, three managers, default settings. A write is sent to another manager at the moment at which the leader is lost; \
         milliseconds until it has succeeded. Afterwards the lost one comes back and all three are waited for.",
        &["the leader is", "times", "goal", "p50", "p99", "longest"],
    );
    let mut swarm = hosts("fo", 3, "").await;
    init(&swarm.hosts[0]).await;
    let token = get(&swarm.hosts[0], "/swarm").await["JoinTokens"]["Manager"].as_str().unwrap().to_owned();
    for host in &swarm.hosts[1..] {
        ok(&join(host, swarm.hosts[0].address(), &token).await);
    }
    swarm.ready(3).await;
    for (loss, times, goal) in [
        (Loss::Killed, times, "p50 ≤ 400, p99 ≤ 1000"),
        (Loss::Cut, (times / 2).max(1), "p50 ≤ 400, p99 ≤ 1000"),
        (Loss::Stopped, (times / 4).max(1), "≤ 100"),
    ] {
        let mut all = Vec::new();
        for number in 0..times {
            all.push(lose(&mut swarm, loss, number).await);
        }
        all.sort_unstable();
        let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)].as_millis().to_string();
        report.row(&[format!("{loss:?}").to_lowercase(), all.len().to_string(), goal.to_owned(), at(50), at(99), at(100)]);
    }
    swarm.stop().await;
}

/// Index of the host that leads, once all three are reachable.
async fn leader(swarm: &Swarm) -> usize {
    let name = within(60, "three managers", || async {
        let mut leaders = Vec::new();
        for host in &swarm.hosts {
            let nodes: Value = UnixClient::new(host.skep_socket()).get("/nodes").await?.json()?;
            let nodes = nodes.as_array().cloned().unwrap_or_default();
            let managers =
                nodes.iter().filter(|n| n["ManagerStatus"]["Reachability"] == "reachable" && n["Status"]["State"] == "ready");
            anyhow::ensure!(managers.count() == 3, "{nodes:#?}");
            let leads = nodes.iter().find(|n| n["ManagerStatus"]["Leader"] == true);
            leaders.push(leads.and_then(|n| n["Description"]["Hostname"].as_str()).unwrap_or_default().to_owned());
        }
        leaders.dedup();
        anyhow::ensure!(leaders.len() == 1 && !leaders[0].is_empty(), "{leaders:?}");
        Ok(leaders.remove(0))
    })
    .await;
    swarm.hosts.iter().position(|host| host.name() == name).unwrap()
}

async fn write(host: &Host, name: &str) {
    ok(&post(host, "/configs/create", &json!({ "Name": name, "Data": "eA==" })).await);
}

async fn lose(swarm: &mut Swarm, loss: Loss, number: usize) -> Duration {
    let lost = leader(swarm).await;
    let other = (lost + 1 + number % 2) % 3;
    // At another moment between two heartbeats each time.
    tokio::time::sleep(Duration::from_millis((number as u64 * 37) % 100 + 600)).await;
    let name = format!("{loss:?}-{number}");
    let pid = crate::traffic::daemon(&swarm.hosts[lost]).to_string();
    let begin = Instant::now();
    match loss {
        Loss::Cut => swarm.lab.cut(&swarm.hosts[lost]).await.unwrap(),
        Loss::Killed => drop(skep::lab::output(tokio::process::Command::new("kill").args(["-9", &pid])).await.unwrap()),
        Loss::Stopped => drop(skep::lab::output(tokio::process::Command::new("kill").args(["-15", &pid])).await.unwrap()),
    }
    let longest = if loss == Loss::Stopped {
        // Writes one after the other until the daemon is gone: the longest one.
        let mut longest = Duration::ZERO;
        let mut part = 0;
        while std::path::Path::new(&format!("/proc/{pid}/exe")).exists() || part < 3 {
            let begin = Instant::now();
            write(&swarm.hosts[other], &format!("{name}-{part}")).await;
            longest = longest.max(begin.elapsed());
            part += 1;
        }
        longest
    } else {
        write(&swarm.hosts[other], &name).await;
        begin.elapsed()
    };
    if loss == Loss::Cut {
        swarm.lab.heal(&swarm.hosts[lost]).await.unwrap();
    } else {
        swarm.hosts[lost].stop_daemon(true).await.unwrap();
        start(&mut swarm.hosts[lost]).await;
    }
    longest
}
