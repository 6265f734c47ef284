//! Network namespaces of containers that have an address on an overlay network.

use async_trait::async_trait;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// A container's network namespace with one of its overlay addresses.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Sandbox {
    /// Where the engine has pinned the namespace.
    pub path: PathBuf,
    /// Of the network that the address is on: the first one.
    pub subnet: Ipv4Net,
    /// Its further subnets.
    pub further: Vec<Ipv4Net>,
    /// Of that network.
    pub gateway: Ipv4Addr,
    pub address: Ipv4Addr,
}

/// Which of these addresses each namespace can have connections to: networks are isolated from each other. Pure.
#[must_use]
pub fn places(sandboxes: &[Sandbox], addresses: &BTreeSet<Ipv4Addr>) -> BTreeMap<PathBuf, BTreeSet<Ipv4Addr>> {
    let mut by_namespace = BTreeMap::<_, BTreeSet<_>>::new();
    for sandbox in sandboxes {
        let on_network = |address: &Ipv4Addr| {
            let mut subnets = std::iter::once(&sandbox.subnet).chain(&sandbox.further);
            subnets.any(|subnet| subnet.contains(address))
        };
        let reached: Vec<Ipv4Addr> = addresses.iter().copied().filter(on_network).collect();
        if !reached.is_empty() {
            by_namespace.entry(sandbox.path.clone()).or_default().extend(reached);
        }
    }
    by_namespace
}

/// Prepares a container's namespace after its address is configured and before its process starts. May be called again.
#[async_trait]
pub trait Sandboxes: Send + Sync {
    /// Configures what the datapath needs in it for the address. If that fails, the userspace datapath serves the container.
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()>;
}

/// Without the eBPF datapath a container's namespace needs nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoSandboxes;

#[async_trait]
impl Sandboxes for NoSandboxes {
    async fn enter(&self, _: &Sandbox) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_namespace_has_only_the_addresses_that_its_networks_reach() {
        let sandbox = |path: &str, subnet: &str| Sandbox {
            path: path.into(),
            subnet: subnet.parse().unwrap(),
            further: Vec::new(),
            gateway: [0, 0, 0, 0].into(),
            address: [0, 0, 0, 0].into(),
        };
        let all =
            [sandbox("a", "10.0.0.0/24"), sandbox("a", "10.0.1.0/24"), sandbox("b", "10.0.2.0/24"), sandbox("c", "10.0.1.0/24")];
        let addresses = BTreeSet::from([[10, 0, 0, 202].into(), [10, 0, 1, 2].into()]);
        let by_namespace = places(&all, &addresses);
        assert_eq!(by_namespace.keys().map(|p| p.display().to_string()).collect::<Vec<_>>(), ["a", "c"]);
        assert_eq!((by_namespace[Path::new("a")].len(), by_namespace[Path::new("c")].len()), (2, 1));
    }
}
