//! Ports, firewall, routes.

use super::super::facts::NetworkFacts;
use super::super::firewall::{self, Passage, Target};
use super::bounds::{apart, bounded};
use crate::datapath::host_routes;
use crate::model::mesh::DEFAULT_PORT;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::process::Stdio;
use tokio::process::Command;

/// `has_daemon`: it answers, and holds its ports itself. In a swarm the tunnel holds its UDP port without the daemon too.
pub(super) async fn facts(has_daemon: bool, has_membership: bool) -> NetworkFacts {
    let (firewall, routes) = tokio::join!(bounded(rules()), bounded(async { Ok(host_routes::ipv4_routes().await?) }));
    let taken = if has_daemon && has_membership {
        BTreeMap::new()
    } else {
        apart(move || taken(has_membership)).await.unwrap_or_default()
    };
    NetworkFacts { taken, firewall: firewall.and_then(|rules| passages(rules.as_ref())), routes: routes.unwrap_or_default() }
}

fn taken(has_membership: bool) -> BTreeMap<String, String> {
    let any = (Ipv4Addr::UNSPECIFIED, DEFAULT_PORT);
    let tcp = TcpListener::bind(any).map(drop);
    let udp = if has_membership { Ok(()) } else { UdpSocket::bind(any).map(drop) };
    let tried: [(&str, io::Result<()>); 2] = [("tcp", tcp), ("udp", udp)];
    tried
        .into_iter()
        .filter_map(|(protocol, bound)| Some((format!("{DEFAULT_PORT}/{protocol}"), bound.err()?.to_string())))
        .collect()
}

/// The host's rules; `None` if it has no `nft`, which all that write rules of this kind use or bring along.
async fn rules() -> anyhow::Result<Option<Value>> {
    let nft = Command::new("nft").args(["-j", "list", "ruleset"]).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = match nft {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    anyhow::ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(Some(serde_json::from_slice(&output.stdout)?))
}

fn passages(rules: Option<&Value>) -> Result<BTreeMap<String, Passage>, String> {
    let Some(rules) = rules else {
        return Err("this host has no program `nft`".to_owned());
    };
    let targets = [("tcp", false), ("udp", true)];
    targets
        .into_iter()
        .map(|(protocol, udp)| {
            Ok((format!("{DEFAULT_PORT}/{protocol}"), firewall::passage(rules, Target { udp, port: DEFAULT_PORT })?))
        })
        .collect()
}
