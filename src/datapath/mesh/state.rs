//! What can be in the mesh namespace, as plain values, and the steps that change it. Printed the way `ip` would.

use ipnet::{IpNet, Ipv4Net};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// The tunnel device.
pub const TUNNEL: &str = "skep0";
/// The main table.
pub const MAIN: u32 = 254;
/// The local table.
pub const LOCAL: u32 = 255;

/// Routing table of a network: the number is its network address, so nothing needs to be remembered.
#[must_use]
pub fn table_of(subnet: Ipv4Net) -> u32 {
    subnet.network().to_bits()
}

/// The mesh end of a container's veth.
#[must_use]
pub fn mesh_end(address: Ipv4Addr) -> String {
    format!("v{:08x}", address.to_bits())
}

/// The container's end of its veth, until the engine renames it.
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
pub struct Link {
    /// Its number in this namespace.
    pub index: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
}

/// What a rule does.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub enum Action {
    /// Look in this table.
    Table(u32),
    /// Go on at the rule with this priority.
    Goto(u32),
    /// Answer "unreachable".
    Unreachable,
    /// Something that skep never makes (the kernel's number for it).
    Other(u8),
}

/// A policy rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct Rule {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Its place.
    pub priority: u32,
    /// Sources it is for; `None` for all.
    pub from: Option<IpNet>,
    /// Destinations it is for; `None` for all.
    pub to: Option<IpNet>,
    /// Device that the packet came in by; `lo` for what this namespace sends itself.
    pub iif: Option<String>,
    /// What to do.
    pub action: Action,
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub enum Target {
    /// An address of this namespace (`local … dev lo`).
    Local,
    /// On the link of this device.
    Device(String),
    /// Something that skep never makes.
    Other(String),
}

/// A route of one of our tables.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// Destinations.
    pub to: IpNet,
    /// Where to.
    pub target: Target,
}

/// What is there.
#[derive(Clone, PartialEq, Eq, Default, Debug, serde::Serialize)]
pub struct MeshState {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses by device, without the kernel's own (127.0.0.1, `::1`, link-local).
    pub addresses: BTreeSet<(String, IpAddr)>,
    /// All rules.
    pub rules: BTreeSet<Rule>,
    /// All routes that the kernel has not made itself.
    pub routes: BTreeSet<Route>,
    /// The sysctls that skep sets (`ipv4/ip_forward`, …), those of each container's veth included.
    pub sysctls: BTreeMap<String, String>,
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
    /// Gives a device an address (a single one, /32 or /128).
    AddAddress(String, IpAddr),
    /// Takes it away.
    RemoveAddress(String, IpAddr),
    /// Adds the route, in the place of another to the same destinations in the same table.
    SetRoute(Route),
    /// Removes it.
    RemoveRoute(Route),
    /// Adds the rule.
    AddRule(Rule),
    /// Removes it.
    RemoveRule(Rule),
}

fn table_name(table: u32) -> String {
    match table {
        MAIN => "main".to_owned(),
        LOCAL => "local".to_owned(),
        ours => ours.to_string(),
    }
}

impl fmt::Display for Rule {
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
            Action::Table(table) => write!(f, " lookup {}", table_name(*table)),
            Action::Goto(priority) => write!(f, " goto {priority}"),
            Action::Unreachable => write!(f, " unreachable"),
            Action::Other(number) => write!(f, " action {number}"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Local => write!(f, "local {} dev lo", self.to)?,
            Target::Device(device) => write!(f, "{} dev {device}", self.to)?,
            Target::Other(what) => write!(f, "{} {what}", self.to)?,
        }
        write!(f, " table {}", table_name(self.table))
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
