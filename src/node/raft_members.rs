//! Keeps raft's membership as the roles of the nodes want it, while this manager leads. Decides nothing itself: see
//! [`roles`].

use crate::clock::Clock;
use crate::manager::{ApplyOutcome, roles};
use crate::raft::Raft;
use crate::store::StoreHandle;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Pause after each attempt: the state that it leads to must be seen first.
const PAUSE: Duration = Duration::from_millis(20);
/// Time for another manager to take over.
const TRANSFER: Duration = Duration::from_secs(2);
/// Looked at again without a change.
const IDLE: Duration = Duration::from_secs(1);

/// Runs until `stop`.
pub(super) async fn run(raft: Raft<ApplyOutcome>, store: StoreHandle, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let _ = stop.run_until_cancelled(follow(raft, store, clock)).await;
}

async fn follow(raft: Raft<ApplyOutcome>, store: StoreHandle, clock: Arc<dyn Clock>) {
    let (mut status, mut view) = (raft.status(), store.watch());
    let mut rng = StdRng::from_os_rng();
    loop {
        if status.wait_for(|s| s.is_leader).await.is_err() {
            return;
        }
        let (now, current) = (status.borrow_and_update().clone(), view.borrow_and_update().clone());
        let members: Vec<u64> = now.members().collect();
        let actions = roles::plan(&current, &members, &mut rng);
        if roles::transfers_leadership(&current, &now) {
            tracing::info!("this manager was demoted: another one is to lead");
            raft.transfer_leadership(TRANSFER).await;
        } else if !actions.is_empty() {
            if let Err(error) = store.write(clock.now(), actions).await {
                tracing::debug!(%error, "a change of roles was not written, it is tried again");
            }
        } else if let Some(change) = roles::next_change(&current, &now) {
            match raft.change(change).await {
                Ok(index) => tracing::info!(?change, index, "raft's membership was changed"),
                Err(error) => tracing::warn!(?change, %error, "raft's membership was not changed, it is tried again"),
            }
        } else {
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = view.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(IDLE) => {}
            }
            continue;
        }
        tokio::time::sleep(PAUSE).await;
    }
}
