//! Keeps this manager's files encrypted as the swarm's lock requires. Every manager follows the store by itself, so that a key that
//! is rotated while a manager is down reaches it once it is up again.

use super::environment::Environment;
use super::keyring::{KeyOwner, SealedLog};
use crate::manager::ApplyOutcome;
use crate::raft::Raft;
use crate::store::{Store, StoreHandle};
use crate::trust::UnlockKey;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;

/// Name of a change that failed among the blockers.
const NAME: &str = "lock";
/// Pause after a change that failed.
const RETRY: Duration = Duration::from_secs(5);

#[async_trait]
impl SealedLog for Raft<ApplyOutcome> {
    async fn seal_again(&self) -> anyhow::Result<()> {
        Ok(Raft::seal_again(self).await?)
    }
}

/// The key that the swarm's managers are locked with; the outer `None`: this manager has no state yet.
fn wanted(store: &Store) -> Option<Result<Option<UnlockKey>, String>> {
    let cluster = store.cluster()?;
    let key = cluster.unlock_key.as_ref().map(|text| text.expose().parse::<UnlockKey>());
    Some(key.transpose().map_err(|_| "the swarm's unlock key cannot be read".to_owned()))
}

/// Runs until it is dropped, or the store is.
pub(super) async fn follow(env: Arc<Environment>, owner: KeyOwner, store: StoreHandle, raft: Raft<ApplyOutcome>) {
    let mut view = store.watch();
    let mut done = None;
    loop {
        let wanted = wanted(&view.borrow_and_update());
        let mut failed = false;
        if let Some(wanted) = wanted.filter(|wanted| done.as_ref() != Some(wanted)) {
            let changed = match &wanted {
                Ok(key) => env.keyring.change(key.as_ref(), &owner, &env.certificates, &raft).await,
                Err(why) => Err(anyhow::anyhow!(why.clone())),
            };
            failed = changed.is_err();
            match changed {
                Ok(()) => {
                    env.blockers.clear(NAME);
                    done = Some(wanted);
                }
                Err(error) => {
                    let reason = format!("{error:#}; this manager's files are not locked as the swarm requires");
                    tracing::warn!(reason, "it is tried again");
                    env.blockers.set(NAME, reason);
                }
            }
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}
