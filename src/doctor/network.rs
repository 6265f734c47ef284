//! Ports that skep needs, the host's firewall, its routes.

use super::facts::Facts;
use super::finding::Finding;
use super::firewall::Passage;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// Default pool of overlay networks.
const POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = ports(facts);
    findings.extend(firewall(facts));
    findings.push(routes(facts));
    findings
}

fn ports(facts: &Facts) -> Vec<Finding> {
    let taken = &facts.network.taken;
    if taken.is_empty() {
        return vec![Finding::ok("ports", "2377 is free, or held by skep")];
    }
    let finding = |(port, error): (&String, &String)| {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        let flag = if protocol == "udp" { 'u' } else { 't' };
        Finding::error(
            "ports",
            format!("{port} cannot be bound: {error}"),
            format!("ss -ln{flag}p 'sport = :{number}' names its holder"),
        )
    };
    taken.iter().map(finding).collect()
}

fn firewall(facts: &Facts) -> Vec<Finding> {
    let passages = match &facts.network.firewall {
        Ok(passages) => passages,
        Err(error) => {
            return vec![Finding::warning(
                "firewall",
                format!("cannot be read: {error}"),
                "let 2377/tcp and 2377/udp in from the other nodes",
            )];
        }
    };
    let blocked = |(port, passage): (&String, &Passage)| match passage {
        Passage::Dropped { chain } => {
            let (number, protocol) = port.split_once('/')?;
            Some(Finding::error(
                "firewall",
                format!("{port} is dropped by {chain}: other nodes cannot reach this one"),
                format!(
                    "let it in: `ufw allow {number}/{protocol}`, `firewall-cmd --add-port={number}/{protocol}` or `iptables -I INPUT -p {protocol} --dport {number} -j ACCEPT`"
                ),
            ))
        }
        Passage::Accepted | Passage::Depends => None,
    };
    let found: Vec<Finding> = passages.iter().filter_map(blocked).collect();
    if !found.is_empty() {
        return found;
    }
    let depends: Vec<&str> =
        passages.iter().filter(|(_, passage)| **passage == Passage::Depends).map(|(port, _)| port.as_str()).collect();
    vec![Finding::ok(
        "firewall",
        match depends[..] {
            [] => "lets the other nodes in".to_owned(),
            _ => format!("{}: let in or not by rules on sources, interfaces or rates", depends.join(", ")),
        },
    )]
}

fn routes(facts: &Facts) -> Finding {
    let inside: Vec<&Ipv4Net> = facts.network.routes.iter().filter(|route| POOL.contains(*route)).collect();
    if let Some(whole) = facts.network.routes.iter().find(|route| route.prefix_len() > 0 && route.contains(&POOL)) {
        return Finding::warning(
            "routes",
            format!("a route to {whole} covers the default pool of networks, {POOL}"),
            "docker swarm init --default-addr-pool SUBNET, with one that the host does not reach",
        );
    }
    match inside.len() {
        0 => Finding::ok("routes", format!("none into {POOL}, the default pool of networks")),
        number => Finding::ok("routes", format!("{number} into {POOL}: a swarm that is started here leaves them out")),
    }
}
