//! Veths of containers: made with one end in the mesh namespace and routed at once, so that the container is reachable
//! before the next reconcile. Names follow from addresses. Knows nothing of containers.

use anyhow::Context;
use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use super::mesh::{self, Action, Mesh, MeshStep, Route, Rule, Target, base, wire};
use super::netlink::gone_is_fine;
use super::{Links, netns, sysctl};
use crate::model::mesh::gateway;

/// The two rules of a network.
#[must_use]
pub fn rules(subnet: Ipv4Net) -> [Rule; 2] {
    let table = Action::Table(mesh::table_of(subnet));
    let net = Some(IpNet::V4(subnet.trunc()));
    [
        Rule { v6: false, priority: base::FROM_NETWORK, from: net, to: None, iif: None, action: table.clone() },
        Rule { v6: false, priority: base::OWN_TO_NETWORK, from: None, to: net, iif: Some("lo".to_owned()), action: table },
    ]
}

/// The route in a network's table that makes an address of this namespace reachable from the network.
#[must_use]
pub fn own_route(subnet: Ipv4Net, address: Ipv4Addr) -> Route {
    Route { table: mesh::table_of(subnet), to: IpNet::from(IpAddr::V4(address)), target: Target::Local }
}

/// The route in a network's table to a member, by a device.
#[must_use]
pub fn member_route(subnet: Ipv4Net, address: Ipv4Addr, device: String) -> Route {
    Route { table: mesh::table_of(subnet), to: IpNet::from(IpAddr::V4(address)), target: Target::Device(device) }
}

/// What a new veth needs, in order: closed for IPv6, gateway, up, then the routes, then the rules that lead to them.
fn steps(subnet: Ipv4Net, address: Ipv4Addr) -> Vec<MeshStep> {
    let end = mesh::mesh_end(address);
    let gateway = gateway(subnet);
    let mut steps = vec![
        // The gateway on the veth itself: else the kernel asks for the container's MAC in the name of some other network's gateway.
        MeshStep::AddAddress(end.clone(), gateway.into()),
        MeshStep::AddAddress("lo".to_owned(), gateway.into()),
        MeshStep::Up(end.clone()),
        MeshStep::SetRoute(own_route(subnet, gateway)),
        MeshStep::SetRoute(member_route(subnet, address, end)),
    ];
    steps.extend(rules(subnet).map(MeshStep::AddRule));
    steps
}

#[async_trait]
impl Links for Mesh {
    async fn attach(&self, subnet: Ipv4Net, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        anyhow::ensure!(subnet.contains(&address), "address {address} is not of the network {subnet}");
        anyhow::ensure!(address != gateway(subnet), "address {address} is the gateway of the network {subnet}");
        let _turn = self.turn().await;
        let (mesh_end, container_end) = (mesh::mesh_end(address), mesh::container_end(address));
        self.make_pair(&mesh_end, &container_end, mtu)
            .await
            .with_context(|| format!("cannot make the veth of {address} ({mesh_end} in {})", self.pin().display()))?;
        self.apply(&steps(subnet, address)).await?;
        tracing::info!(%address, %subnet, mtu, link = mesh_end, "attached");
        self.send_probe();
        Ok(container_end)
    }

    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        let _turn = self.turn().await;
        let end = mesh::mesh_end(address);
        self.delete(&end)
            .await
            .with_context(|| format!("cannot remove the veth of {address} ({end} in {})", self.pin().display()))?;
        tracing::info!(%address, link = end, "detached");
        self.send_probe();
        Ok(())
    }
}

impl Mesh {
    /// Makes the pair anew: one that an earlier endpoint of this address left belongs to nobody any more.
    async fn make_pair(&self, mesh_end: &str, container_end: &str, mtu: u32) -> io::Result<()> {
        let pair = || Message::NewLink(wire::veth(mesh_end, container_end, self.host.as_fd(), mtu));
        if let Err(error) = self.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await {
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(error);
            }
            self.delete(mesh_end).await?;
            gone_is_fine(self.host_netlink.change(Message::DelLink(wire::link_named(container_end)), 0).await)?;
            self.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await?;
        }
        // Before it is up: the mesh end never has an IPv6 address, so IPv6 from a container meets nothing.
        netns::run(self.fd(), || sysctl::write(&mesh::ipv6_switch(mesh_end), "1"))?
    }

    async fn delete(&self, mesh_end: &str) -> io::Result<()> {
        gone_is_fine(self.netlink.change(Message::DelLink(wire::link_named(mesh_end)), 0).await)
    }
}
