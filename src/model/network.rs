//! Overlay networks.

use super::dual_stack::{self, NetworkV6, SubnetPair, gateway6};
use super::{id::NetworkId, mesh, meta::Meta, serde_helpers::null_as_default};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Name of the network that carries published ports.
pub const INGRESS: &str = "ingress";

/// An overlay network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    /// Assigned by the allocator, from the user's choice or the cluster's pools; `None` until then.
    pub subnet: Option<Ipv4Net>,
    /// The further ones that the user asked for, assigned with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further: Vec<Ipv4Net>,
    /// Likewise, with the other one, if the spec enables IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The user has removed it while tasks that are to stop still have addresses on it: it is shown no more and its name is
    /// free; the reaper deletes it with the last address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
}

impl Network {
    /// Without subnets yet.
    #[must_use]
    pub fn new(id: NetworkId, spec: NetworkSpec) -> Self {
        Self { id, meta: Meta::default(), spec, subnet: None, further: Vec::new(), subnet6: None, removing: false }
    }

    /// Its IPv4 subnets; none before they are assigned.
    #[must_use]
    pub fn subnets(&self) -> Vec<Ipv4Net> {
        self.subnet.into_iter().chain(self.further.iter().copied()).collect()
    }

    /// Its subnets of both families, if it has both.
    #[must_use]
    pub fn pairs(&self) -> Vec<SubnetPair> {
        self.subnet6.map(|v6| dual_stack::pairs(&self.subnets(), v6)).unwrap_or_default()
    }
}

/// A subnet of a network beside the first one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FurtherSubnet {
    pub subnet: Ipv4Net,
    pub gateway: Ipv4Addr,
}

/// What `docker network create` posts (the fields that are implemented).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[expect(clippy::struct_excessive_bools, reason = "Docker's fields")]
pub struct NetworkSpec {
    /// Unique among networks without regard to case.
    pub name: String,
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Its containers get no default route.
    pub internal: bool,
    /// Plain containers may attach.
    pub attachable: bool,
    /// Carries traffic of published ports. At most one network of a cluster.
    pub ingress: bool,
    /// IPv4 subnets that the user asked for. Addresses are taken from the next one when one is full.
    #[serde(deserialize_with = "null_as_default")]
    pub subnets: Vec<Ipv4Net>,
    /// Gateway and name server of its containers; the first address of the subnet if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Gateways of the further subnets, where they are not the first address.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub further_gateways: Vec<Ipv4Addr>,
    /// Addresses that are assigned, within the subnet; all of it if absent. Not those that users ask for.
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Ipv4Net>,
    /// Likewise within further subnets.
    #[serde(rename = "FurtherIPRanges", skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub further_ranges: Vec<Ipv4Net>,
    /// Addresses within the subnets that nothing gets, by the names that the user gave them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub auxiliary_addresses: BTreeMap<String, Ipv4Addr>,
    /// Its containers have an IPv6 address too.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "std::ops::Not::not")]
    pub enable_ipv6: bool,
    /// IPv6 subnet that the user asked for; absent without IPv6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// IPv6 gateway; the first address of the subnet if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway6: Option<Ipv6Addr>,
    /// As `ip_range`, in the IPv6 subnet: the host numbers that are assigned are in both.
    #[serde(rename = "IPRange6", skip_serializing_if = "Option::is_none")]
    pub ip_range6: Option<Ipv6Net>,
    /// As `auxiliary_addresses`, in the IPv6 subnet.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub auxiliary_addresses6: BTreeMap<String, Ipv6Addr>,
    /// Driver options, as posted.
    #[serde(deserialize_with = "null_as_default")]
    pub options: BTreeMap<String, String>,
}

/// Driver option with the MTU of the network's containers, in bytes.
pub const MTU: &str = "com.docker.network.driver.mtu";

impl NetworkSpec {
    /// Largest MTU that its containers may have, in bytes; `None`: that of the tunnel. (The API refuses what is no number.)
    #[must_use]
    pub fn mtu(&self) -> Option<u32> {
        self.options.get(MTU)?.parse().ok()
    }

    /// The gateway of a network with this spec, on its subnet.
    #[must_use]
    pub fn gateway_in(&self, subnet: Ipv4Net) -> Ipv4Addr {
        let mut chosen = self.gateway.iter().chain(&self.further_gateways);
        chosen.find(|gateway| subnet.contains(*gateway)).copied().unwrap_or_else(|| mesh::gateway(subnet))
    }

    /// The range of a subnet that addresses are assigned from, if the user chose one.
    #[must_use]
    pub fn range_in(&self, subnet: Ipv4Net) -> Option<Ipv4Net> {
        self.ip_range.iter().chain(&self.further_ranges).find(|range| subnet.contains(*range)).copied()
    }

    /// A subnet of a network with this spec, with the IPv6 subnet that the user asked for.
    fn pair_in(&self, subnet: Ipv4Net) -> Option<SubnetPair> {
        let subnets = if self.subnets.len() > 1 { &self.subnets[..] } else { &[subnet] };
        dual_stack::pairs(subnets, self.subnet6?).into_iter().find(|pair| pair.v4 == subnet.trunc())
    }

    /// The IPv6 half of a network with this spec, on its subnet.
    #[must_use]
    pub fn v6_in(&self, subnet: Ipv6Net) -> NetworkV6 {
        NetworkV6 {
            subnet,
            gateway: self.gateway6.filter(|gateway| subnet.contains(gateway)).unwrap_or_else(|| gateway6(subnet)),
        }
    }

    /// IPv4 addresses that nothing gets because the IPv6 address of such a host is the gateway, or an auxiliary address.
    #[must_use]
    pub fn reserved_for_v6(&self, subnet: Ipv4Net) -> BTreeSet<Ipv4Addr> {
        if !self.enable_ipv6 {
            return BTreeSet::new();
        }
        // A subnet that is drawn has the default gateway, which is in none of the parts for several subnets.
        let Some(chosen) = self.subnet6 else {
            return if self.subnets.len() > 1 { BTreeSet::new() } else { BTreeSet::from([mesh::gateway(subnet)]) };
        };
        let Some(pair) = self.pair_in(subnet) else { return BTreeSet::new() };
        let reserved = self.auxiliary_addresses6.values().copied().chain([self.v6_in(chosen).gateway]);
        reserved.filter_map(|address| pair.to_v4(address)).collect()
    }

    /// The lowest and the highest IPv4 address that may be assigned on its subnet, those of hosts only; `None` if there is none: the
    /// ranges of both families are for others.
    #[must_use]
    pub fn assignable(&self, subnet: Ipv4Net) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let range = self.range_in(subnet).unwrap_or(subnet);
        let mut low = range.network().to_bits().max(subnet.network().to_bits().checked_add(1)?);
        let mut high = range.broadcast().to_bits().min(subnet.broadcast().to_bits().checked_sub(1)?);
        if let (Some(range6), Some(pair)) = (self.ip_range6, self.pair_in(subnet)) {
            let (first, last) = pair.numbers_of(range6)?;
            let at = |number| subnet.network().to_bits() | number;
            (low, high) = (low.max(at(first)), high.min(at(last)));
        }
        (low <= high).then(|| (Ipv4Addr::from_bits(low), Ipv4Addr::from_bits(high)))
    }

    /// How many of its subnets are in the table of the socket hooks: pairs of both families, and those beside the first one.
    #[must_use]
    pub fn hook_subnets(&self) -> usize {
        let subnets = self.subnets.len().max(1);
        subnets - 1 + if self.enable_ipv6 { subnets } else { 0 }
    }

    /// What of it managers and nodes of feature level 1 do not know, by the API's name.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let fields = [
            ("several IPAM.Config", self.subnets.len() > 1),
            ("IPAM.Config.Gateway", self.gateway.is_some()),
            ("IPAM.Config.IPRange", self.ip_range.is_some()),
            ("IPAM.Config.AuxiliaryAddresses", !self.auxiliary_addresses.is_empty()),
            (MTU, self.options.contains_key(MTU)),
            ("EnableIPv6", self.enable_ipv6),
        ];
        fields.into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    }
}
