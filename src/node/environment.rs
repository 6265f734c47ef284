//! What every part of the node uses: settings, files, clock, engine, and the state that outlives a membership. Knows no
//! membership.

use super::host_addresses;
use super::key_files;
use super::keyring::Keyring;
use super::links::{CurrentLinks, CurrentSandboxes};
use super::state_dir::StateDir;
use super::supervisor::{Blockers, Supervisor};
use crate::clock::Clock;
use crate::datapath::{Sandbox, tunnel};
use crate::model::node::NodeDescription;
use crate::model::{NodeId, WgKey};
use crate::overlay::MtuChannels;
use crate::overlay::driver::Driver;
use crate::overlay::driver::attachments::Attachments;
use crate::runtime::{DockerEngine, Engine};
use crate::settings::Settings;
use crate::store::FEATURE_LEVELS;
use crate::trust::{CertificateFiles, PayloadVault, TunnelKeys};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Time for the engine to describe the host.
const DESCRIBE: Duration = Duration::from_secs(5);

pub(super) struct Environment {
    pub settings: Settings,
    pub state_dir: StateDir,
    /// The keys of a manager's files, while the swarm locks its managers.
    pub keyring: Arc<Keyring>,
    /// The WireGuard keys as last read.
    pub tunnel_keys: TunnelKeys,
    /// The files of the node's identity.
    pub certificates: CertificateFiles,
    pub clock: Arc<dyn Clock>,
    pub engine: Arc<dyn Engine>,
    pub docker: Arc<DockerEngine>,
    pub links: Arc<CurrentLinks>,
    pub sandboxes: Arc<CurrentSandboxes>,
    /// Network namespaces of containers on overlay networks, from the driver.
    pub joined: watch::Receiver<Vec<Sandbox>>,
    pub driver: Arc<Driver>,
    /// Addresses of plain containers, from the driver.
    pub attachments: Arc<Attachments>,
    /// What of the daemon does not run.
    pub blockers: Blockers,
    /// Notified when the membership must be started again.
    pub failed: Arc<Notify>,
    /// MTUs of the overlay, published by its loop.
    pub mtus: MtuChannels,
    /// The eBPF datapath accepts packets of published ports from other nodes; set when the datapath is opened.
    pub takes_ports: AtomicBool,
}

impl Environment {
    /// The host's description for the managers; without an engine that answers, only what the kernel reports.
    pub(super) async fn description(&self) -> NodeDescription {
        match self.describe().await {
            Some(description) => description,
            None => self.without_engine(),
        }
    }

    /// What the engine says of the host; `None` if it does not answer within [`DESCRIBE`].
    pub(super) async fn describe(&self) -> Option<NodeDescription> {
        let described = tokio::time::timeout(DESCRIBE, self.engine.describe()).await.ok()?.ok()?;
        let ebpf_datapath = self.takes_ports.load(Ordering::Relaxed);
        Some(NodeDescription { ebpf_datapath, feature_levels: Some(FEATURE_LEVELS), ..described })
    }

    /// As [`Self::describe`], for the reports of a member: with the host's addresses.
    pub(super) async fn report(&self) -> Option<NodeDescription> {
        Some(NodeDescription { addresses: host_addresses::reported().await, ..self.describe().await? })
    }

    /// What the kernel says of the host.
    pub(super) fn without_engine(&self) -> NodeDescription {
        let uname = rustix::system::uname();
        NodeDescription {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            os: "linux".to_owned(),
            ebpf_datapath: self.takes_ports.load(Ordering::Relaxed),
            feature_levels: Some(FEATURE_LEVELS),
            ..NodeDescription::default()
        }
    }

    /// Public half of the tunnel's key; generates the key if there is none.
    pub(super) fn tunnel_key(&self) -> anyhow::Result<WgKey> {
        let path = self.state_dir.tunnel_key();
        if path.exists() { tunnel::public_key(&path) } else { tunnel::generate_key(&path) }
    }

    /// What this node, as a manager, opens the contents of secrets and configs with: the private half of the tunnel's key.
    ///
    /// # Errors
    /// The key cannot be read.
    pub(super) fn vault(&self, me: &NodeId) -> anyhow::Result<Arc<PayloadVault>> {
        self.read_tunnel_keys()?;
        Ok(Arc::new(PayloadVault::new(me.clone(), self.tunnel_keys.clone())))
    }

    /// Reads the WireGuard keys again: all that share them see these then.
    ///
    /// # Errors
    /// They cannot be read.
    pub(super) fn read_tunnel_keys(&self) -> anyhow::Result<()> {
        self.tunnel_keys.set(key_files::private_keys(&self.state_dir)?);
        Ok(())
    }

    /// Removes everything of a membership; missing files are no error.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub(super) fn forget(&self) -> anyhow::Result<()> {
        self.state_dir.forget()?;
        super::backup_contents::remove(&self.settings.run_dir)?;
        self.keyring.forget();
        Ok(())
    }

    /// For what runs with or without a membership.
    pub(super) fn daemon_supervisor(&self) -> Supervisor {
        Supervisor::new(self.blockers.of_daemon(), self.failed.clone())
    }

    /// For the loops of one membership.
    pub(super) fn supervisor(&self) -> Supervisor {
        Supervisor::new(self.blockers.clone(), self.failed.clone())
    }

    /// Time between reconciliations without a change.
    pub(super) fn reconcile_tick(&self) -> Duration {
        Duration::from_millis(self.settings.timeouts.reconcile_ms)
    }
}
