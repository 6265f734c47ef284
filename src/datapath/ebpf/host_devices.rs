//! Devices and addresses that the eBPF datapath uses: uplinks of the host, the veth pair between host and mesh, the mesh
//! ends of containers' veths, the tunnel device. Creates the pair, reads the others.

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;

use super::filters;
use super::programs::has_tcx;
use super::uplinks::{Attaching, HostDevice, Uplinks, uplinks};
use crate::datapath::mesh::{Mesh, TUNNEL, address_of, ipv6_switch, wire};
use crate::datapath::netlink::{ignore_existing, ignore_missing};
use crate::datapath::{netns, sysctl};

/// Name of the host end of the pair.
pub const HOST_END: &str = "skeph";
/// Name of the mesh end of the pair.
pub const MESH_END: &str = "skepm";
const MTU: u32 = 1500;

/// The devices as observed, by interface index.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HostDevices {
    pub host_end: Option<u32>,
    pub mesh_end: Option<u32>,
    pub tunnel: Option<u32>,
    /// Devices that clients are reached by, with their indexes.
    pub uplinks: BTreeMap<String, u32>,
    /// Devices with an address whose clients only the userspace datapath serves, and why.
    pub unserved: BTreeMap<String, String>,
    /// Addresses of the uplinks, without link-local ones.
    pub locals: BTreeSet<IpAddr>,
    /// Mesh ends of containers' veths by the container's address, with their names and indexes.
    pub veths: BTreeMap<Ipv4Addr, (String, u32)>,
}

/// Creates the pair, or adopts and corrects an existing one. The alias of the host end names its owner, a run directory.
pub(super) async fn make_pair(mesh: &Mesh, owner: &str) -> anyhow::Result<()> {
    let pair = || Message::NewLink(wire::veth(MESH_END, HOST_END, mesh.host.as_fd(), MTU));
    ignore_existing(mesh.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await)?;
    if mesh.netlink.change(Message::GetLink(wire::link_named(MESH_END)), 0).await.is_err() {
        // The host end exists, but its peer is not in this mesh namespace. A run directory has one daemon, so a pair of this
        // owner is a leftover whose mesh namespace no longer exists.
        anyhow::ensure!(
            owner_of_pair(mesh).await?.as_deref() == Some(owner),
            "this host has a {HOST_END} of another skep: `ip link del {HOST_END}` if that one is gone"
        );
        ignore_missing(mesh.host_netlink.change(Message::DelLink(wire::link_named(HOST_END)), 0).await)?;
        mesh.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await?;
    }
    mesh.host_netlink.change(Message::SetLink(wire::link_note(HOST_END, owner)), 0).await?;
    // No IPv6 on either end: the kernel would send neighbour discovery over the pair.
    netns::briefly(mesh.fd(), || sysctl::write(&ipv6_switch(MESH_END), "1"))?;
    netns::briefly(mesh.host.as_fd(), || sysctl::write(&ipv6_switch(HOST_END), "1"))?;
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

/// Reads the devices of both namespaces.
pub(super) async fn read(mesh: &Mesh) -> anyhow::Result<HostDevices> {
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
    let shaped = if has_tcx() { BTreeSet::new() } else { filters::foreign_ingress(&mesh.host_netlink).await? };
    let mut devices = BTreeMap::new();
    for message in mesh.host_netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        let Some((name, link)) = wire::read_link(&message) else { continue };
        if name == HOST_END {
            all.host_end = Some(link.index);
        } else {
            devices.insert(link.index, host_device(name, &message, link.up, shaped.contains(&link.index)));
        }
    }
    let addresses = mesh.host_netlink.dump(Message::GetAddress(AddressMessage::default())).await?;
    let read = |message: &Message| if let Message::NewAddress(message) = message { wire::read_address(message) } else { None };
    let addresses: Vec<(u32, IpAddr)> = addresses.iter().filter_map(read).collect();
    let Uplinks { served, unserved, locals } = uplinks(&devices, &addresses);
    (all.uplinks, all.unserved, all.locals) = (served, unserved, locals);
    Ok(all)
}

/// Hardware addresses of the host's Ethernet devices, by index.
pub(super) async fn hardware_addresses(mesh: &Mesh) -> anyhow::Result<BTreeMap<u32, [u8; 6]>> {
    let mut all = BTreeMap::new();
    for message in mesh.host_netlink.dump(Message::GetLink(LinkMessage::default())).await? {
        let Message::NewLink(message) = message else { continue };
        let address = message.attributes.iter().find_map(|a| if let LinkAttribute::Address(mac) = a { Some(mac) } else { None });
        let address = address.and_then(|mac| <[u8; 6]>::try_from(mac.as_slice()).ok());
        all.extend(address.map(|mac| (message.header.index, mac)));
    }
    Ok(all)
}

fn host_device(name: String, message: &LinkMessage, up: bool, foreign_ingress: bool) -> HostDevice {
    let master =
        message.attributes.iter().find_map(|a| if let LinkAttribute::Controller(index) = a { Some(*index) } else { None });
    let is_vrf = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::LinkInfo(all) if all.contains(&LinkInfo::Kind(InfoKind::Vrf)));
    let attaching = match message.header.link_layer_type {
        LinkLayerType::Ether if foreign_ingress => Attaching::ForeignIngress,
        LinkLayerType::Ether => Attaching::Possible,
        _ => Attaching::NoEthernet,
    };
    HostDevice {
        name,
        attaching,
        up,
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        master: master.filter(|index| *index != 0),
        vrf: message.attributes.iter().any(is_vrf),
    }
}
