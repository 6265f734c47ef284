//! What the members' processes keep in memory: idle, and for tasks that no node takes.

use super::cluster::{Clusters, System};
use crate::process::resident;
use crate::report::Report;
use crate::swarm::kit::within;
use serde_json::{Value, json};
use skep::http::UnixClient;
use std::time::Duration;

const TASKS: u64 = 5_000;
/// After which a process that had work is idle, and Go's collector has returned what was freed.
const REST: Duration = Duration::from_secs(10);
const MB: f64 = 1e6;

pub async fn run(report: &mut Report, clusters: &Clusters) {
    report.section(
        "Memory of managers",
        &format!(
            "Resident memory of the processes of one member, the leader, {} s after its last work; in parentheses the part that belongs to no file. \
             The engine beside skep is not in its sum; Docker Swarm's manager is the engine itself, beside one that is in no swarm. Then a service of {TASKS} tasks that no node may take: growth of \
             the anonymous part per task.",
            REST.as_secs()
        ),
        &["", "skep", "Docker Swarm", "etcd", "goal"],
    );
    // The tasks' memory is what the process grows by.
    tokio::time::sleep(REST).await;
    let leaders = [clusters.leader(System::Skep).await, clusters.leader(System::Swarm).await];
    let show = |pid: u32| {
        let (all, anonymous) = resident(pid);
        format!("{:.1} MB ({:.1})", all as f64 / MB, anonymous as f64 / MB)
    };
    let daemon = crate::traffic::daemon(clusters.host(System::Skep, leaders[0]));
    let tunnel = clusters.member_pids(System::Skep, leaders[0]).into_iter().find(|pid| *pid != daemon);
    let swarm = clusters.member_pids(System::Swarm, leaders[1])[0];
    let etcd = clusters.systems().contains(&System::Etcd).then(|| clusters.member_pids(System::Etcd, 0)[0]);
    let engine = clusters.engine_beside(leaders[0]);
    let (with, without) = (resident(swarm).1 as f64 / MB, resident(engine).1 as f64 / MB);
    report.row(&[
        "daemon, idle".into(),
        show(daemon),
        format!("{} ({:+.1} MB to an engine in no swarm)", show(swarm), with - without),
        etcd.map_or(String::new(), show),
        "≤ 20 MB".into(),
    ]);
    report.row(&["tunnel, idle".into(), tunnel.map_or(String::new(), show), String::new(), String::new(), String::new()]);
    let mut growth = Vec::new();
    for (system, leader, pid) in [(System::Skep, leaders[0], daemon), (System::Swarm, leaders[1], swarm)] {
        let before = resident(pid).1;
        let client = UnixClient::new(clusters.socket(system, leader));
        let spec = json!({
            "Name": "many", "Mode": { "Replicated": { "Replicas": TASKS } },
            "TaskTemplate": { "ContainerSpec": { "Image": "whoami" }, "Placement": { "Constraints": ["node.labels.none==here"] } },
        });
        client.request("POST", "/services/create", Some(&spec)).await.unwrap().ok().unwrap();
        within(120, "all tasks", || async {
            let tasks: Vec<Value> = client.get("/tasks").await?.json()?;
            anyhow::ensure!(tasks.len() as u64 == TASKS, "{}", tasks.len());
            Ok(())
        })
        .await;
        tokio::time::sleep(REST).await;
        growth.push((resident(pid).1 as f64 - before as f64) / TASKS as f64 / 1e3);
    }
    let show = |kilobytes: f64| format!("{kilobytes:.1} kB");
    report.row(&["per task".into(), show(growth[0]), show(growth[1]), String::new(), "≤ 2 kB".into()]);
}
