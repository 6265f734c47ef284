//! Whether this node's certificate is of the root CA that issues now: the leader's view says so, and a manager that accepts it no more.

use crate::model::{NodeView, TrustBundle};
use crate::rpc::SessionState;
use crate::trust::{CaDigest, Identity};
use std::sync::Arc;
use tokio::sync::watch;

/// What is to become of the certificate for the sake of its issuer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IssuerVerdict {
    Good,
    /// Another root issues now.
    Outdated,
    /// The managers accept it for a renewal alone: this node was away while the root was replaced. What it has of the cluster is old.
    Refused,
}

fn judge(issuer: Option<CaDigest>, is_of_view: bool, has_session: bool, refused: Option<CaDigest>) -> IssuerVerdict {
    match issuer {
        Some(issuer) if refused == Some(issuer) => IssuerVerdict::Refused,
        // A view of before may name a root that is older than the certificate's.
        _ if has_session && !is_of_view => IssuerVerdict::Outdated,
        _ => IssuerVerdict::Good,
    }
}

/// The sources of the verdict.
#[derive(Clone)]
pub(super) struct IssuerWatch {
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    pub session: watch::Receiver<SessionState>,
}

impl IssuerWatch {
    /// What this node is to trust, by the view of this moment.
    pub(super) fn bundle(&self) -> Option<Arc<TrustBundle>> {
        self.view.borrow().as_ref().and_then(|view| view.cluster.trust.clone())
    }

    pub(super) fn verdict(&self, identity: &Identity) -> IssuerVerdict {
        let (has_session, refused) = {
            let session = self.session.borrow();
            (session.leader.is_some(), session.refused_issuer)
        };
        judge(identity.ca_digest().ok(), identity.is_of(self.bundle().as_deref()), has_session, refused)
    }

    /// Waits until the certificate is to be replaced.
    pub(super) async fn is_to_be_replaced(&self, identity: &Identity) {
        let mut watched = self.clone();
        loop {
            watched.view.borrow_and_update();
            watched.session.borrow_and_update();
            if watched.verdict(identity) != IssuerVerdict::Good {
                return;
            }
            let changed = tokio::select! {
                changed = watched.view.changed() => changed,
                changed = watched.session.changed() => changed,
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Lets the identity trust what the view says, whenever that changes. Nothing of it is written: the ledger has the view.
    pub(super) async fn follow(mut self, identity: watch::Sender<Arc<Identity>>) {
        loop {
            self.view.borrow_and_update();
            let bundle = self.bundle();
            identity.send_if_modified(|current| {
                let differs = current.bundle() != bundle.as_ref();
                if differs {
                    *current = Arc::new((**current).clone().trusting(bundle));
                }
                differs
            });
            if self.view.changed().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_replaced_by_the_word_of_the_leader_or_of_a_refusal_of_its_own_root() {
        let [own, other] = [b"own", b"oth"].map(|der| Some(CaDigest::of_der(der)));
        assert_eq!(judge(own, true, true, None), IssuerVerdict::Good);
        assert_eq!(judge(own, false, true, None), IssuerVerdict::Outdated);
        assert_eq!(judge(own, false, false, None), IssuerVerdict::Good, "a view of before says nothing");
        assert_eq!(judge(own, true, false, own), IssuerVerdict::Refused);
        assert_eq!(judge(own, true, false, other), IssuerVerdict::Good, "the certificate before was refused");
        assert_eq!(judge(None, true, false, None), IssuerVerdict::Good);
    }
}
