//! The address plan of the mesh: addresses of nodes and of containers. Pure arithmetic.

use ipnet::{Ipv4Net, Ipv6Net};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

/// Added to the path's MTU: IPv6 outer header (40), UDP (8), WireGuard (32).
pub const TUNNEL_OVERHEAD: u32 = 80;
/// Port of join, certificates (TCP) and WireGuard (UDP).
pub const DEFAULT_PORT: u16 = 2377;
/// Port on every node's mesh address where managers ask for logs (TCP).
pub const LOGS_PORT: u16 = 2378;
/// Pool that subnets of networks are taken from if the cluster has none.
pub const DEFAULT_POOL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
/// Highest subnet index of a node (the lowest is 1). Nodes use the lower half of the /48 only and container addresses the
/// upper half, so that [`MeshPrefix::nodes`] contains no container address.
pub const LAST_NODE_INDEX: u16 = 0x7fff;

/// The cluster's ULA /48.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MeshPrefix(pub Ipv6Net);

impl MeshPrefix {
    /// Draws a ULA /48 (RFC 4193: fd, then 40 random bits).
    ///
    /// # Panics
    /// Never: 48 is a valid prefix length.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let bits = (0xfd_u128 << 120) | (u128::from(rng.random::<u64>() & 0xff_ffff_ffff) << 80);
        Self(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), 48))
    }

    /// The /64 of the node with this index (1 …).
    #[must_use]
    pub fn node(self, index: u16) -> Ipv6Net {
        Ipv6Net::new_assert(Ipv6Addr::from_bits(self.0.addr().to_bits() | (u128::from(index & LAST_NODE_INDEX) << 64)), 64)
    }

    /// The /49 that holds every node's /64 and no container's address.
    #[must_use]
    pub fn nodes(self) -> Ipv6Net {
        Ipv6Net::new_assert(self.0.addr(), 49)
    }

    /// The IPv6 address of a task on `ingress`, derived from its IPv4 address (in the upper half of the /48).
    #[must_use]
    pub fn container(self, v4: Ipv4Addr) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.addr().to_bits() | (1_u128 << 79) | u128::from(v4.to_bits()))
    }
}

/// The mesh address of a node: `…::1` of its /64.
#[must_use]
pub fn node_address(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from_bits(subnet.addr().to_bits() | 1)
}

/// A network's gateway: the first address of its subnet.
#[must_use]
pub fn gateway(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn node_range_holds_nodes_and_no_container() {
        let mesh = MeshPrefix::draw(&mut rand::rngs::StdRng::seed_from_u64(1));
        assert!(mesh.nodes().contains(&mesh.node(1)));
        assert!(mesh.nodes().contains(&mesh.node(LAST_NODE_INDEX)));
        assert!(!mesh.nodes().contains(&mesh.container(Ipv4Addr::BROADCAST)));
        assert!(mesh.0.contains(&mesh.container(Ipv4Addr::new(10, 0, 0, 5))));
        assert_eq!(node_address(mesh.node(3)).segments()[7], 1);
        assert_eq!(gateway("10.0.7.0/24".parse().expect("net")), Ipv4Addr::new(10, 0, 7, 1));
    }
}
