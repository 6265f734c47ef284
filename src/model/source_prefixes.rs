//! Lists of source prefixes, as labels have them.

use ipnet::{IpNet, Ipv4Net};
use std::net::IpAddr;

/// How prefixes are written, for users.
pub const PREFIXES: &str = "commas, as 192.0.2.0/24,2001:db8::/32,198.51.100.7";

/// Parses prefixes and bare addresses separated by commas, sorted, each once. `None`: one is not valid, or there is none.
#[must_use]
pub fn prefixes(text: &str) -> Option<Vec<IpNet>> {
    let mut all: Vec<IpNet> = text.split(',').map(|one| prefix(one.trim())).collect::<Option<_>>()?;
    all.sort_unstable();
    all.dedup();
    Some(all)
}

/// Parses a prefix or a bare address; an IPv4-mapped IPv6 prefix becomes the IPv4 prefix.
fn prefix(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?.trunc();
    match net {
        IpNet::V6(mapped) if mapped.prefix_len() >= 96 => match mapped.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, mapped.prefix_len() - 96).ok().map(IpNet::V4),
            None => Some(net),
        },
        _ => Some(net),
    }
}
