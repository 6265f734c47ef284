//! Prepares a container's network namespace for virtual addresses and published ports.

use super::datapath::EbpfDatapath;
use super::netns_cookie::cookie_of;
use super::return_routes;
use super::step::EbpfStep;
use crate::datapath::{Sandbox, Sandboxes, netns};
use anyhow::Context as _;
use async_trait::async_trait;
use skep_ebpf::{NetnsMembership, V4, convert};
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

/// The cookie of the network namespace at `path`.
///
/// # Errors
/// The namespace no longer exists, or this daemon does not see the engine's files.
pub fn cookie(path: &Path) -> io::Result<u64> {
    cookie_of(netns::of_container(path)?.as_fd())
}

/// The entries of a container's namespace for one of its networks, with the value of each.
#[must_use]
pub fn memberships(sandbox: &Sandbox, cookie: u64) -> [(NetnsMembership, V4); 2] {
    let network = NetnsMembership { cookie, network: convert::v4(sandbox.subnet.network()), zero: 0 };
    // First the one that says what the other one is for.
    [(network, convert::v4(sandbox.address)), (NetnsMembership::any(cookie), 0)]
}

#[async_trait]
impl Sandboxes for EbpfDatapath {
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let shown = sandbox.path.display();
        let cookie =
            cookie(&sandbox.path).with_context(|| format!("cannot read the cookie of the container's namespace {shown}"))?;
        for (member, address) in memberships(sandbox, cookie) {
            self.loaded().change(&EbpfStep::AddMember(member, address))?;
        }
        if let Some(path) = self.ingress().and_then(|ingress| ingress.return_path(sandbox)) {
            let routed = return_routes::configure(sandbox, &path).await;
            routed.with_context(|| format!("cannot configure the return routes in {shown}"))?;
        }
        Ok(())
    }
}
