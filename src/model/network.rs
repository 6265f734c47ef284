//! Overlay networks.

use super::dual_stack::{NetworkV6, SubnetPair, gateway6};
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
    /// Likewise, with the other one, if the spec enables IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// The user has removed it while tasks that are to stop still have addresses on it: it is shown no more and its name is
    /// free; the reaper deletes it with the last address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
}

impl Network {
    /// Its subnets, if it has one of each family.
    #[must_use]
    pub fn pair(&self) -> Option<SubnetPair> {
        SubnetPair::new(self.subnet?, self.subnet6?)
    }
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
    /// Requested by the user: at most one, IPv4.
    #[serde(deserialize_with = "null_as_default")]
    pub subnets: Vec<Ipv4Net>,
    /// Gateway and name server of its containers; the first address of the subnet if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Addresses that are assigned, within the subnet; all of it if absent. Not those that users ask for.
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<Ipv4Net>,
    /// Addresses within the subnet that nothing gets, by the names that the user gave them.
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
        self.gateway.filter(|gateway| subnet.contains(gateway)).unwrap_or_else(|| mesh::gateway(subnet))
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
        // A subnet that is drawn has the default gateway.
        let Some(chosen) = self.subnet6 else { return BTreeSet::from([mesh::gateway(subnet)]) };
        let Some(pair) = SubnetPair::new(subnet, chosen) else { return BTreeSet::new() };
        let reserved = self.auxiliary_addresses6.values().copied().chain([self.v6_in(chosen).gateway]);
        reserved.filter_map(|address| pair.to_v4(address)).collect()
    }

    /// What of it managers and nodes of feature level 1 do not know, by the API's name.
    #[must_use]
    pub fn newer_field(&self) -> Option<&'static str> {
        let fields = [
            ("IPAM.Config.Gateway", self.gateway.is_some()),
            ("IPAM.Config.IPRange", self.ip_range.is_some()),
            ("IPAM.Config.AuxiliaryAddresses", !self.auxiliary_addresses.is_empty()),
            (MTU, self.options.contains_key(MTU)),
            ("EnableIPv6", self.enable_ipv6),
        ];
        fields.into_iter().find_map(|(name, is_set)| is_set.then_some(name))
    }
}
