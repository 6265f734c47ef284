//! Unlocks this manager: opens its keys, then starts the node again with all that it is.

use super::control::failed;
use super::daemon::Daemon;
use super::keyring::UnlockError;
use super::lifecycle::MembershipState;
use super::resume::resume;
use crate::api::control::ControlError;
use crate::trust::UnlockKey;
use std::sync::Arc;

impl Daemon {
    /// Answers once the node runs with its keys, whether or not another manager does. Its tasks go on meanwhile.
    ///
    /// # Errors
    /// The key does not fit, or the node cannot be started; that is tried again.
    pub(super) async fn unlock(self: &Arc<Self>, key: UnlockKey) -> Result<(), ControlError> {
        let _lock = self.lifecycle.lock().await;
        let MembershipState::Locked(node) = self.lifecycle.state() else { return Ok(()) };
        let opened = node.clone();
        let opened = tokio::task::spawn_blocking(move || opened.unlock(&key)).await.map_err(|e| failed(&e.into()))?;
        opened.map_err(|error| match error {
            UnlockError::WrongKey => ControlError::wrong_unlock_key(),
            UnlockError::Damaged(error) => ControlError::failed(format!("swarm could not be unlocked: {error:#}")),
        })?;
        tracing::info!("this manager is unlocked");
        node.pause().await;
        self.env.blockers.clear_membership();
        self.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: String::new() });
        if let Err(error) = resume(self).await {
            self.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: format!("{error:#}") });
            self.env.failed.notify_one();
            return Err(failed(&error.context("the swarm is unlocked, but this node does not start; it is tried again")));
        }
        Ok(())
    }
}
