//! Follows the role that the managers give this node. A promoted node gets a manager's certificate, makes an empty log and starts
//! the manager's part; a demoted one ends that part, then removes the log and gets a worker's: a later promotion has another raft id.

use super::current_membership::CurrentMembership;
use super::environment::Environment;
use super::keyring::KeyOwner;
use crate::durable::ignore_missing;
use crate::model::{NodeId, NodeView, Role};
use crate::raft::{self, LogCipher, RaftConfig};
use crate::store::StoreHandle;
use crate::sync::replace_if_changed;
use crate::trust::Identity;
use anyhow::Context as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Name of a change that failed among the blockers.
const NAME: &str = "role";
/// Pause after a change that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What the loop follows and sets.
pub(super) struct RoleFollower {
    pub me: NodeId,
    pub env: Arc<Environment>,
    pub membership: Arc<CurrentMembership>,
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    pub identity: watch::Receiver<Arc<Identity>>,
    /// The role that the certificate is to have.
    pub certificate: watch::Sender<Role>,
    /// The role that the manager's part follows.
    pub role: watch::Sender<Role>,
    /// The store, while the manager's part runs.
    pub store: watch::Receiver<Option<StoreHandle>>,
}

/// What is to be done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    /// Once the certificate is a manager's.
    Promote(u64),
    Demote,
    /// Nothing of a manager is to lie on a worker: neither of a demotion that was cut short, nor of a promotion that was taken back.
    TidyUp,
}

/// Compares this node's raft id with the one that the view has for it.
fn next_step(view: Option<&NodeView>, me: &NodeId, raft_id: Option<u64>, certificate: Role) -> Step {
    let Some(peer) = view.and_then(|view| view.cluster.node(me)) else { return Step::Nothing };
    match (raft_id, peer.manager, peer.raft_id) {
        (Some(_), false, _) => Step::Demote,
        // Another manager role than the one that this log is of.
        (Some(had), true, Some(has)) if had != has => Step::Demote,
        (None, true, Some(id)) if certificate == Role::Manager => Step::Promote(id),
        // Managers of an earlier build do not name raft ids.
        (Some(_) | None, true, _) => Step::Nothing,
        (None, false, _) => Step::TidyUp,
    }
}

/// The role that the certificate is to have, by what is there and not by the steps that led to it: roles may change again between any two
/// of them. `None`: as before, while the part of an earlier role has not ended.
fn wanted_certificate(view: Option<&NodeView>, me: &NodeId, raft_id: Option<u64>) -> Option<Role> {
    let peer = view?.cluster.node(me)?;
    match (raft_id, peer.manager, peer.raft_id) {
        (None, true, Some(_)) => Some(Role::Manager),
        (Some(had), true, Some(has)) if had == has => Some(Role::Manager),
        (None, false, _) => Some(Role::Worker),
        (Some(_) | None, ..) => None,
    }
}

impl RoleFollower {
    /// Runs until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let _ = stop.run_until_cancelled(self.follow()).await;
        self.env.blockers.clear(NAME);
    }

    async fn follow(&mut self) {
        self.view.mark_changed();
        let (mut failed, mut is_tidy) = (false, false);
        loop {
            tokio::select! {
                changed = self.view.changed() => if changed.is_err() { return },
                changed = self.identity.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY), if failed => {}
            }
            let (view, role) = (self.view.borrow_and_update().clone(), self.identity.borrow_and_update().role());
            let raft_id = self.membership.get().raft_id;
            if let Some(wanted) = wanted_certificate(view.as_deref(), &self.me, raft_id) {
                replace_if_changed(&self.certificate, wanted);
            }
            let step = next_step(view.as_deref(), &self.me, raft_id, role);
            if step == Step::TidyUp && is_tidy && !self.env.keyring.has_keys() {
                continue;
            }
            let done = self.carry_out(step).await;
            failed = done.is_err();
            is_tidy = step == Step::TidyUp && !failed;
            match done {
                Ok(()) => self.env.blockers.clear(NAME),
                Err(error) => {
                    let reason = format!("{error:#}");
                    tracing::error!(reason, "this node's role was not changed, it is tried again");
                    self.env.blockers.set(NAME, reason);
                }
            }
        }
    }

    async fn carry_out(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Nothing => Ok(()),
            Step::Promote(raft_id) => {
                tracing::info!(raft_id, "this node becomes a manager");
                let (dir, membership) = (self.env.state_dir.raft(), self.membership.clone());
                let keyring = self.env.keyring.clone();
                let owner = KeyOwner { cluster: membership.get().cluster_id, node: self.me.clone() };
                blocking(move || {
                    keyring.begin(None, owner)?;
                    let cipher: Arc<dyn LogCipher> = keyring;
                    // Of an earlier role of this node, which has ended.
                    remove_log(&dir)?;
                    raft::join(&RaftConfig { cipher, ..RaftConfig::new(&dir, raft_id) })?;
                    membership.change(|m| m.clone().with_role(Role::Manager, Some(raft_id)))
                })
                .await?;
                self.role.send_replace(Role::Manager);
                Ok(())
            }
            Step::Demote => {
                tracing::info!("this node becomes a worker");
                self.role.send_replace(Role::Worker);
                let _ = self.store.wait_for(Option::is_none).await;
                let (dir, membership) = (self.env.state_dir.raft(), self.membership.clone());
                self.env.keyring.end(&self.env.certificates).await?;
                blocking(move || {
                    membership.change(|m| m.clone().with_role(Role::Worker, None))?;
                    remove_log(&dir)
                })
                .await?;
                // Its certificate comes next, and it may be a manager again already.
                self.view.mark_changed();
                Ok(())
            }
            Step::TidyUp => {
                if self.env.keyring.has_keys() {
                    self.env.keyring.end(&self.env.certificates).await?;
                }
                let dir = self.env.state_dir.raft();
                blocking(move || remove_log(&dir)).await
            }
        }
    }
}

fn remove_log(dir: &std::path::Path) -> anyhow::Result<()> {
    ignore_missing(std::fs::remove_dir_all(dir)).with_context(|| format!("cannot remove {}", dir.display()))
}

async fn blocking(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    fn view_of(manager: bool, named: Option<u64>) -> (NodeView, NodeId) {
        let mut peer = fixture::peer(2);
        (peer.manager, peer.raft_id) = (manager, named);
        let me = peer.node_id.clone();
        (fixture::node_view(5, Vec::new(), fixture::cluster_part(vec![fixture::peer(1), peer])), me)
    }

    #[test]
    fn what_is_done_and_what_certificate_is_wanted_follow_from_what_is_there() {
        use Role::{Manager, Worker};
        use Step::{Demote, Nothing, Promote, TidyUp};
        // Is it a manager, and of what raft id, by the view; its own raft id, and the role of its certificate.
        for (manager, named, own, certificate, next, wanted) in [
            (true, Some(7), None, Worker, Nothing, Some(Manager)),
            (true, Some(7), None, Manager, Promote(7), Some(Manager)),
            (true, Some(7), Some(7), Manager, Nothing, Some(Manager)),
            (false, None, Some(7), Manager, Demote, None),
            // The part has ended: now the certificate.
            (false, None, None, Manager, TidyUp, Some(Worker)),
            (false, None, None, Worker, TidyUp, Some(Worker)),
            // It was demoted and promoted while it was away: before and after the end of its earlier part.
            (true, Some(9), Some(7), Manager, Demote, None),
            (true, Some(9), None, Manager, Promote(9), Some(Manager)),
            // A manager that knew the demotion alone has issued the certificate.
            (true, Some(9), None, Worker, Nothing, Some(Manager)),
            (true, Some(9), Some(9), Worker, Nothing, Some(Manager)),
            // An earlier build's view.
            (true, None, Some(1), Manager, Nothing, None),
        ] {
            let (view, me) = view_of(manager, named);
            let case = format!("{manager} {named:?} {own:?} {certificate:?}");
            assert_eq!(next_step(Some(&view), &me, own, certificate), next, "{case}");
            assert_eq!(wanted_certificate(Some(&view), &me, own), wanted, "{case}");
        }
    }

    #[test]
    fn a_view_that_says_nothing_changes_nothing() {
        assert_eq!(next_step(None, &"node2".into(), Some(7), Role::Manager), Step::Nothing);
        let view = fixture::node_view(5, Vec::new(), fixture::cluster_part(vec![fixture::peer(1)]));
        assert_eq!(
            next_step(Some(&view), &"node2".into(), Some(7), Role::Manager),
            Step::Nothing,
            "removed: the session says so"
        );
        assert_eq!(wanted_certificate(None, &"node2".into(), None), None);
        assert_eq!(wanted_certificate(Some(&view), &"node2".into(), None), None);
    }
}
