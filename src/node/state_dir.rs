//! What a node remembers of its membership over restarts, beside keys and ledger: `<data-dir>/node.json`.

use crate::durable;
use crate::model::{ClusterId, NodeId, Role, mesh::MeshPrefix};
use anyhow::Context as _;
use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Number of the file's format.
const FORMAT: u32 = 1;

/// A membership.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct MembershipFile {
    format: u32,
    pub node_id: NodeId,
    pub role: Role,
    pub cluster_id: ClusterId,
    pub mesh: MeshPrefix,
    pub subnet: Ipv6Net,
    pub ingress_addr: Ipv4Addr,
    /// TCP: join and certificates.
    pub listen: SocketAddr,
    /// UDP: the tunnel.
    pub data_path_port: u16,
    /// What others reach this node at; `None`: whatever the manager saw.
    pub advertise: Option<IpAddr>,
    /// Place in raft, on managers.
    pub raft_id: Option<u64>,
}

impl MembershipFile {
    #[expect(clippy::too_many_arguments, reason = "the fields of a file, named where it is made")]
    pub(super) fn new(
        node_id: NodeId,
        role: Role,
        cluster_id: ClusterId,
        mesh: MeshPrefix,
        subnet: Ipv6Net,
        ingress_addr: Ipv4Addr,
        place: &super::address::Place,
        raft_id: Option<u64>,
    ) -> Self {
        Self {
            format: FORMAT,
            node_id,
            role,
            cluster_id,
            mesh,
            subnet,
            ingress_addr,
            listen: place.listen,
            data_path_port: place.data_path_port,
            advertise: place.advertise,
            raft_id,
        }
    }

    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("node.json")
    }

    /// Reads the record; `None` outside a swarm.
    pub(super) fn load(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(data_dir);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let record: Self = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged: restore it from a backup, or move {} away and join again", path.display(), data_dir.display())
        })?;
        anyhow::ensure!(
            record.format == FORMAT,
            "{} has format {}, this skep reads format {FORMAT}: install the newer skep again",
            path.display(),
            record.format
        );
        Ok(Some(record))
    }

    pub(super) fn store(&self, data_dir: &Path) -> anyhow::Result<()> {
        let path = Self::path(data_dir);
        durable::replace(&path, &serde_json::to_vec_pretty(self)?).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Forgets the membership: record, keys, log, ledger. What is gone already is fine.
pub(super) fn forget(data_dir: &Path) -> anyhow::Result<()> {
    // The record goes first: without it the rest is litter that the next membership replaces.
    for name in ["node.json", "ledger.json", "endpoints.json", "tunnel.key"] {
        match std::fs::remove_file(data_dir.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {name} in {}", data_dir.display()));
            }
            _ => {}
        }
    }
    for name in ["certificates", "certificates.new", "raft"] {
        match std::fs::remove_dir_all(data_dir.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {name} in {}", data_dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
