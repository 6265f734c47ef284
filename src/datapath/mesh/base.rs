//! The base of every mesh namespace, before it has any network: sysctls, and the rules that replace the kernel's.
//!
//! With the kernel's own order (`0: from all lookup local` first) a container could reach every socket of this namespace
//! by address. Here the local and main tables are only for packets that this namespace sends itself (`iif lo`); a packet
//! that arrives by a device is looked up in the table of its own network or in none.
//!
//! The kernel tries rules one after the other, for each packet. The rules of networks are therefore in groups, one for each
//! [`GROUP`] of addresses: `from GROUP goto` leads to the group, its last rule leads past all others. With a thousand networks
//! a packet meets some seventy rules at most instead of a thousand.

use super::state::{LOCAL, MAIN, MeshRule, MeshState, MeshStep, RuleAction};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeSet;

/// Priority of the rules that lead to the groups, and of the `from SUBNET` rules of networks that are larger than a group.
pub const FROM_NETWORK: u32 = 100;
/// Prefix length of a group of networks.
pub const GROUP: u8 = 20;
/// Priority of the first group's rules, above those of the kernel's own rules.
const GROUPS: u32 = 40_000;
/// Priority of the rule for packets of other nodes that arrive by the tunnel (IPv6).
pub const FROM_NODES: u32 = 52;
/// Priority of the local table, for packets that this namespace sends.
pub const OWN_LOCAL: u32 = 3_000_000;
/// Priority of the main table, for packets that this namespace sends.
pub const OWN_MAIN: u32 = 3_000_001;
/// Priority of every network's `to SUBNET` rule, for packets that this namespace sends: replies of the DNS server, ICMP
/// errors.
pub const OWN_TO_NETWORK: u32 = 3_000_002;
/// Priority of the last rule: unreachable.
pub const CLOSED: u32 = 3_200_000;
/// Priorities of the rules that the kernel creates.
const KERNEL_RULES: [u32; 3] = [0, 32_766, 32_767];

/// Sysctls below `/proc/sys/net`. All set explicitly: a new namespace inherits some from the host.
pub const SYSCTLS: [(&str, &str); 23] = [
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/conf/default/accept_local", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    // No link-local addresses: nothing here uses them.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    // Never `all`: writing that one would open IPv6 on every veth.
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/lo/disable_ipv6", "0"),
];

/// The rules that let no forwarded packet through; those of the networks precede them.
#[must_use]
pub fn rules() -> BTreeSet<MeshRule> {
    let own = |v6, priority, table| MeshRule {
        v6,
        priority,
        from: None,
        to: None,
        iif: Some("lo".to_owned()),
        action: RuleAction::Table(table),
    };
    let closed = |v6| MeshRule { v6, priority: CLOSED, from: None, to: None, iif: None, action: RuleAction::Unreachable };
    [false, true].into_iter().flat_map(|v6| [own(v6, OWN_LOCAL, LOCAL), own(v6, OWN_MAIN, MAIN), closed(v6)]).collect()
}

/// Priority of the rules of the group that a network is in; the next one leads past all groups.
#[must_use]
pub fn group_of(subnet: Ipv4Net) -> u32 {
    GROUPS + 2 * (subnet.network().to_bits() >> (32 - GROUP))
}

/// The rules by which packets from a network are looked up in its table; those of its group are among them.
#[must_use]
pub fn from_network(subnet: Ipv4Net, table: u32) -> Vec<MeshRule> {
    let rule = |priority, from, action| MeshRule { v6: false, priority, from, to: None, iif: None, action };
    let from = |net: Ipv4Net| Some(IpNet::V4(net.trunc()));
    let lookup = RuleAction::Table(table);
    match Ipv4Net::new(subnet.network(), GROUP) {
        Ok(group) if subnet.prefix_len() >= GROUP => {
            let start = group_of(subnet);
            vec![
                rule(FROM_NETWORK, from(group), RuleAction::Goto(start)),
                rule(start, from(subnet), lookup),
                rule(start + 1, None, RuleAction::Goto(OWN_LOCAL)),
            ]
        }
        _ => vec![rule(FROM_NETWORK, from(subnet), lookup)],
    }
}

/// The network whose packets a rule looks up in the network's own table.
#[must_use]
pub fn network_of(rule: &MeshRule) -> Option<Ipv4Net> {
    match (rule.from, &rule.action) {
        (Some(IpNet::V4(subnet)), RuleAction::Table(_)) if (FROM_NETWORK..OWN_LOCAL).contains(&rule.priority) => Some(subnet),
        _ => None,
    }
}

/// The steps that bring a new or an adopted namespace to the base. Rules of networks stay: an adopted namespace carries
/// traffic.
#[must_use]
pub fn steps(actual: &MeshState) -> Vec<MeshStep> {
    let mut steps = Vec::new();
    for (key, value) in SYSCTLS {
        if actual.sysctls.get(key).map(String::as_str) != Some(value) {
            steps.push(MeshStep::Sysctl(key.to_owned(), value.to_owned()));
        }
    }
    // The rules are complete before `lo` is up; the new ones are added before the kernel's are removed, so that connections
    // in use always find one.
    steps.extend(rules().difference(&actual.rules).cloned().map(MeshStep::AddRule));
    steps.extend(actual.rules.iter().filter(|r| KERNEL_RULES.contains(&r.priority)).cloned().map(MeshStep::RemoveRule));
    if actual.links.get("lo").is_some_and(|lo| !lo.up) {
        steps.push(MeshStep::Up("lo".to_owned()));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    /// What becomes of a packet from `source`, and how many rules the kernel tries for it.
    fn evaluate(rules: &BTreeSet<MeshRule>, source: Ipv4Addr) -> (RuleAction, usize) {
        let (mut least, mut tried) = (0, 0);
        for rule in rules.iter().filter(|rule| !rule.v6) {
            if rule.priority < least {
                continue;
            }
            tried += 1;
            let matches = rule.from.is_none_or(|from| from.contains(&std::net::IpAddr::V4(source))) && rule.iif.is_none();
            match &rule.action {
                RuleAction::Goto(priority) if matches => {
                    assert!(*priority > rule.priority, "the kernel refuses jumps backwards");
                    least = *priority;
                }
                action if matches => return (action.clone(), tried),
                _ => {}
            }
        }
        panic!("no rule for {source}");
    }

    fn with_networks(subnets: &[Ipv4Net]) -> BTreeSet<MeshRule> {
        let networks = subnets.iter().flat_map(|subnet| from_network(*subnet, subnet.network().to_bits()));
        rules().into_iter().chain(networks).collect()
    }

    #[test]
    fn a_packet_meets_few_rules_and_its_own_table_however_many_networks_there_are() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        for base in ["10.0.0.0", "10.240.0.0", "172.16.0.0", "192.168.0.0", "255.0.0.0"] {
            let base = base.parse::<Ipv4Addr>().unwrap().to_bits();
            let many: Vec<Ipv4Net> = (0..1000).map(|n| Ipv4Net::new(Ipv4Addr::from_bits(base + (n << 8)), 24).unwrap()).collect();
            let rules = with_networks(&many);
            for subnet in &many {
                let source = Ipv4Addr::from_bits(subnet.network().to_bits() + 7);
                let (action, tried) = evaluate(&rules, source);
                assert_eq!(action, RuleAction::Table(subnet.network().to_bits()), "{source}");
                assert!(tried <= 80, "{source}: {tried} rules");
            }
            let stranger = Ipv4Addr::from_bits(base + (1000 << 8) + 7);
            assert_eq!(evaluate(&rules, stranger).0, RuleAction::Unreachable, "in a group, on no network: {stranger}");
        }
        // Sizes that meet in one group, are one, and are larger than one.
        let mixed = ["10.0.0.0/28", "10.0.0.16/28", "10.0.1.0/24", "10.0.16.0/20", "10.1.0.0/16", "10.128.0.0/9"].map(net);
        let rules = with_networks(&mixed);
        for subnet in mixed {
            for source in [subnet.network(), subnet.broadcast()] {
                assert_eq!(evaluate(&rules, source).0, RuleAction::Table(subnet.network().to_bits()), "{source}");
            }
            assert!(rules.iter().filter_map(network_of).any(|found| found == subnet));
        }
        assert_eq!(evaluate(&rules, "192.0.2.1".parse().unwrap()).0, RuleAction::Unreachable);
        assert_eq!(rules.iter().filter_map(network_of).count(), mixed.len());
    }
}
