//! Subnets of networks: those that the user asked for, or the first free one of the cluster's pools.

use super::freed::Freed;
use crate::model::dual_stack::{drawn_subnets, overlap6, pairs};
use crate::model::mesh::DEFAULT_POOL;
use crate::model::{Cluster, Network};
use crate::store::Store;
use ipnet::{Ipv4Net, Ipv6Net};

/// The subnets that a network gets.
pub(super) struct Subnets<'a> {
    pub network: &'a Network,
    pub v4: Ipv4Net,
    /// Those that the user asked for beside it.
    pub further: Vec<Ipv4Net>,
    /// If its spec enables IPv6.
    pub v6: Option<Ipv6Net>,
}

/// IPv6 subnets that are in use or asked for.
struct TakenSubnets6 {
    in_use: Vec<Ipv6Net>,
    requested: Vec<Ipv6Net>,
}

impl TakenSubnets6 {
    /// The IPv6 subnet that a network with these IPv4 subnets gets; the error says that it cannot have one.
    fn take(
        &mut self,
        cluster: &Cluster,
        network: &Network,
        v4: &[Ipv4Net],
        freed: impl Fn(&Ipv6Net) -> Freed,
    ) -> Result<Option<Ipv6Net>, ()> {
        if !network.spec.enable_ipv6 {
            return Ok(None);
        }
        let is_used = |net: &Ipv6Net| self.in_use.iter().any(|other| overlap6(net, other));
        let subnet = if let Some(requested) = network.spec.subnet6 {
            Some(requested.trunc()).filter(|net| !is_used(net))
        } else {
            let is_taken = |net: &Ipv6Net| is_used(net) || self.requested.iter().any(|other| overlap6(net, other));
            let first = |worst: Freed| {
                let is_free = |net: &Ipv6Net| !is_taken(net) && [Freed::Known, worst].contains(&freed(net));
                drawn_subnets(cluster.mesh).find(is_free)
            };
            first(Freed::Known).or_else(|| first(Freed::Suspect))
        };
        let subnet = subnet.filter(|v6| !pairs(v4, *v6).is_empty()).ok_or(())?;
        self.in_use.push(subnet);
        Ok(Some(subnet))
    }
}

/// Subnets for the networks that have none. A network is left out if its subnet overlaps another one, or none is free.
/// Subnets in quarantine are not taken from the pools, those that only nodes without the newest view know are taken last; a
/// user who asks for one gets it.
pub(super) fn allocate(store: &Store, freed: impl Fn(&Ipv4Net) -> Freed, freed6: impl Fn(&Ipv6Net) -> Freed) -> Vec<Subnets<'_>> {
    let mut allocated = Vec::new();
    let Some(cluster) = store.cluster() else { return allocated };
    let mut in_use: Vec<Ipv4Net> = store.networks().flat_map(Network::subnets).collect();
    let waiting = || store.networks().filter(|n| n.subnet.is_none());
    // Subnets that users asked for are not assigned to other networks, which can have any subnet of the pools.
    let requested: Vec<Ipv4Net> = waiting().flat_map(|n| n.spec.subnets.clone()).collect();
    let mut all6 = TakenSubnets6 {
        in_use: store.networks().filter_map(|n| n.subnet6).collect(),
        requested: waiting().filter_map(|n| n.spec.subnet6).collect(),
    };
    for network in waiting() {
        let is_used = |net: &Ipv4Net| in_use.iter().any(|other| overlap(net, other));
        let is_requested = |net: &Ipv4Net| requested.iter().any(|other| overlap(net, other));
        let asked: Vec<Ipv4Net> = network.spec.subnets.iter().map(Ipv4Net::trunc).collect();
        let subnets = if asked.is_empty() {
            let is_taken = |net: &Ipv4Net| is_used(net) || is_requested(net);
            let drawn = first_free(cluster, |net| is_taken(net) || freed(net) != Freed::Known)
                .or_else(|| first_free(cluster, |net| is_taken(net) || freed(net) == Freed::Awaited));
            drawn.map(|net| vec![net])
        } else {
            Some(asked).filter(|asked| !asked.iter().any(is_used))
        };
        if let Some(subnets) = subnets
            && let Ok(v6) = all6.take(cluster, network, &subnets, &freed6)
            && let [v4, further @ ..] = &subnets[..]
        {
            in_use.extend(&subnets);
            allocated.push(Subnets { network, v4: *v4, further: further.to_vec(), v6 });
        }
    }
    allocated
}

/// The first subnet of the cluster's pools that is neither reserved nor in use.
pub fn first_free(cluster: &Cluster, in_use: impl Fn(&Ipv4Net) -> bool) -> Option<Ipv4Net> {
    let default = [DEFAULT_POOL];
    let pools = if cluster.address_pools.is_empty() { &default[..] } else { &cluster.address_pools };
    let reserved = |net: &Ipv4Net| cluster.reserved_subnets.iter().any(|other| overlap(net, other));
    pools
        .iter()
        .filter_map(|pool| pool.subnets(cluster.subnet_prefix()).ok())
        .flatten()
        .find(|net| !reserved(net) && !in_use(net))
}

/// True if an address is in both.
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[test]
    fn what_the_hosts_reach_is_no_networks() {
        let mut cluster = fixture::cluster();
        cluster.reserved_subnets = ["10.0.0.0/16", "10.2.0.0/24"].map(|net| net.parse().unwrap()).to_vec();
        let mut drawn = Vec::new();
        while drawn.len() < 257 {
            drawn.push(first_free(&cluster, |net| drawn.contains(net)).unwrap());
        }
        let named = [drawn[0], drawn[255], drawn[256]].map(|net| net.to_string());
        assert_eq!(named, ["10.1.0.0/24", "10.1.255.0/24", "10.2.1.0/24"]);
    }
}
