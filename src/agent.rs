//! This node's share of the cluster: makes the node's containers what the view says, and reports what became of them.
//! Sees only the view, an [`Engine`] and a clock; where views come from and reports go to is not its business.
//!
//! [`plan`] decides (pure), [`core`] remembers (sans-IO), [`shell`] does and waits, [`ledger`] keeps the view on disk.

use crate::model::NodeId;
use crate::runtime::{Engine, EngineError};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;

pub mod core;
pub mod ledger;
pub mod plan;
pub mod shell;
pub mod task_record;

#[cfg(test)]
mod core_tests;
#[cfg(test)]
mod ledger_tests;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
mod sim_tests;
#[cfg(test)]
mod testing;

pub use shell::run;

/// Settings of the agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// This node.
    pub me: NodeId,
    /// Path of the engine's own socket; a task's bind mount of it …
    pub engine_socket: PathBuf,
    /// … gets this one instead. `None` leaves such mounts alone.
    pub skep_socket: Option<PathBuf>,
    /// MTU of the overlay in bytes, as it is now.
    pub mtu: watch::Receiver<u32>,
    /// Containers and networks that this run never saw in a view stay for so long after the first view, because that one
    /// may be an old one from the ledger.
    pub stranger_grace: Duration,
    /// Steps on containers at the same time.
    pub steps: usize,
    /// Images fetched at the same time.
    pub pulls: usize,
}

impl AgentConfig {
    /// With the usual bounds.
    #[must_use]
    pub fn new(me: NodeId, engine_socket: PathBuf, skep_socket: Option<PathBuf>, mtu: watch::Receiver<u32>) -> Self {
        Self { me, engine_socket, skep_socket, mtu, stranger_grace: Duration::from_secs(10), steps: 16, pulls: 4 }
    }
}

/// Attempts of [`remove_all`] at what is busy.
const ATTEMPTS: u32 = 40;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(250);

/// Removes every container with our node label and every network of our driver: what `leave` does to the engine.
///
/// # Errors
/// The engine does not answer or refuses; what was left is named.
pub async fn remove_all(me: &NodeId, engine: &dyn Engine) -> anyhow::Result<()> {
    use anyhow::Context as _;
    use futures_util::stream::{StreamExt as _, TryStreamExt as _};
    let containers = engine.list(me).await.context("cannot list this node's containers")?;
    futures_util::stream::iter(containers)
        .map(|container| async move {
            // With the grace that the task asked for; a stop that fails does not keep the container from going.
            if let Err(error) = engine.stop(&container.id, None).await {
                tracing::warn!(container = %container.id, %error, "could not stop a container, removing it by force");
            }
            patiently(|| engine.remove(&container.id)).await.with_context(|| format!("cannot remove container {}", container.id))
        })
        .buffer_unordered(8)
        .try_collect::<Vec<()>>()
        .await?;
    for network in engine.networks().await.context("cannot list the overlay networks on this node's engine")? {
        patiently(|| engine.remove_network(&network.id)).await.with_context(|| {
            format!(
                "cannot remove network {} from this node's engine (docker network inspect {0} names its containers)",
                network.name
            )
        })?;
    }
    Ok(())
}

async fn patiently<F: Future<Output = Result<(), EngineError>>>(mut call: impl FnMut() -> F) -> Result<(), EngineError> {
    let mut attempt = 0;
    loop {
        match call().await {
            Err(EngineError::Busy(_)) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
