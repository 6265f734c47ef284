//! Which pools a new cluster takes its networks' subnets from, so that they are not networks that the host already reaches.

use super::subnets::overlap;
use crate::model::mesh::DEFAULT_POOL;
use ipnet::Ipv4Net;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Taken in this order where the default pool is inside a network of the host as a whole.
const ALTERNATIVES: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(100, 64, 0, 0), 10),
];

/// A VPC is as large as this, of which a host has a route to its own part only: it reaches the rest by its default route.
const NEIGHBOURHOOD: u8 = 16;

/// Pools, and the ranges of them that no network gets.
#[derive(Debug, PartialEq, Eq)]
pub struct PoolChoice {
    /// As [`crate::model::Cluster::address_pools`]: empty for the default one.
    pub pools: Vec<Ipv4Net>,
    pub reserved: Vec<Ipv4Net>,
}

/// Pools for a new cluster: those that the user asked for, else the default one unless a route of the host covers it. Smaller
/// routes are reserved; in a pool that the user did not ask for with what is near them, where that leaves room in the pool. A pool that
/// the user asked for is kept although a route covers it.
#[must_use]
pub fn choose_pools(asked: &[Ipv4Net], routes: &[Ipv4Net]) -> PoolChoice {
    let covered = |pool: &Ipv4Net| routes.iter().any(|route| route.contains(pool));
    let mut pools = asked.to_vec();
    if pools.is_empty() && covered(&DEFAULT_POOL) {
        pools.extend(ALTERNATIVES.into_iter().find(|pool| !covered(pool)));
    }
    let effective = if pools.is_empty() { &[DEFAULT_POOL][..] } else { &pools };
    let is_part = |route: &Ipv4Net| effective.iter().any(|pool| overlap(pool, route) && !route.contains(pool));
    let near = |route: &Ipv4Net| Ipv4Net::new(route.network(), NEIGHBOURHOOD.min(route.prefix_len())).map(|near| near.trunc());
    let reserved: BTreeSet<Ipv4Net> = routes
        .iter()
        .filter(|route| is_part(route))
        .map(|route| near(route).ok().filter(|near| asked.is_empty() && is_part(near)).unwrap_or(*route))
        .collect();
    PoolChoice { pools, reserved: reserved.into_iter().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(all: &[&str]) -> Vec<Ipv4Net> {
        all.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn networks_of_the_host_are_left_out() {
        for (asked, routes, pools, reserved) in [
            (&[][..], &["192.0.2.0/24", "172.17.0.0/16"][..], &[][..], &[][..]),
            // The rest of the VPC.
            (
                &[],
                &["10.0.5.0/24", "10.0.0.0/20", "10.123.0.0/16", "10.64.0.0/10"],
                &[],
                &["10.0.0.0/16", "10.64.0.0/10", "10.123.0.0/16"],
            ),
            (&[], &["10.7.1.2/32"], &[], &["10.7.0.0/16"]),
            (&["10.0.0.0/16"], &["10.0.5.0/24"], &["10.0.0.0/16"], &["10.0.5.0/24"]),
            (&[], &["10.0.0.0/8", "172.16.0.0/12", "192.168.7.0/24"], &["192.168.0.0/16"], &["192.168.7.0/24"]),
            (&[], &["10.0.0.0/8", "172.17.0.0/16"], &["172.16.0.0/12"], &["172.17.0.0/16"]),
            (&[], &["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"], &["100.64.0.0/10"], &[]),
            (&["192.168.0.0/16"], &["192.168.1.0/24", "10.0.0.0/24"], &["192.168.0.0/16"], &["192.168.1.0/24"]),
            (&["10.20.0.0/16"], &["10.0.0.0/8"], &["10.20.0.0/16"], &[]),
        ] {
            let expected = PoolChoice { pools: nets(pools), reserved: nets(reserved) };
            assert_eq!(choose_pools(&nets(asked), &nets(routes)), expected, "{asked:?} {routes:?}");
        }
    }
}
