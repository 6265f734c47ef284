//! Takes down what an earlier run of the daemon has left: of a membership that the user left, or that could not be started.

use super::daemon::Daemon;
use super::lifecycle::MembershipState;
use super::membership_teardown;
use super::network::MeshNetwork;
use super::state_dir::MembershipFile;
use crate::backoff::Backoff;
use std::time::Duration;

/// Name of an unfinished leave among the blockers.
const NAME: &str = "leave";
/// Pauses between attempts to finish a leave.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

impl Daemon {
    /// Ends a membership that could not be started, then removes its files. The caller holds the lock.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub(super) async fn abandon(&self) -> anyhow::Result<()> {
        if let Ok(Some(membership)) = MembershipFile::load(&self.env.state_dir)
            && let Err(error) = self.take_down(&membership).await
        {
            tracing::warn!(error = format!("{error:#}"), "not everything of the membership could be taken down");
        }
        self.env.forget()?;
        self.lifecycle.set(MembershipState::Inactive);
        Ok(())
    }

    /// Finishes a leave that was answered, but not carried out, when an earlier run of the daemon ended. The caller holds the
    /// lock.
    ///
    /// # Errors
    /// What could not be taken down; the next attempt tries everything again.
    pub(super) async fn finish_leaving(&self) -> anyhow::Result<()> {
        let state_dir = &self.env.state_dir;
        if !state_dir.is_left() {
            return Ok(());
        }
        match MembershipFile::load_left(state_dir) {
            Ok(Some(membership)) => self.take_down(&membership).await?,
            Ok(None) => {}
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "what is left of the swarm cannot be found: remove its containers and networks (docker ps -a, docker network ls)"
                );
            }
        }
        self.env.forget()?;
        tracing::info!("this node has left its swarm: what an earlier run of the daemon had not taken down is removed");
        Ok(())
    }

    /// Tries to finish a leave until it is done. An engine that starts after skep delays it.
    pub(super) async fn keep_leaving(&self) {
        let mut failures = 0_u32;
        loop {
            let lock = self.lifecycle.lock().await;
            let finished = self.finish_leaving().await;
            drop(lock);
            let Err(error) = finished else { return self.env.blockers.clear(NAME) };
            failures = failures.saturating_add(1);
            let reason = format!("this node has left its swarm, but not everything of it could be taken down: {error:#}");
            if failures.is_power_of_two() {
                tracing::warn!(reason, failures, "the leave is tried again");
            }
            self.env.blockers.set(NAME, reason);
            tokio::time::sleep(RETRY.pause(failures)).await;
        }
    }

    async fn take_down(&self, membership: &MembershipFile) -> anyhow::Result<()> {
        let network = async {
            // An earlier attempt may have removed it.
            self.env.tunnel_key()?;
            MeshNetwork::open(&self.env, &membership.addresses()).await
        };
        let network = network.await;
        membership_teardown::take_down(&self.env, &membership.node_id, network.as_ref().map_err(|e| anyhow::anyhow!("{e:#}")))
            .await
    }
}
