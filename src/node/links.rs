//! The driver answers the engine as soon as the daemon starts, while the mesh namespace exists only during a membership:
//! these forward to it while it exists.

use crate::datapath::ebpf::EbpfDatapath;
use crate::datapath::{LinkNetwork, Links, Sandbox, Sandboxes, mesh::Mesh};
use crate::sync::{read, write};
use async_trait::async_trait;
use std::net::Ipv4Addr;
use std::sync::{Arc, RwLock};

/// The links of the mesh namespace, while there is one.
#[derive(Default)]
pub(super) struct CurrentLinks(RwLock<Option<Arc<Mesh>>>);

impl CurrentLinks {
    pub(super) fn set(&self, mesh: Option<Arc<Mesh>>) {
        *write(&self.0) = mesh;
    }
    fn get(&self) -> Option<Arc<Mesh>> {
        read(&self.0).clone()
    }
}

#[async_trait]
impl Links for CurrentLinks {
    async fn attach_to(&self, network: LinkNetwork, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        let Some(mesh) = self.get() else {
            anyhow::bail!("this node is in no swarm: no overlay network has the address {address}");
        };
        mesh.attach_to(network, address, mtu).await
    }
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        match self.get() {
            Some(mesh) => mesh.detach(address).await,
            // The links were removed with the namespace.
            None => Ok(()),
        }
    }
}

/// The eBPF datapath, while there is one.
#[derive(Default)]
pub(super) struct CurrentSandboxes(RwLock<Option<Arc<EbpfDatapath>>>);

impl CurrentSandboxes {
    pub(super) fn set(&self, ebpf: Option<Arc<EbpfDatapath>>) {
        *write(&self.0) = ebpf;
    }
}

#[async_trait]
impl Sandboxes for CurrentSandboxes {
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let ebpf = read(&self.0).clone();
        match ebpf {
            Some(ebpf) => ebpf.enter(sandbox).await,
            None => Ok(()),
        }
    }
}
