//! The demo's hosts.

use super::requests;
use crate::lab::{Host, Lab};
use anyhow::Context as _;
use std::path::PathBuf;

/// Three nodes, and a client outside the swarm, on one bridge.
pub(super) struct DemoCluster {
    pub lab: Lab,
    pub nodes: Vec<Host>,
    pub client: Host,
}

impl DemoCluster {
    /// Stops all hosts and removes their files.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        for node in &self.nodes {
            // The daemon removes what it has set up first: containers, networks, tunnel, namespace.
            let _ = requests::leave(node).await;
        }
        let mut stops = tokio::task::JoinSet::new();
        for host in self.nodes.into_iter().chain([self.client]) {
            stops.spawn(host.stop());
        }
        stops.join_all().await;
        self.lab.stop().await
    }
}

/// The program that the hosts run as their daemon: this one.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the file of this program")
}
