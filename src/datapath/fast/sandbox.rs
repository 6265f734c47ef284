//! A container's own network namespace: its cookie, and the routes that answers to clients of published ports need.
#![allow(unsafe_code, reason = "the cookie of a namespace is a socket option that no crate offers")]

use super::Fast;
use crate::datapath::netlink::{Netlink, exists_is_fine};
use crate::datapath::{Sandbox, Sandboxes, netns};
use anyhow::Context as _;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use skep_ebpf::Member;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

/// Not in the headers of the libc crate.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// Table of the route that answers take, and priority of the rule that leads to it.
const TABLE: u32 = 2377;
const PRIORITY: u32 = 2377;

/// The network of published ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ingress {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Largest packet that fits into the tunnel after translation or encapsulation.
    pub mtu: u32,
}

/// The cookie of the network namespace at `path`.
///
/// # Errors
/// It is gone, or this daemon does not see the engine's files.
pub fn cookie(path: &Path) -> io::Result<u64> {
    let namespace = File::open(path)?;
    netns::briefly(namespace.as_fd(), || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        let mut cookie = 0_u64;
        let mut size = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open; the option writes `size` bytes at the pointer, which are those of `cookie`.
        let done = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut size)
        };
        if done == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
    })
}

impl Fast {
    /// Says which network published ports use, and the MTU of the tunnel.
    pub fn set_ingress(&self, subnet: Option<Ipv4Net>, tunnel_mtu: u32) {
        // Room for an IPv6 header before an IPv4 packet.
        let ingress = subnet.map(|subnet| Ingress { subnet: subnet.trunc(), mtu: tunnel_mtu.saturating_sub(40) });
        *self.ingress.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ingress;
    }
}

#[async_trait]
impl Sandboxes for Fast {
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let shown = sandbox.path.display();
        let cookie = cookie(&sandbox.path).with_context(|| format!("cannot look into the container's namespace {shown}"))?;
        let member = Member { cookie, network: sandbox.subnet.network().octets(), zero: 0 };
        self.loaded().change(&super::Step::AddMember(member))?;
        let ingress = *self.ingress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(ingress) = ingress.filter(|i| i.subnet == sandbox.subnet.trunc()) {
            route_answers(sandbox, ingress.mtu).await.with_context(|| format!("cannot route answers in {shown}"))?;
        }
        Ok(())
    }
}

/// What is sent from the container's address on `ingress` goes to that network's gateway, wherever it goes.
async fn route_answers(sandbox: &Sandbox, mtu: u32) -> anyhow::Result<()> {
    let namespace = File::open(&sandbox.path)?;
    let runtime = tokio::runtime::Handle::current();
    let netlink = netns::run(namespace.as_fd(), || {
        let _context = runtime.enter();
        Netlink::open()
    })??;
    let index = device_of(&netlink, sandbox.address).await?;
    netlink.change(Message::NewRoute(answers(sandbox, index, mtu)), NLM_F_CREATE | NLM_F_REPLACE).await?;
    Ok(exists_is_fine(netlink.change(Message::NewRule(rule(sandbox.address)), NLM_F_CREATE | NLM_F_EXCL).await)?)
}

async fn device_of(netlink: &Netlink, address: Ipv4Addr) -> anyhow::Result<u32> {
    for message in netlink.dump(Message::GetAddress(AddressMessage::default())).await? {
        let Message::NewAddress(message) = message else { continue };
        let local = AddressAttribute::Local(IpAddr::V4(address));
        if message.attributes.contains(&local) {
            return Ok(message.header.index);
        }
    }
    anyhow::bail!("no device has the address {address}")
}

fn answers(sandbox: &Sandbox, index: u32, mtu: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.header.flags = RouteFlags::Onlink;
    message.attributes = vec![
        RouteAttribute::Table(TABLE),
        RouteAttribute::Gateway(RouteAddress::Inet(sandbox.gateway)),
        RouteAttribute::Oif(index),
        RouteAttribute::PrefSource(RouteAddress::Inet(sandbox.address)),
        RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]),
    ];
    message
}

fn rule(address: Ipv4Addr) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.src_len = 32;
    message.header.action = RuleAction::ToTable;
    message.attributes =
        vec![RuleAttribute::Priority(PRIORITY), RuleAttribute::Source(IpAddr::V4(address)), RuleAttribute::Table(TABLE)];
    message
}
