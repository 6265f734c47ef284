//! The daemon's membership over time: none, pending, active. One transition at a time.

use crate::sync::{read, write};
use async_trait::async_trait;
use std::sync::{Arc, RwLock};

/// What a daemon's membership is at the moment.
pub(super) enum MembershipState<M, L> {
    Inactive,
    /// A join is in progress, or the membership on disk could not be started.
    Pending {
        /// Managers that are asked, as `host:port`.
        remotes: Vec<String>,
        /// Empty while the join is in progress.
        error: String,
    },
    /// A manager whose keys are not opened yet.
    Locked(Arc<L>),
    Active(Arc<M>),
}

impl<M, L> Clone for MembershipState<M, L> {
    fn clone(&self) -> Self {
        match self {
            Self::Inactive => Self::Inactive,
            Self::Pending { remotes, error } => Self::Pending { remotes: remotes.clone(), error: error.clone() },
            Self::Locked(node) => Self::Locked(node.clone()),
            Self::Active(member) => Self::Active(member.clone()),
        }
    }
}

/// A membership that can be ended. Both work on a shared reference: a status report or an API call that still holds
/// the member does not delay them.
#[async_trait]
pub(super) trait Leave: Send + Sync {
    /// Tells the leader that this node leaves, if a session is open.
    async fn announce(&self);
    /// Marks the membership on disk as left, so that a daemon that is started again finishes the leave.
    fn mark_left(&self) -> anyhow::Result<()>;
    /// Stops the loops and removes everything of the membership; tries every step and reports all errors.
    async fn take_down(&self) -> anyhow::Result<()>;
}

/// The state and the lock on its transitions.
pub(super) struct Lifecycle<M, L> {
    transition: tokio::sync::Mutex<()>,
    state: RwLock<MembershipState<M, L>>,
}

impl<M: Leave, L: Leave> Lifecycle<M, L> {
    pub(super) fn new() -> Self {
        Self { transition: tokio::sync::Mutex::new(()), state: RwLock::new(MembershipState::Inactive) }
    }

    /// Held during init, join and leave.
    pub(super) async fn lock(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.transition.lock().await
    }

    pub(super) fn state(&self) -> MembershipState<M, L> {
        read(&self.state).clone()
    }

    pub(super) fn set(&self, state: MembershipState<M, L>) {
        *write(&self.state) = state;
    }

    /// Ends a membership. The caller holds the lock.
    ///
    /// # Errors
    /// What could not be taken down; the membership has ended all the same.
    pub(super) async fn leave(&self, member: &dyn Leave) -> anyhow::Result<()> {
        member.announce().await;
        // Before a client can see that the node is in no swarm any more.
        let marked = member.mark_left();
        self.set(MembershipState::Inactive);
        member.take_down().await.and(marked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct FakeMember {
        announced: AtomicBool,
        marked: AtomicBool,
        taken_down: AtomicBool,
    }

    #[async_trait]
    impl Leave for FakeMember {
        async fn announce(&self) {
            self.announced.store(true, Ordering::SeqCst);
        }
        fn mark_left(&self) -> anyhow::Result<()> {
            self.marked.store(true, Ordering::SeqCst);
            Ok(())
        }
        async fn take_down(&self) -> anyhow::Result<()> {
            anyhow::ensure!(self.marked.load(Ordering::SeqCst), "a daemon that is killed now would resume the membership");
            self.taken_down.store(true, Ordering::SeqCst);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_member_that_is_still_in_use_does_not_block_a_leave_or_what_follows_it() {
        let lifecycle = Lifecycle::<FakeMember, FakeMember>::new();
        lifecycle.set(MembershipState::Active(Arc::new(FakeMember::default())));
        let MembershipState::Active(in_use) = lifecycle.state() else { panic!("active") };
        let leave = async {
            let _lock = lifecycle.lock().await;
            let MembershipState::Active(member) = lifecycle.state() else { panic!("active") };
            lifecycle.leave(&*member).await
        };
        tokio::time::timeout(Duration::from_secs(5), leave).await.expect("leaves in time").expect("no error");
        assert!(in_use.announced.load(Ordering::SeqCst) && in_use.taken_down.load(Ordering::SeqCst));
        assert!(matches!(lifecycle.state(), MembershipState::Inactive));
        let next = tokio::time::timeout(Duration::from_secs(5), lifecycle.lock()).await;
        assert!(next.is_ok(), "the next init, join or leave can start");
    }
}
