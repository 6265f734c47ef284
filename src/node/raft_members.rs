//! Keeps raft's membership as the roles of the nodes want it, while this manager leads. Decides nothing itself: see
//! [`roles`].

use super::supervisor::Supervisor;
use crate::clock::Clock;
use crate::manager::{ApplyOutcome, roles};
use crate::raft::Raft;
use crate::store::StoreHandle;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;

/// Name of the loop among the blockers.
const NAME: &str = "managers' roles";
/// Pause after each attempt: the state that it leads to must be seen first.
const PAUSE: Duration = Duration::from_millis(20);
/// Time for another manager to take over.
const TRANSFER: Duration = Duration::from_secs(2);
/// Looked at again without a change.
const IDLE: Duration = Duration::from_secs(1);

/// Runs until the supervisor stops it.
pub(super) fn keep(supervisor: &Supervisor, raft: Raft<ApplyOutcome>, store: StoreHandle, clock: Arc<dyn Clock>) {
    supervisor.keep_until_stopped(NAME, move || follow(raft.clone(), store.clone(), clock.clone()));
}

async fn follow(raft: Raft<ApplyOutcome>, store: StoreHandle, clock: Arc<dyn Clock>) {
    let (mut status, mut view) = (raft.status(), store.watch());
    let mut rng = StdRng::from_os_rng();
    let mut waiting = Vec::new();
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
            let waits = roles::waits_for_majority(&current, &now);
            if waits != waiting && !waits.is_empty() {
                tracing::warn!(nodes = ?waits, "demoted, and still managers: without them no majority of the managers is connected");
            }
            waiting = waits;
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

#[cfg(test)]
mod tests {
    use super::super::manager_links::ManagerLinks;
    use super::super::supervisor::Blockers;
    use super::*;
    use crate::clock::SystemClock;
    use crate::manager::replica::{Replica, StartedReplica};
    use crate::model::{Node, Role, Timestamp, fixture};
    use crate::raft::RaftConfig;
    use crate::store::Action;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio_util::sync::CancellationToken;

    /// Panics when it is asked for the first time.
    #[derive(Default)]
    struct FailingClock(AtomicBool);

    impl Clock for FailingClock {
        fn now(&self) -> Timestamp {
            assert!(self.0.swap(true, Ordering::SeqCst), "the clock has failed");
            SystemClock.now()
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_role_manager_is_a_blocker_and_a_promotion_is_carried_out_afterwards() {
        let dir = std::env::temp_dir().join(format!("skep-raft-members-{}", std::process::id()));
        let (stop, links) = (CancellationToken::new(), Arc::new(ManagerLinks::default()));
        let started = Replica::start(RaftConfig::new(&dir, 1), true, links.clone(), links, stop.clone()).await.unwrap();
        let StartedReplica { store, raft, .. } = started;
        raft.status().wait_for(|status| status.is_leader).await.unwrap();
        let mut node: Node = fixture::node("promoted");
        (node.spec.role, node.status.addr) = (Role::Manager, Some("192.0.2.7".parse().unwrap()));
        store.write(SystemClock.now(), vec![Action::create(node)]).await.unwrap();

        let blockers = Blockers::default();
        let supervisor = Supervisor::new(blockers.clone(), Arc::default());
        keep(&supervisor, raft.clone(), store.clone(), Arc::new(FailingClock::default()));
        let mut view = store.watch();
        let is_manager = view.wait_for(|store| store.node(&"promoted".into()).is_some_and(|node| node.manager.is_some()));
        tokio::time::timeout(Duration::from_secs(10), is_manager).await.expect("it is started again").unwrap();
        let named = blockers.now();
        assert!(named[NAME].contains("it panicked: the clock has failed"), "{named:?}");
        supervisor.end().await;
        assert!(blockers.now().is_empty());
        stop.cancel();
        raft.closed().await;
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
