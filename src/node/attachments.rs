//! The node's plain containers on networks of the swarm: the view with the addresses that the managers gave, and what the engine
//! says of the containers that have them.

use super::environment::Environment;
use crate::model::{NetworkId, NodeView};
use crate::overlay::driver::PlacedEndpoint;
use crate::runtime::EngineError;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Pause between two looks at containers whose names are not known yet: the engine tells them once they have joined.
const SOON: Duration = Duration::from_millis(250);
/// Pause between two looks at all of them: they may be renamed.
const LATE: Duration = Duration::from_secs(20);

/// Passes each view on.
pub(super) async fn follow(env: Arc<Environment>, mut view: watch::Receiver<Option<Arc<NodeView>>>, stop: CancellationToken) {
    loop {
        let now = view.borrow_and_update().clone();
        if now.is_some() {
            env.attachments.follow(now);
        }
        match stop.run_until_cancelled(view.changed()).await {
            Some(Ok(())) => {}
            Some(Err(_)) | None => return,
        }
    }
}

/// Finds out which containers have the addresses, and gives back those that none has.
pub(super) async fn describe(env: Arc<Environment>, stop: CancellationToken) {
    let mut wanted = env.attachments.wanted();
    let mut joined = env.joined.clone();
    let mut all_at = Instant::now();
    loop {
        let placed = env.driver.placed();
        let endpoints: BTreeSet<(NetworkId, Ipv4Addr)> = placed.iter().map(|e| (e.network.clone(), e.address)).collect();
        env.attachments.sweep(&endpoints).await;
        let all = Instant::now() >= all_at;
        if all {
            all_at = Instant::now() + LATE;
        }
        let networks = env.attachments.to_describe(all);
        if let Err(error) = look(&env, &networks, &placed).await {
            tracing::debug!(%error, "the engine did not describe the containers on networks of the swarm");
        }
        let unknown = !env.attachments.to_describe(false).is_empty();
        let pause = if unknown { SOON } else { all_at.saturating_duration_since(Instant::now()) };
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = joined.changed() => {}
            Ok(()) = wanted.changed(), if !unknown => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn look(env: &Environment, networks: &BTreeSet<NetworkId>, placed: &[PlacedEndpoint]) -> Result<(), EngineError> {
    for network in networks {
        let Some(engine_network) = placed.iter().find(|e| e.network == *network).map(|e| &e.engine_network) else { continue };
        let found = env.engine.plain_containers(engine_network).await?;
        env.attachments.observe(network, &found).await;
    }
    Ok(())
}
