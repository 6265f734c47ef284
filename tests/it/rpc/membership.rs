//! The question of a node that has lost its tunnel, and who may answer it.

use super::fixture::{OffBy, Setup, Trust};
use skep::clock::{Clock as _, SystemClock};
use skep::model::{NodeId, Role};
use skep::protocol::MembershipAnswer;
use skep::rpc::{ListenerKind, ask_membership};
use skep::trust::Identity;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

async fn ask(identity: &Identity, manager: &NodeId, address: SocketAddr) -> Result<MembershipAnswer, String> {
    let asked = ask_membership(identity, Arc::new(SystemClock), (manager.clone(), address), TIMEOUT).await;
    asked.map_err(|error| format!("{error:#}"))
}

fn removed() -> MembershipAnswer {
    MembershipAnswer::Removed { incarnation: 1, why: "it was removed".to_owned() }
}

#[tokio::test]
async fn a_node_is_answered_outside_the_tunnel_also_with_a_certificate_that_has_expired() {
    let trust = Trust::new();
    let setup = Setup { membership: removed(), ..Setup::new(&trust, ListenerKind::Outer) };
    let id = setup.identity.node_id().clone();
    let manager = setup.start();
    let node = trust.identity(Role::Worker);
    assert_eq!(ask(&node, &id, manager.address).await, Ok(removed()));
    let name = trust.identity(Role::Manager).name().clone();
    let expired = trust.issue(&name, OffBy(-7200).now(), Duration::from_hours(1));
    assert!(expired.validity().is_over(SystemClock.now()));
    assert_eq!(ask(&expired, &id, manager.address).await, Ok(removed()));
    assert!(manager.journal.has(&format!("asked by {}", name.node_id)));
    // Inside the tunnel a session says it.
    let refused = ask(&node, &id, manager.other_address).await.expect_err("refused");
    assert!(refused.contains("does not speak this protocol"), "{refused}");
}

#[tokio::test]
async fn nothing_counts_but_the_answer_of_the_manager_that_was_asked() {
    let (trust, foreign) = (Trust::new(), Trust::new());
    let node = trust.identity(Role::Worker);
    let answer = |trust: &Arc<Trust>, identity: Identity| {
        Setup { membership: removed(), identity, ..Setup::new(trust, ListenerKind::Outer) }.start()
    };
    // Another manager at that address, a worker of the cluster, a manager of another cluster.
    let other = answer(&trust, trust.identity(Role::Manager));
    let error = ask(&node, &"somebody".into(), other.address).await.expect_err("another node");
    assert!(error.contains("the node at this address is somebody"), "{error}");
    let worker = trust.identity(Role::Worker);
    let at = answer(&trust, worker.clone());
    let error = ask(&node, worker.node_id(), at.address).await.expect_err("a worker");
    assert!(error.contains("is not a manager"), "{error}");
    let stranger = foreign.identity(Role::Manager);
    let at = answer(&foreign, stranger.clone());
    let error = ask(&node, stranger.node_id(), at.address).await.expect_err("another cluster");
    assert!(error.contains("cannot be trusted"), "{error}");
    // A node of another cluster, and one without a certificate, are not answered.
    let me = trust.identity(Role::Manager);
    let manager = answer(&trust, me.clone());
    ask(&foreign.identity(Role::Worker), me.node_id(), manager.address).await.expect_err("a stranger");
    assert!(super::fixture::tls(manager.address, "skep-membership/1", None).await.is_err() || !manager.journal.has("asked by"));
    assert!(manager.journal.all().is_empty(), "{:?}", manager.journal.all());
    // One that does not answer.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked =
        ask_membership(&node, Arc::new(SystemClock), ("n".into(), silent.local_addr().unwrap()), Duration::from_millis(50));
    assert!(format!("{:#}", asked.await.expect_err("silent")).contains("no answer within 50 ms"));
}
