//! Counts the packets between the three hosts by protocol. nftables counts them in the kernel, on the bridge that connects
//! the hosts, so that no packet is missed.

use super::cluster::DemoCluster;
use crate::lab::{Lab, output};
use anyhow::Context as _;
use serde::Serialize;

/// Neighbour discovery is ARP, IPv6 ND and the multicast reports that belong to it.
const RULES: &str = r#"
table bridge demo {
  set hosts { type ipv4_addr; elements = { HOSTS } }
  counter tunnel {}
  counter join {}
  counter neighbours {}
  counter other {}
  chain between {
    type filter hook forward priority 0; policy accept;
    ether type arp counter name neighbours accept
    icmpv6 type { 133, 134, 135, 136, 143 } counter name neighbours accept
    ip saddr != @hosts accept
    ip daddr != @hosts accept
    udp sport 2377 udp dport 2377 counter name tunnel accept
    tcp dport 2377 counter name join accept
    tcp sport 2377 counter name join accept
    counter name other log prefix "skep demo: "
  }
}
"#;

/// Packets between the hosts since [`start`].
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub(super) struct WirePackets {
    /// UDP 2377.
    pub tunnel: u64,
    /// TCP 2377.
    pub join: u64,
    pub neighbours: u64,
    pub other: u64,
}

/// Starts counting.
pub(super) async fn start(cluster: &DemoCluster) -> anyhow::Result<()> {
    let rules = cluster.lab.dir().join("wire.nft");
    let hosts: Vec<String> = cluster.nodes.iter().map(|node| node.address().to_string()).collect();
    std::fs::write(&rules, RULES.replace("HOSTS", &hosts.join(", ")))?;
    output(cluster.lab.command("nft").arg("-f").arg(&rules)).await.context("cannot count packets on the bridge").map(drop)
}

pub(super) async fn counts(lab: &Lab) -> anyhow::Result<WirePackets> {
    let text = output(lab.command("nft").args(["-j", "list", "counters"])).await?;
    let listed: serde_json::Value = serde_json::from_str(&text)?;
    let mut counts = WirePackets::default();
    for counter in listed["nftables"].as_array().into_iter().flatten().filter_map(|entry| entry.get("counter")) {
        let packets = counter["packets"].as_u64().unwrap_or(0);
        match counter["name"].as_str() {
            Some("tunnel") => counts.tunnel = packets,
            Some("join") => counts.join = packets,
            Some("neighbours") => counts.neighbours = packets,
            Some("other") => counts.other = packets,
            _ => {}
        }
    }
    Ok(counts)
}
