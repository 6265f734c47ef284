//! The base of every mesh namespace, before it has any network: sysctls, and the rules that replace the kernel's.
//!
//! With the kernel's own order (`0: from all lookup local` first) a container could reach every socket of this namespace
//! by address. Here the local and main tables are only for packets that this namespace sends itself (`iif lo`); a packet
//! that arrives by a device is looked up in the table of its own network or in none.

use super::state::{LOCAL, MAIN, MeshRule, MeshState, MeshStep, RuleAction};
use std::collections::BTreeSet;

/// Priority of every network's `from SUBNET` rule. (Above some 100 networks a flat list costs throughput: groups with
/// `goto` would start here.)
pub const FROM_NETWORK: u32 = 100;
/// Priority of the rule for packets of other nodes that arrive by the tunnel (IPv6).
pub const FROM_NODES: u32 = 52;
/// Priority of the local table, for packets that this namespace sends.
pub const OWN_LOCAL: u32 = 30_000;
/// Priority of the main table, for packets that this namespace sends.
pub const OWN_MAIN: u32 = 30_001;
/// Priority of every network's `to SUBNET` rule, for packets that this namespace sends: replies of the DNS server, ICMP
/// errors.
pub const OWN_TO_NETWORK: u32 = 30_002;
/// Priority of the last rule: unreachable.
pub const CLOSED: u32 = 32_000;
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
