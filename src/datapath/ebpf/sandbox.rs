//! A container's own network namespace: its cookie, and who enters it.
#![allow(unsafe_code, reason = "the cookie of a namespace is a socket option that no crate offers")]

use super::{EbpfDatapath, return_routes};
use crate::datapath::{Sandbox, Sandboxes, netns};
use crate::model::mesh::MeshPrefix;
use anyhow::Context as _;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use skep_ebpf::{NetnsMembership, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::PoisonError;

/// Not in the headers of the libc crate.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// The network of published ports, as its containers' namespaces need to know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ingress {
    /// Its subnet.
    pub subnet: Ipv4Net,
    /// Largest packet that fits into the tunnel after translation or encapsulation.
    pub mtu: u32,
    /// The cluster: gives a container its IPv6 address.
    pub mesh: MeshPrefix,
    /// Published UDP ports inside the containers, by the container's address: a server that binds all addresses would answer
    /// from the engine's bridge otherwise.
    pub datagrams: BTreeMap<Ipv4Addr, BTreeSet<u16>>,
}

/// The cookie of the network namespace at `path`.
///
/// # Errors
/// It is gone, or this daemon does not see the engine's files.
pub fn cookie(path: &Path) -> io::Result<u64> {
    let namespace = netns::of_container(path)?;
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

impl EbpfDatapath {
    /// Says which network published ports use.
    pub fn set_ingress(&self, ingress: Option<Ingress>) {
        *self.ingress.lock().unwrap_or_else(PoisonError::into_inner) = ingress;
    }
}

#[async_trait]
impl Sandboxes for EbpfDatapath {
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let shown = sandbox.path.display();
        let cookie = cookie(&sandbox.path).with_context(|| format!("cannot look into the container's namespace {shown}"))?;
        let member = NetnsMembership { cookie, network: convert::v4(sandbox.subnet.network()), zero: 0 };
        self.loaded().change(&super::Step::AddMember(member))?;
        let ingress = self.ingress.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(ingress) = ingress.filter(|i| i.subnet == sandbox.subnet.trunc()) {
            return_routes::route(sandbox, &ingress).await.with_context(|| format!("cannot route answers in {shown}"))?;
        }
        Ok(())
    }
}
