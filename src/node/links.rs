//! The driver answers the engine from the first moment on, the mesh namespace comes with a membership: this stands between.

use crate::datapath::ebpf::EbpfDatapath;
use crate::datapath::{Links, Sandbox, Sandboxes, mesh::Mesh};
use async_trait::async_trait;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::sync::{Arc, RwLock};

/// Links of the mesh namespace, as long as there is one.
#[derive(Default)]
pub(super) struct LateLinks(RwLock<Option<Arc<Mesh>>>);

impl LateLinks {
    pub(super) fn set(&self, mesh: Option<Arc<Mesh>>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = mesh;
    }
    fn get(&self) -> Option<Arc<Mesh>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// The eBPF datapath, as long as there is one.
#[derive(Default)]
pub(super) struct LateSandboxes(RwLock<Option<Arc<EbpfDatapath>>>);

impl LateSandboxes {
    pub(super) fn set(&self, ebpf: Option<Arc<EbpfDatapath>>) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = ebpf;
    }
}

#[async_trait]
impl Sandboxes for LateSandboxes {
    async fn enter(&self, sandbox: &Sandbox) -> anyhow::Result<()> {
        let ebpf = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        match ebpf {
            Some(ebpf) => ebpf.enter(sandbox).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl Links for LateLinks {
    async fn attach(&self, subnet: Ipv4Net, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        let Some(mesh) = self.get() else {
            anyhow::bail!("this node is in no swarm: {address} has no overlay network to be on");
        };
        mesh.attach(subnet, address, mtu).await
    }
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        match self.get() {
            Some(mesh) => mesh.detach(address).await,
            // With the namespace all its links are gone.
            None => Ok(()),
        }
    }
}
