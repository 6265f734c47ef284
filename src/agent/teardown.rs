//! Removes this node's containers and networks from the engine, for a node that leaves its cluster. Plain containers are
//! disconnected and run on.

use crate::model::NodeId;
use crate::runtime::{Engine, EngineError, deadlines, task_files};
use anyhow::Context as _;
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use std::path::Path;
use std::time::Duration;

/// Attempts to remove an object that is in use.
const ATTEMPTS: u32 = 40;
/// Time between them.
const PAUSE: Duration = Duration::from_millis(250);

/// Removes every container with this node's label, the files of all tasks, and every network of skep's driver.
///
/// # Errors
/// The engine does not answer or refuses; the error names the object.
pub async fn remove_all(me: &NodeId, engine: &dyn Engine, files: &Path) -> anyhow::Result<()> {
    let containers = deadlines::list(engine, me).await.context("cannot list this node's containers")?;
    futures_util::stream::iter(containers)
        .map(|container| async move {
            // With the task's own grace period; a container that cannot be stopped is removed by force.
            if let Err(error) = engine.stop(&container.id, None).await {
                tracing::warn!(container = %container.id, %error, "could not stop a container, removing it by force");
            }
            retry_while_busy(|| engine.remove(&container.id))
                .await
                .with_context(|| format!("cannot remove container {}", container.id))
        })
        .buffer_unordered(8)
        .try_collect::<Vec<()>>()
        .await?;
    let dir = files.to_owned();
    let removed = tokio::task::spawn_blocking(move || task_files::remove_all(&dir)).await?;
    removed.with_context(|| format!("cannot remove {}, the files of this node's tasks", files.display()))?;
    for network in engine.networks().await.context("cannot list the overlay networks on this node's engine")? {
        engine.disconnect_all(&network.id).await.with_context(|| {
            format!("cannot disconnect the containers that are on network {} of this node's engine", network.name)
        })?;
        retry_while_busy(|| engine.remove_network(&network.id)).await.with_context(|| {
            format!(
                "cannot remove network {} from this node's engine (docker network inspect {0} names its containers)",
                network.name
            )
        })?;
    }
    Ok(())
}

async fn retry_while_busy<F: Future<Output = Result<(), EngineError>>>(mut call: impl FnMut() -> F) -> Result<(), EngineError> {
    let mut attempt = 0;
    loop {
        match call().await {
            Err(EngineError::Busy(_)) if attempt < ATTEMPTS => attempt += 1,
            other => return other,
        }
        tokio::time::sleep(PAUSE).await;
    }
}
