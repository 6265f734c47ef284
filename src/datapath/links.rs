//! Veths of containers: created with one end in the mesh namespace and routed at once, so that the container is reachable
//! before the next reconcile. Names are derived from addresses. Knows nothing of containers.

use anyhow::Context;
use async_trait::async_trait;
use ipnet::{IpNet, Ipv4Net};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;

use super::mesh::{self, Mesh, MeshRoute, MeshRule, MeshStep, RouteTarget, RuleAction, base, wire};
use super::netlink::ignore_missing;
use super::{LinkNetwork, Links, links6, netns, sysctl};

/// The rules that refer to a network's routing table for one of its subnets, in the order of adding them.
#[must_use]
pub fn rules(subnet: Ipv4Net, table: u32) -> Vec<MeshRule> {
    let mut rules = base::from_network(subnet, table);
    rules.push(MeshRule {
        v6: false,
        priority: base::OWN_TO_NETWORK,
        from: None,
        to: Some(IpNet::V4(subnet.trunc())),
        iif: Some("lo".to_owned()),
        action: RuleAction::Table(table),
    });
    rules
}

/// The route in a network's table that makes an address of this namespace reachable from the network.
#[must_use]
pub fn own_route(table: u32, address: Ipv4Addr) -> MeshRoute {
    MeshRoute { table, to: IpNet::from(IpAddr::V4(address)), target: RouteTarget::Local, mtu: None }
}

/// The route in a network's table to a member, by a device.
#[must_use]
pub fn member_route(table: u32, address: Ipv4Addr, device: String) -> MeshRoute {
    let to = IpNet::from(IpAddr::V4(address));
    MeshRoute { table, to, target: RouteTarget::Device(device), mtu: None }
}

/// The configuration of a new veth, in order: gateway, up, then the routes, then the rules that refer to their table.
fn steps(network: LinkNetwork, address: Ipv4Addr) -> Vec<MeshStep> {
    let LinkNetwork { first, subnet, gateway, v6 } = network;
    let (end, table) = (mesh::mesh_end(address), mesh::table_of(first));
    let (before6, after6) = v6.map(|v6| links6::steps(table, subnet, v6, address)).unwrap_or_default();
    let mut steps = before6;
    steps.extend([
        // The gateway on the veth itself: otherwise the source of the kernel's ARP request for the container's MAC would be the
        // gateway of some other network.
        MeshStep::AddAddress(end.clone(), gateway.into()),
        MeshStep::AddAddress("lo".to_owned(), gateway.into()),
        MeshStep::Up(end.clone()),
        MeshStep::SetRoute(own_route(table, gateway)),
        MeshStep::SetRoute(member_route(table, address, end)),
    ]);
    steps.extend(rules(subnet, table).into_iter().map(MeshStep::AddRule));
    steps.extend(after6);
    steps
}

#[async_trait]
impl Links for Mesh {
    async fn attach_to(&self, network: LinkNetwork, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        let LinkNetwork { subnet, gateway, v6, .. } = network;
        anyhow::ensure!(subnet.contains(&address), "address {address} is not in the network {subnet}");
        anyhow::ensure!(address != gateway, "address {address} is the gateway of the network {subnet}");
        let _lock = self.lock().await;
        let (mesh_end, container_end) = (mesh::mesh_end(address), mesh::container_end(address));
        let created = self.create_pair(&mesh_end, &container_end, mtu, v6.is_some()).await;
        self.note_veth(&mesh_end, v6.is_some()).await;
        created.with_context(|| format!("cannot create the veth of {address} ({mesh_end} in {})", self.pin().display()))?;
        self.apply(&steps(network, address)).await?;
        tracing::info!(%address, %subnet, mtu, link = mesh_end, "attached");
        self.notify_changed();
        Ok(container_end)
    }

    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        let _lock = self.lock().await;
        let end = mesh::mesh_end(address);
        self.delete(&end)
            .await
            .with_context(|| format!("cannot remove the veth of {address} ({end} in {})", self.pin().display()))?;
        self.note_no_veth(&end);
        tracing::info!(%address, link = end, "detached");
        self.notify_changed();
        Ok(())
    }
}

impl Mesh {
    /// Creates the pair; one that an earlier endpoint of this address left is replaced, since no container uses it any more.
    async fn create_pair(&self, mesh_end: &str, container_end: &str, mtu: u32, ipv6: bool) -> io::Result<()> {
        let pair = || Message::NewLink(wire::veth(mesh_end, container_end, self.host.as_fd(), mtu));
        if let Err(error) = self.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await {
            if error.raw_os_error() != Some(libc::EEXIST) {
                return Err(error);
            }
            self.delete(mesh_end).await?;
            ignore_missing(self.host_netlink.change(Message::DelLink(wire::link_named(container_end)), 0).await)?;
            self.netlink.change(pair(), NLM_F_CREATE | NLM_F_EXCL).await?;
        }
        // Before it is up: on a network without IPv6 the mesh end has no IPv6 address, so that IPv6 from a container is not
        // processed.
        netns::briefly(self.fd(), || sysctl::write(&mesh::ipv6_switch(mesh_end), mesh::ipv6_disabled(ipv6)))
    }

    async fn delete(&self, mesh_end: &str) -> io::Result<()> {
        ignore_missing(self.netlink.change(Message::DelLink(wire::link_named(mesh_end)), 0).await)
    }
}
