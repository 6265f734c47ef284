//! Which devices of the host the programs for published ports attach to. Pure.
//!
//! The programs run at the uppermost device that owns an address: a packet that arrives by a port of a bridge or of a bond
//! passes again at the bridge or bond, and its reply is routed there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Whether programs can be attached to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attaching {
    Possible,
    /// Its packets have no Ethernet header.
    NoEthernet,
    /// The queueing discipline at its ingress is another program's, beside which this kernel has no place.
    ForeignIngress,
}

/// A device of the host, other than the pair's end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostDevice {
    pub name: String,
    pub attaching: Attaching,
    pub up: bool,
    pub loopback: bool,
    /// The device that it is a port of.
    pub master: Option<u32>,
    /// It is a VRF: its ports keep their addresses and receive their packets themselves.
    pub vrf: bool,
}

/// The devices that clients are reached by.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Uplinks {
    /// With their indexes.
    pub served: BTreeMap<String, u32>,
    /// Devices with an address whose clients only the userspace datapath serves, and why.
    pub unserved: BTreeMap<String, String>,
    /// Addresses of the devices that are served.
    pub locals: BTreeSet<IpAddr>,
}

/// Selects them from the devices by index and the addresses (without link-local ones) by index of their device.
#[must_use]
pub fn uplinks(devices: &BTreeMap<u32, HostDevice>, addresses: &[(u32, IpAddr)]) -> Uplinks {
    let mut all = Uplinks::default();
    for (owner, address) in addresses {
        let Some((index, device)) = uppermost(devices, *owner) else { continue };
        if !device.up || device.loopback || is_engine_device(&device.name) {
            continue;
        }
        if let Some(reason) = cannot_attach(device) {
            all.unserved.insert(device.name.clone(), reason.to_owned());
            continue;
        }
        all.served.insert(device.name.clone(), index);
        all.locals.insert(*address);
    }
    all
}

/// The device that a packet for a device's address passes last.
fn uppermost(devices: &BTreeMap<u32, HostDevice>, index: u32) -> Option<(u32, &HostDevice)> {
    let mut at = index;
    // As many levels as the kernel allows.
    for _ in 0..8 {
        match devices.get(&at)?.master {
            Some(master) if devices.get(&master).is_some_and(|master| !master.vrf) => at = master,
            _ => break,
        }
    }
    Some((at, devices.get(&at)?))
}

fn cannot_attach(device: &HostDevice) -> Option<&'static str> {
    match device.attaching {
        Attaching::Possible => None,
        Attaching::NoEthernet => {
            Some("its packets have no Ethernet header (ppp, tun, WireGuard): the eBPF datapath does not read them")
        }
        Attaching::ForeignIngress => Some(
            "another program's ingress qdisc is attached (`tc qdisc show`), and this kernel (before 6.6) has no other place for \
             programs: replace it by clsact",
        ),
    }
}

/// Whether it is a bridge or veth of the engine: the addresses behind it are not known outside this node, so clients behind
/// it are served by the userspace port.
#[must_use]
pub fn is_engine_device(name: &str) -> bool {
    let hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    name.starts_with("docker") || name.strip_prefix("br-").is_some_and(|id| hex(id, 12)) || name.starts_with("veth")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> HostDevice {
        HostDevice { name: name.to_owned(), attaching: Attaching::Possible, up: true, loopback: false, master: None, vrf: false }
    }

    fn select(devices: &[(u32, HostDevice)], addresses: &[(u32, &str)]) -> Uplinks {
        let addresses: Vec<(u32, IpAddr)> = addresses.iter().map(|(index, a)| (*index, a.parse().unwrap())).collect();
        uplinks(&devices.iter().cloned().collect(), &addresses)
    }

    fn names(uplinks: &Uplinks) -> Vec<(&str, u32)> {
        uplinks.served.iter().map(|(name, index)| (name.as_str(), *index)).collect()
    }

    #[test]
    fn devices_with_an_address_are_uplinks_whatever_the_network() {
        let all =
            [(1, HostDevice { loopback: true, ..device("lo") }), (2, device("eth0")), (3, device("eth1")), (4, device("eth2"))];
        let found = select(&all, &[(1, "127.0.0.1"), (2, "10.1.2.3"), (2, "172.16.0.9"), (3, "2001:db8::1"), (9, "192.168.0.1")]);
        assert_eq!(names(&found), [("eth0", 2), ("eth1", 3)], "eth2 has no address, device 9 is gone");
        assert_eq!(found.locals, ["10.1.2.3", "172.16.0.9", "2001:db8::1"].map(|a| a.parse().unwrap()).into());
        assert!(found.unserved.is_empty());
        let down = [(2, HostDevice { up: false, ..device("eth0") }), (3, device("docker0")), (4, device("vethab12"))];
        assert_eq!(select(&down, &[(2, "10.1.2.3"), (3, "172.17.0.1"), (4, "172.17.0.2")]), Uplinks::default());
    }

    /// Review finding 7: what is stacked on a device sees its packets again.
    #[test]
    fn programs_attach_to_the_uppermost_device() {
        let port = HostDevice { master: Some(5), ..device("eth0") };
        let bridge = (5, device("br0"));
        assert_eq!(names(&select(&[(2, port.clone()), bridge.clone()], &[(5, "192.0.2.1")])), [("br0", 5)]);
        let both = select(&[(2, port.clone()), bridge], &[(2, "10.0.0.5"), (5, "192.0.2.1")]);
        assert_eq!((names(&both), both.locals.len()), (vec![("br0", 5)], 2), "an address on the port is reached by the bridge");
        // A bond in a bridge.
        let stack = [(2, port), (5, HostDevice { master: Some(6), ..device("bond0") }), (6, device("vmbr0"))];
        assert_eq!(names(&select(&stack, &[(6, "192.0.2.1")])), [("vmbr0", 6)]);
        // A VLAN device is on its own, beside its parent; a VRF's port receives itself.
        let vlans = [(2, device("eth0")), (3, device("eth0.100"))];
        assert_eq!(names(&select(&vlans, &[(2, "10.0.0.5"), (3, "192.0.2.1")])), [("eth0", 2), ("eth0.100", 3)]);
        let vrf = [(2, HostDevice { master: Some(7), ..device("eth0") }), (7, HostDevice { vrf: true, ..device("red") })];
        assert_eq!(names(&select(&vrf, &[(2, "192.0.2.1")])), [("eth0", 2)]);
        // A port of the engine's bridge; and a circle, which the kernel forbids.
        let engine = [(2, HostDevice { master: Some(8), ..device("eth0") }), (8, device("docker0"))];
        assert_eq!(select(&engine, &[(2, "192.0.2.1")]), Uplinks::default());
        let circle = [(2, HostDevice { master: Some(3), ..device("a") }), (3, HostDevice { master: Some(2), ..device("b") })];
        assert_eq!(select(&circle, &[(2, "192.0.2.1")]).served.len(), 1);
    }

    #[test]
    fn devices_that_cannot_be_served_are_named_with_the_reason() {
        let tun = HostDevice { attaching: Attaching::NoEthernet, ..device("tailscale0") };
        let shaped = HostDevice { attaching: Attaching::ForeignIngress, ..device("eth0") };
        let found =
            select(&[(2, tun.clone()), (3, shaped), (4, device("eth1"))], &[(2, "100.64.0.1"), (3, "10.0.0.5"), (4, "10.9.0.5")]);
        assert_eq!(names(&found), [("eth1", 4)]);
        assert!(found.unserved["tailscale0"].contains("no Ethernet header"), "{found:?}");
        assert!(found.unserved["eth0"].contains("ingress qdisc") && found.unserved["eth0"].contains("clsact"), "{found:?}");
        assert_eq!(found.locals, ["10.9.0.5".parse().unwrap()].into());
        assert_eq!(select(&[(2, tun)], &[]), Uplinks::default(), "without an address no client is reached by it");
    }

    #[test]
    fn bridges_of_the_engine_are_not_uplinks_and_other_devices_are() {
        for name in ["docker0", "docker_gwbridge", "br-0123456789ab", "veth12ab"] {
            assert!(is_engine_device(name), "{name}");
        }
        for name in ["eth0", "br0", "br-lan", "enp3s0"] {
            assert!(!is_engine_device(name), "{name}");
        }
    }
}
