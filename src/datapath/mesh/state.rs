//! The contents of the mesh namespace as plain values, and the steps that change them. Displayed in the style of `ip`.

use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Name of the tunnel device.
pub const TUNNEL: &str = "skep0";
/// Link-local address of the mesh end of a container's veth on a dual-stack network. The kernel generates none there.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// Number of the main routing table.
pub const MAIN: u32 = 254;
/// Number of the local routing table.
pub const LOCAL: u32 = 255;

/// Number of a network's routing table: its network address, so that no allocation has to be stored.
#[must_use]
pub fn table_of(subnet: Ipv4Net) -> u32 {
    subnet.network().to_bits()
}

/// Name of the mesh end of a container's veth.
#[must_use]
pub fn mesh_end(address: Ipv4Addr) -> String {
    format!("v{:08x}", address.to_bits())
}

/// Name of the container's end of its veth, until the engine renames it.
#[must_use]
pub fn container_end(address: Ipv4Addr) -> String {
    format!("c{:08x}", address.to_bits())
}

/// The container's address, if `link` is the mesh end of a container's veth.
#[must_use]
pub fn address_of(link: &str) -> Option<Ipv4Addr> {
    let digits = link.strip_prefix('v').filter(|d| d.len() == 8 && d.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from_bits)
}

/// A device.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct MeshLink {
    /// Interface index in the mesh namespace.
    pub index: u32,
    /// Bytes.
    pub mtu: u32,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
}

/// What a matching rule does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub enum RuleAction {
    /// Looks the destination up in this table.
    Table(u32),
    /// Continues at the rule with this priority.
    Goto(u32),
    /// Answers "unreachable".
    Unreachable,
    /// An action that skep does not use, as the kernel's number.
    Other(u8),
}

/// A policy routing rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct MeshRule {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Rules are evaluated from the lowest one up.
    pub priority: u32,
    /// Sources that match; `None` for all.
    pub from: Option<IpNet>,
    /// Destinations that match; `None` for all.
    pub to: Option<IpNet>,
    /// Device that the packet arrived by; `lo` for packets that this namespace sends itself. `None` for all.
    pub iif: Option<String>,
    pub action: RuleAction,
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub enum RouteTarget {
    /// An address of this namespace (`local … dev lo`).
    Local,
    /// On the link of this device.
    Device(String),
    /// A route that skep does not create, in words.
    Other(String),
}

/// A route.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct MeshRoute {
    /// Number of the routing table.
    pub table: u32,
    pub to: IpNet,
    pub target: RouteTarget,
    /// Largest packet in bytes, if it is smaller than the device's.
    pub mtu: Option<u32>,
}

/// What the mesh namespace contains.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct MeshState {
    /// Devices by name.
    pub links: BTreeMap<String, MeshLink>,
    /// Addresses by device, without the kernel's own (127.0.0.1, `::1`, link-local ones but [`LINK_LOCAL`]).
    pub addresses: BTreeSet<(String, IpAddr)>,
    pub rules: BTreeSet<MeshRule>,
    /// All routes that the kernel has not made itself.
    pub routes: BTreeSet<MeshRoute>,
    /// The sysctls that skep sets (`ipv4/ip_forward`, …), those of each container's veth included.
    pub sysctls: BTreeMap<String, String>,
}

impl MeshState {
    /// Changes the contents as the kernel does when it carries the step out.
    pub(super) fn carry_out(&mut self, step: &MeshStep) {
        match step {
            MeshStep::Sysctl(key, value) => drop(self.sysctls.insert(key.clone(), value.clone())),
            MeshStep::Mtu(link, mtu) => {
                if let Some(link) = self.links.get_mut(link) {
                    link.mtu = *mtu;
                }
            }
            MeshStep::Up(link) => {
                if let Some(link) = self.links.get_mut(link) {
                    link.up = true;
                }
            }
            MeshStep::AddAddress(link, address) => drop(self.addresses.insert((link.clone(), *address))),
            MeshStep::RemoveAddress(link, address) => drop(self.addresses.remove(&(link.clone(), *address))),
            MeshStep::SetRoute(route) => {
                self.routes.retain(|other| (other.table, other.to) != (route.table, route.to));
                self.routes.insert(route.clone());
            }
            MeshStep::RemoveRoute(route) => drop(self.routes.remove(route)),
            MeshStep::AddRule(rule) => drop(self.rules.insert(rule.clone())),
            MeshStep::RemoveRule(rule) => drop(self.rules.remove(rule)),
        }
    }

    /// Changes the contents as the kernel does when a device is removed.
    pub(super) fn remove_link(&mut self, name: &str) {
        self.links.remove(name);
        self.addresses.retain(|(link, _)| link != name);
        self.routes.retain(|route| !matches!(&route.target, RouteTarget::Device(device) if device == name));
    }
}

/// One change. Each may be repeated without harm.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub enum MeshStep {
    /// Sets a sysctl below `/proc/sys/net`.
    Sysctl(String, String),
    /// Sets a device's MTU.
    Mtu(String, u32),
    /// Sets a device up.
    Up(String),
    /// Adds an address to a device (a single one, /32 or /128).
    AddAddress(String, IpAddr),
    RemoveAddress(String, IpAddr),
    /// Adds the route, or replaces the one to the same destinations in the same table.
    SetRoute(MeshRoute),
    RemoveRoute(MeshRoute),
    AddRule(MeshRule),
    RemoveRule(MeshRule),
}

fn table_name(table: u32) -> String {
    match table {
        MAIN => "main".to_owned(),
        LOCAL => "local".to_owned(),
        number => number.to_string(),
    }
}

impl fmt::Display for MeshRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}:", if self.v6 { "-6 " } else { "" }, self.priority)?;
        if let Some(from) = &self.from {
            write!(f, " from {from}")?;
        }
        if let Some(to) = &self.to {
            write!(f, " to {to}")?;
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        match &self.action {
            RuleAction::Table(table) => write!(f, " lookup {}", table_name(*table)),
            RuleAction::Goto(priority) => write!(f, " goto {priority}"),
            RuleAction::Unreachable => write!(f, " unreachable"),
            RuleAction::Other(number) => write!(f, " action {number}"),
        }
    }
}

impl fmt::Display for MeshRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            RouteTarget::Local => write!(f, "local {} dev lo", self.to)?,
            RouteTarget::Device(device) => write!(f, "{} dev {device}", self.to)?,
            RouteTarget::Other(what) => write!(f, "{} {what}", self.to)?,
        }
        write!(f, " table {}", table_name(self.table))?;
        self.mtu.map_or(Ok(()), |mtu| write!(f, " mtu {mtu}"))
    }
}

impl fmt::Display for MeshStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sysctl(key, value) => write!(f, "sysctl net/{key} = {value}"),
            Self::Mtu(link, mtu) => write!(f, "link set {link} mtu {mtu}"),
            Self::Up(link) => write!(f, "link set {link} up"),
            Self::AddAddress(link, address) => write!(f, "address add {address} dev {link}"),
            Self::RemoveAddress(link, address) => write!(f, "address del {address} dev {link}"),
            Self::SetRoute(route) => write!(f, "route set {route}"),
            Self::RemoveRoute(route) => write!(f, "route del {route}"),
            Self::AddRule(rule) => write!(f, "rule add {rule}"),
            Self::RemoveRule(rule) => write!(f, "rule del {rule}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_follow_from_addresses() {
        let address = Ipv4Addr::new(10, 0, 3, 250);
        assert_eq!(mesh_end(address), "v0a0003fa");
        assert_eq!(container_end(address), "c0a0003fa");
        assert_eq!(address_of("v0a0003fa"), Some(address));
        assert_eq!(address_of("veth1234"), None);
        assert_eq!(address_of("c0a0003fa"), None);
        assert_eq!(address_of("v+a0003fa"), None);
        assert_eq!(table_of("10.0.3.0/24".parse().expect("net")), 0x0a00_0300);
    }
}
