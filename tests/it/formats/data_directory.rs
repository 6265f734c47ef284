//! Data directories of the release before (commit b71afbd), recorded by `SKEP_RECORD=dir make test-upgrade`: a manager and a worker
//! of a swarm with two services and a network. They are read, and the swarm goes on from them. `node.json` and
//! `endpoints.json` have their tests beside their types.

use super::super::raft::fixture::{NoForward, NoTransport, TempDir};
use skep::agent::ledger::Ledger;
use skep::manager::replica::{Replica, StartedReplica};
use skep::model::node::NodeDescription;
use skep::model::{NodeView, TaskState, Timestamp};
use skep::raft::{Disk, RaftConfig};
use skep::store::{Action, FEATURE_LEVELS, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

fn recorded(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/formats/b71afbd").join(file)
}

fn ledger(role: &str) -> NodeView {
    Ledger::new(recorded(&format!("{role}/ledger.json"))).load().expect("readable").expect("a view")
}

fn check(store: &Store) {
    assert_eq!(store.nodes().count(), 2);
    assert_eq!(store.nodes().filter(|node| node.manager.is_some()).count(), 1);
    let networks: Vec<&str> = store.networks().map(|network| network.spec.name.as_str()).collect();
    assert!(networks.contains(&"ingress") && networks.contains(&"back"), "{networks:?}");
    let mut services: Vec<&str> = store.services().map(|service| service.spec.name.as_str()).collect();
    services.sort_unstable();
    assert_eq!(services, ["plain", "web"]);
    let running = |name| store.tasks().filter(|t| t.service_name == name && t.status.state == TaskState::Running).count();
    assert_eq!((running("web"), running("plain")), (3, 1));
    let web = store.services().find(|service| service.spec.name == "web").unwrap();
    assert_eq!(web.endpoint.ports[0].published_port, 8080);
    assert!(store.tasks().all(|task| !task.attachments.is_empty() || task.service_name == "plain"));
    let cluster = store.cluster().unwrap();
    assert!(cluster.tokens.worker.expose().starts_with("SWMTKN-1-") && cluster.ca_key.expose().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn the_log_and_the_snapshot_of_a_manager_are_read_and_go_on() {
    let folder = TempDir::new("b71afbd");
    std::fs::copy(recorded("manager/raft.redb"), folder.0.join(skep::raft::FILE)).expect("recorded");
    let (_, log) = Disk::open(&folder.0, 1).expect("readable");
    let snapshot = log.snapshot_index();
    assert!(snapshot > 1 && log.last() > snapshot, "it has a snapshot with objects, and entries after it");
    let mut index = 0;
    for _ in 0..2 {
        let shutdown = CancellationToken::new();
        let config = RaftConfig::new(&folder.0, 1);
        let (transport, forward) = (Arc::new(NoTransport), Arc::new(NoForward));
        let StartedReplica { store, raft, .. } =
            Replica::start(config, false, transport, forward, shutdown.clone()).await.expect("starts");
        let state = store.read();
        check(&state);
        assert!(state.index() > index);
        index = state.index();
        assert_eq!(state.feature_level(), 1, "the release before can be installed again");
        // It goes on: a node is changed as the dispatcher does when it has a session again.
        let mut node = state.nodes().next().unwrap().clone();
        node.description = NodeDescription { feature_levels: Some(FEATURE_LEVELS), ..node.description };
        store.write(Timestamp(1), vec![Action::update(node)]).await.expect("written");
        shutdown.cancel();
        raft.closed().await;
    }
}

#[test]
fn the_ledgers_of_a_manager_and_a_worker_are_read() {
    for role in ["manager", "worker"] {
        let view = ledger(role);
        assert_eq!(view.cluster.nodes.len(), 2, "{role}");
        assert!(!view.tasks.by_id.is_empty(), "{role}: tasks");
        assert!(view.networks.by_id.values().any(|network| network.name == "back" && network.members.len() == 3), "{role}");
        let port = view.cluster.ports.iter().find(|port| port.published == 8080).expect("the published port");
        assert_eq!(port.backends.len(), 3, "{role}");
    }
}

#[test]
fn a_ledger_is_written_with_all_that_was_read() {
    let folder = TempDir::new("ledger-b71afbd");
    let copy = Ledger::new(folder.0.join("ledger.json"));
    copy.store(&ledger("worker")).expect("written");
    assert_eq!(copy.load().expect("readable"), Some(ledger("worker")));
    let read = |path: &Path| serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    super::assert_contains(&read(copy.path()), &read(&recorded("worker/ledger.json")), "");
}
