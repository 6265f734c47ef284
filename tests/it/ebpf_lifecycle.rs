//! The eBPF datapath over time: ordered removal, adoption by the next daemon, repair, fallback, and a soak. Whole swarms
//! with real engines, daemons, tunnels and packets.

mod adoption;
mod bpf;
mod damage;
mod fallback;
mod firewall;
mod garbage;
mod removal;
mod soak;
mod switch;

use super::load::*;
use super::ports::listens::wait_until_ready;
use super::ports::order::*;
use super::ports::*;
use super::swarm::kit::*;
use serde_json::{Value, json};
use skep::lab::Host;
use std::net::Ipv4Addr;
use std::time::Duration;

/// Settings of a daemon with the eBPF datapath that reconciles often.
const AUTO: &str = "ebpf_datapath = \"auto\"\n[timeouts]\nreconcile_ms = 500\n";

/// Waits until every host's eBPF datapath serves these ports and has applied the newest view.
async fn serves(hosts: &[Host], ports: &[&str]) {
    for host in hosts {
        within(30, "the eBPF datapath to serve", || async {
            let status = status(host).await;
            let ebpf = &status["ebpf"];
            anyhow::ensure!(ebpf["up"] == true && ebpf["unavailable"] == json!({}), "{}: {ebpf:#}", host.name());
            anyhow::ensure!(ebpf["reason"] == "", "{}: {ebpf:#}", host.name());
            for port in ports {
                let served = ebpf["ports"].as_array().is_some_and(|all| all.contains(&json!(port)));
                anyhow::ensure!(served, "{}: {port} is not served: {ebpf:#}", host.name());
            }
            anyhow::ensure!(status["applied"]["ebpf"] == status["view_revision"], "{}: {status:#}", host.name());
            Ok(())
        })
        .await;
    }
}

/// The virtual address of a service on the network `back`.
pub async fn vip(swarm: &Swarm, service: &str) -> Ipv4Addr {
    let network = get(&swarm.hosts[0], "/networks/back").await["Id"].clone();
    let service = get(&swarm.hosts[0], &format!("/services/{service}")).await;
    let all = service["Endpoint"]["VirtualIPs"].as_array().expect("virtual addresses");
    let vip = all.iter().find(|vip| vip["NetworkID"] == network).expect("on the network");
    vip["Addr"].as_str().expect("address").split('/').next().and_then(|a| a.parse().ok()).expect("an address")
}

/// A counter of the programs.
async fn count(host: &Host, name: &str) -> u64 {
    status(host).await["ebpf"]["counters"][name].as_u64().unwrap_or_default()
}

async fn repaired(host: &Host) -> u64 {
    status(host).await["ebpf"]["repaired"].as_u64().expect("a number")
}
