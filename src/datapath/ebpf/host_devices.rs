//! Devices and addresses that the eBPF datapath stands on: uplinks of the host, the pair between host and mesh, the mesh
//! ends of containers' veths, the tunnel device.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkLayerType, LinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;

use crate::datapath::mesh::{Mesh, TUNNEL, address_of, ipv6_switch, wire};
use crate::datapath::netlink::{ignore_existing, ignore_missing};
use crate::datapath::{netns, sysctl};

/// The host's end of the pair.
pub const HOST_END: &str = "skeph";
/// The mesh's end.
pub const MESH_END: &str = "skepm";
const MTU: u32 = 1500;

/// What is there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HostDevices {
    /// Number of the host's end of the pair.
    pub host_end: Option<u32>,
    /// Number of the mesh's end.
    pub mesh_end: Option<u32>,
    /// Number of the tunnel device.
    pub tunnel: Option<u32>,
    /// Devices that clients come in by, with their numbers.
    pub uplinks: BTreeMap<String, u32>,
    /// Addresses of these, but for link-local ones.
    pub locals: BTreeSet<IpAddr>,
    /// Mesh ends of containers' veths by the container's address, with their names and numbers.
    pub veths: BTreeMap<Ipv4Addr, (String, u32)>,
}

/// Makes the pair, or sets right the one that is there. The host's end says whose it is: `owner`, a run directory.
pub(super) async fn make_pair(mesh: &Mesh, owner: &str) -> anyhow::Result<()> {
    let pair = || Message::NewLink(wire::veth(MESH_END, HOST_END, mesh.host.as_fd(), MTU));
    ignore_existing(mesh.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await)?;
    if mesh.netlink.change(Message::GetLink(wire::link_named(MESH_END)), 0).await.is_err() {
        // It leads into another mesh namespace. A run directory has one daemon, so one that bears its name leads nowhere
        // any more: its namespace was lost.
        anyhow::ensure!(
            owner_of_pair(mesh).await?.as_deref() == Some(owner),
            "this host has a {HOST_END} of another skep: `ip link del {HOST_END}` if that one is gone"
        );
        ignore_missing(mesh.host_netlink.change(Message::DelLink(wire::link_named(HOST_END)), 0).await)?;
        mesh.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await?;
    }
    mesh.host_netlink.change(Message::SetLink(wire::link_note(HOST_END, owner)), 0).await?;
    // Nothing of either stack speaks over it.
    netns::run(mesh.fd(), || sysctl::write(&ipv6_switch(MESH_END), "1"))??;
    netns::run(mesh.host.as_fd(), || sysctl::write(&ipv6_switch(HOST_END), "1"))??;
    mesh.netlink.change(Message::SetLink(wire::link_up(MESH_END)), 0).await?;
    mesh.host_netlink.change(Message::SetLink(wire::link_up(HOST_END)), 0).await?;
    Ok(())
}

async fn owner_of_pair(mesh: &Mesh) -> anyhow::Result<Option<String>> {
    for message in mesh.host_netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        if let (Some(HOST_END), note) = wire::read_note(&message) {
            return Ok(note.map(str::to_owned));
        }
    }
    Ok(None)
}

/// Removes the pair.
pub(super) async fn remove_pair(mesh: &Mesh) -> anyhow::Result<()> {
    Ok(ignore_missing(mesh.netlink.change(Message::DelLink(wire::link_named(MESH_END)), 0).await)?)
}

/// Reads all of it.
pub(super) async fn look(mesh: &Mesh) -> anyhow::Result<HostDevices> {
    let mut all = HostDevices::default();
    for message in mesh.netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        let Some((name, link)) = wire::read_link(&message) else { continue };
        match (name.as_str(), address_of(&name)) {
            (MESH_END, _) => all.mesh_end = Some(link.index),
            (TUNNEL, _) => all.tunnel = Some(link.index),
            (_, Some(address)) => drop(all.veths.insert(address, (name, link.index))),
            _ => {}
        }
    }
    let mut devices = BTreeMap::new();
    for message in mesh.host_netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        let Some((name, link)) = wire::read_link(&message) else { continue };
        let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        if name == HOST_END {
            all.host_end = Some(link.index);
        } else if ethernet && link.up && !message.header.flags.contains(LinkFlags::Loopback) && !is_engines(&name) {
            devices.insert(link.index, name);
        }
    }
    for message in mesh.host_netlink.dump(Message::GetAddress(AddressMessage::default())).await? {
        let Message::NewAddress(message) = message else { continue };
        if let Some((index, address)) = wire::read_address(&message)
            && let Some(name) = devices.get(&index)
        {
            all.uplinks.insert(name.clone(), index);
            all.locals.insert(address);
        }
    }
    Ok(all)
}

/// Whether it is a bridge or veth that the engine makes: addresses behind it mean nothing outside this node, so what
/// comes from there is the userspace port's.
fn is_engines(name: &str) -> bool {
    let hex = |text: &str, length: usize| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    name.starts_with("docker") || name.strip_prefix("br-").is_some_and(|id| hex(id, 12)) || name.starts_with("veth")
}

#[cfg(test)]
mod tests {
    use super::is_engines;

    #[test]
    fn bridges_of_the_engine_are_no_uplinks_and_others_are() {
        assert!(
            is_engines("docker0") && is_engines("docker_gwbridge") && is_engines("br-0123456789ab") && is_engines("veth12ab")
        );
        assert!(!is_engines("eth0") && !is_engines("br0") && !is_engines("br-lan") && !is_engines("enp3s0"));
    }
}
