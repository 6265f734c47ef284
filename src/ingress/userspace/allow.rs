//! Which sources may use a published port. The host's firewall cannot decide that: packets that the eBPF datapath redirects
//! never reach its INPUT rules. Pure.

use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// Whether `source` may use a port with this allow list (empty: all sources). Processes of the node itself always may; their
/// source is loopback or one of the node's `own` addresses.
#[must_use]
pub fn admits(allow: &[IpNet], own: &BTreeSet<IpAddr>, source: IpAddr) -> bool {
    let source = source.to_canonical();
    allow.is_empty() || source.is_loopback() || own.contains(&source) || allow.iter().any(|net| net.contains(&source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_either_family_and_the_node_itself_are_admitted() {
        let allow: Vec<IpNet> = ["192.0.2.0/24", "2001:db8::/32"].map(|p| p.parse().unwrap()).to_vec();
        let own = BTreeSet::from(["198.51.100.1".parse().unwrap(), "fd99::1".parse().unwrap()]);
        let admitted = |source: &str| admits(&allow, &own, source.parse().unwrap());
        for yes in ["192.0.2.9", "::ffff:192.0.2.9", "2001:db8:9::1", "127.0.0.5", "::1", "198.51.100.1", "fd99::1"] {
            assert!(admitted(yes), "{yes}");
        }
        for no in ["192.0.3.9", "::ffff:192.0.3.9", "2001:db9::1", "198.51.100.2", "fd99::2"] {
            assert!(!admitted(no), "{no}");
        }
        assert!(admits(&[], &BTreeSet::new(), "203.0.113.7".parse().unwrap()), "an empty list admits all sources");
    }
}
