//! A change of the root CA, over real TLS: what nodes and managers accept before, during and after it.

use super::fixture::{Manager, Setup, Trust, eventually, join, options, side, tls};
use super::renewal::renew;
use super::session::node;
use skep::clock::{Clock as _, SystemClock};
use skep::model::{Role, TrustBundle};
use skep::rpc::ListenerKind;
use skep::trust::{Identity, RootCa, cross_sign};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

/// A cluster with its root, and the next one.
struct Change {
    old: Arc<Trust>,
    new: Arc<Trust>,
    cross: String,
}

impl Change {
    fn new() -> Self {
        let (old, rng) = (Trust::new(), &mut rand::rng());
        let ca = RootCa::generate(rng, SystemClock.now()).unwrap();
        let cross = cross_sign(&old.ca, &ca, SystemClock.now(), rng).unwrap();
        let new = Arc::new(Trust { cluster: old.cluster.clone(), ca, tokens: old.tokens.clone() });
        Self { old, new, cross }
    }
    fn bundle(&self, trusted: &[&Trust], retired: &[&Trust]) -> Arc<TrustBundle> {
        let pems = |roots: &[&Trust]| roots.iter().map(|root| root.ca.certificate().to_owned()).collect();
        Arc::new(TrustBundle {
            issuer: self.new.ca.certificate().to_owned(),
            trusted: pems(trusted),
            chain: vec![self.cross.clone()],
            retired: pems(retired),
        })
    }
    fn during(&self) -> Arc<TrustBundle> {
        self.bundle(&[&self.new, &self.old], &[])
    }
    fn after(&self) -> Arc<TrustBundle> {
        self.bundle(&[&self.new], &[&self.old])
    }
    /// A manager that issues certificates of the new root.
    fn manager(&self, kind: ListenerKind, bundle: Arc<TrustBundle>) -> Manager {
        let mut setup = Setup::new(&self.new, kind);
        setup.identity = self.new.identity(Role::Manager).trusting(Some(bundle));
        setup.start()
    }
}

/// Whether a session is opened, and stays what the node knows of refusals.
async fn opens(identity: Identity, manager: &Manager) -> bool {
    let issuer = identity.ca_digest().unwrap();
    let mut node = node(identity, vec![manager.address]);
    let mut state = node.state.clone();
    let decided = state.wait_for(|state| state.leader.is_some() || state.last_error.is_some());
    let decided = tokio::time::timeout(Duration::from_secs(10), decided).await.expect("in time").expect("kept").clone();
    if decided.leader.is_some() {
        node.welcome().await;
        return true;
    }
    assert_eq!(decided.refused_issuer, Some(issuer), "{decided:?}");
    false
}

#[tokio::test]
async fn during_the_change_every_mix_of_roots_works_and_joins_go_on_with_the_old_token() {
    let change = Change::new();
    let (old, new) = (change.old.identity(Role::Worker), change.new.identity(Role::Worker));
    // A manager that has a certificate of the new root already.
    let manager = change.manager(ListenerKind::Mesh, change.during());
    assert!(opens(old.clone(), &manager).await, "a node that has not read of the change");
    assert!(opens(old.clone().trusting(Some(change.during())), &manager).await);
    assert!(opens(new.clone().trusting(Some(change.during())), &manager).await);
    // One that has not read of it yet.
    let behind = Setup::new(&change.old, ListenerKind::Mesh).start();
    assert!(opens(new.clone().trusting(Some(change.during())), &behind).await, "the old root has certified the new one");
    node(new, vec![behind.address]).error("it cannot be trusted").await;
    // A joiner knows the old root by its token.
    let mut setup = Setup::new(&change.old, ListenerKind::Outer);
    setup.identity = change.new.identity(Role::Manager).trusting(Some(change.during()));
    let manager = setup.start();
    let (side, options) = (side(&manager), options(Duration::from_secs(15)));
    let joined = join(manager.address, change.old.tokens.of(Role::Worker), &side, &options).await;
    assert_eq!(joined.expect("joined").identity.ca_certificate(), change.old.ca.certificate());
}

#[tokio::test]
async fn after_the_change_a_certificate_of_the_old_root_is_good_for_a_renewal_alone() {
    let change = Change::new();
    let manager = change.manager(ListenerKind::Mesh, change.after());
    // A node that was away: it trusts the old root, and finds the new one by what the manager shows.
    let old = change.old.identity(Role::Worker);
    assert!(!opens(old.clone(), &manager).await);
    for protocol in ["skep-session/1", "skep-manager/1"] {
        let refused = match tls(manager.address, protocol, Some(&old)).await {
            Ok(mut stream) => stream.read_u8().await.map(drop),
            Err(error) => Err(error),
        };
        assert!(refused.expect_err(protocol).to_string().contains("alert"));
    }
    let renewed = renew(&manager, &old, Arc::new(SystemClock)).await.expect("renewed");
    assert_eq!(renewed.ca_certificate(), change.new.ca.certificate());
    assert!(opens(renewed, &manager).await);
    // Once the old root is forgotten, it is good for nothing.
    let manager = change.manager(ListenerKind::Mesh, change.bundle(&[&change.new], &[]));
    renew(&manager, &old, Arc::new(SystemClock)).await.expect_err("forgotten");
    assert!(manager.journal.all().is_empty(), "{:?}", manager.journal.all());
}

#[tokio::test]
async fn a_manager_of_the_old_root_or_of_a_forged_one_is_not_believed_after_the_change() {
    let change = Change::new();
    let renewed = change.new.identity(Role::Worker).trusting(Some(change.after()));
    // One that has the old root's key.
    let thief = Setup::new(&change.old, ListenerKind::Mesh).start();
    let node_of = node(renewed.clone(), vec![thief.address]);
    node_of.error("it cannot be trusted").await;
    // A root of the same name, that the old root has certified after it was replaced.
    let forged = RootCa::generate(&mut rand::rng(), SystemClock.now()).unwrap();
    let cross = cross_sign(&change.old.ca, &forged, SystemClock.now(), &mut rand::rng()).unwrap();
    let forged = Arc::new(Trust { cluster: change.old.cluster.clone(), ca: forged, tokens: change.old.tokens.clone() });
    let mut setup = Setup::new(&forged, ListenerKind::Mesh);
    let bundle = TrustBundle { issuer: forged.ca.certificate().to_owned(), trusted: vec![], chain: vec![cross], retired: vec![] };
    setup.identity = forged.identity(Role::Manager).trusting(Some(Arc::new(bundle)));
    let thief = setup.start();
    let node_of = node(renewed, vec![thief.address]);
    node_of.error("it cannot be trusted").await;
    eventually("nothing was opened", || thief.dispatcher.journal.all().is_empty()).await;
}
