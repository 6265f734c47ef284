//! A node that changes its WireGuard key: only for the holder of the next key, from its own address, inside the mesh.

use super::fixture::{Journal, Manager, Setup, Trust};
use async_trait::async_trait;
use skep::clock::SystemClock;
use skep::datapath::sockets::HereSockets;
use skep::model::{NodeId, Role, Secret, WgKey};
use skep::protocol::KeyChangeRequest;
use skep::rpc::{KeyChangeAuthority, KeyChangeError, KeyChangeRefusal, ListenerKind, RenewalConfig, ask_key_change};
use skep::trust::{Identity, TunnelKey};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

fn key(number: u8) -> TunnelKey {
    TunnelKey::new(Secret::new([number; 32]))
}

/// Refuses the key 3.
struct Keys(Journal);

#[async_trait]
impl KeyChangeAuthority for Keys {
    async fn begin(&self, node: &NodeId, next: WgKey) -> Result<(), KeyChangeRefusal> {
        self.0.note(format!("begin {node} {}", next.to_base64()));
        if next == key(3).public() { Err(KeyChangeRefusal::Refused("another node changes its key".to_owned())) } else { Ok(()) }
    }
    async fn in_use(&self, node: &NodeId, key: WgKey) -> Result<(), KeyChangeRefusal> {
        self.0.note(format!("in use {node} {}", key.to_base64()));
        Ok(())
    }
}

async fn ask(to: SocketAddr, identity: &Identity, request: KeyChangeRequest, own: &TunnelKey) -> Result<(), KeyChangeError> {
    let config = RenewalConfig {
        clock: Arc::new(SystemClock),
        candidates: watch::channel(vec![to]).1,
        node_at: Arc::new(|_| None),
        sockets: Arc::new(HereSockets),
        source: IpAddr::V4(Ipv4Addr::LOCALHOST),
        own: None,
        timeout: Duration::from_secs(5),
    };
    ask_key_change(&config, identity, request, own).await
}

fn manager(trust: &Arc<Trust>) -> (Manager, Journal) {
    let journal = Journal::default();
    let setup = Setup { keys: Some(Arc::new(Keys(journal.clone()))), ..Setup::new(trust, ListenerKind::Mesh) };
    (setup.start(), journal)
}

#[tokio::test]
async fn a_node_changes_to_a_key_that_it_has() {
    let trust = Trust::new();
    let (manager, journal) = manager(&trust);
    let node = trust.identity(Role::Worker);
    let next = key(2);
    ask(manager.address, &node, KeyChangeRequest::Begin(next.public()), &next).await.unwrap();
    assert!(journal.has(&format!("begin {} {}", node.node_id(), next.public().to_base64())), "{:?}", journal.all());
    ask(manager.address, &node, KeyChangeRequest::InUse(next.public()), &next).await.unwrap();
    assert!(journal.has(&format!("in use {} {}", node.node_id(), next.public().to_base64())), "{:?}", journal.all());
    // The reason of a refusal is the manager's.
    let refused = ask(manager.address, &node, KeyChangeRequest::Begin(key(3).public()), &key(3)).await.unwrap_err();
    assert!(matches!(&refused, KeyChangeError::Refused(why) if why == "another node changes its key"), "{refused}");
}

#[tokio::test]
async fn no_other_node_changes_a_key_and_none_claims_that_of_another() {
    let trust = Trust::new();
    let (manager, journal) = manager(&trust);
    let node = trust.identity(Role::Worker);
    let begin = |number| KeyChangeRequest::Begin(key(number).public());
    // Another's key, and one that everybody has the secret of.
    let claimed = ask(manager.address, &node, begin(2), &key(4)).await.unwrap_err().to_string();
    assert!(claimed.contains("has not proved that the WireGuard key is its own"), "{claimed}");
    let low = ask(manager.address, &node, KeyChangeRequest::Begin(WgKey([0; 32])), &key(4)).await.unwrap_err().to_string();
    assert!(low.contains("low order"), "{low}");
    // From outside of the mesh, from another node's address, of another cluster.
    assert!(ask(manager.other_address, &node, begin(2), &key(2)).await.is_err());
    let foreign = Trust::new().identity(Role::Worker);
    assert!(ask(manager.address, &foreign, begin(2), &key(2)).await.is_err());
    manager.dispatcher.elsewhere.lock().unwrap().push(node.node_id().clone());
    for request in [begin(2), KeyChangeRequest::InUse(key(2).public())] {
        assert!(ask(manager.address, &node, request, &key(2)).await.is_err());
    }
    assert_eq!(journal.all(), [""; 0], "nothing came to a decision");
    // A manager that cannot do it.
    let old = Setup::new(&trust, ListenerKind::Mesh).start();
    let failed = ask(old.address, &trust.identity(Role::Worker), begin(2), &key(2)).await.unwrap_err();
    assert!(matches!(failed, KeyChangeError::Failed { .. }), "{failed}");
}
