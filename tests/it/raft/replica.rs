//! The store as raft's state machine, as a manager runs it.

use super::super::api::recorded_store;
use super::fixture::{NoForward, NoTransport, TempDir, config};
use skep::manager::ApplyOutcome;
use skep::manager::replica::Replica;
use skep::model::network::{Network, NetworkSpec};
use skep::model::{Cluster, NetworkId, Role, Timestamp};
use skep::raft::{Raft, RaftConfig, RaftError};
use skep::store::{Action, Condition, FEATURE_LEVELS, FieldUpdate, Kind, ProposeError, StoreError, StoreHandle, Transaction};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

async fn start(dir: &Path) -> anyhow::Result<(StoreHandle, Raft<ApplyOutcome>, CancellationToken)> {
    let shutdown = CancellationToken::new();
    let config = RaftConfig { snapshot_every: 10, keep_entries: 3, ..config(dir) };
    let started = Replica::start(config, true, Arc::new(NoTransport), Arc::new(NoForward), shutdown.clone()).await?;
    Ok((started.store, started.raft, shutdown))
}

async fn stop(raft: Raft<ApplyOutcome>, shutdown: CancellationToken) {
    shutdown.cancel();
    raft.closed().await;
}

fn network(id: &str, name: &str) -> Action {
    let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
    Action::create(Network::new(NetworkId::from(id), spec))
}

#[tokio::test]
async fn the_store_is_the_same_after_a_restart() {
    let folder = TempDir::new("replica");
    let (store, raft, shutdown) = start(&folder.0).await.expect("starts");
    let mut watch = store.watch();
    let index = store.write(Timestamp(1), vec![network("a", "front")]).await.expect("written");
    assert_eq!(store.read().network(&"a".into()).expect("stored").meta.version, index);
    assert!(watch.has_changed().expect("alive"), "readers are woken");
    watch.mark_unchanged();
    let refused = store.write(Timestamp(2), vec![network("b", "FRONT")]).await.expect_err("refused");
    assert!(matches!(refused, ProposeError::Refused(StoreError::NameConflict { .. })), "{refused}");
    for i in 0..25 {
        store.write(Timestamp(i), vec![network(&format!("n{i}"), &format!("net{i}"))]).await.expect("written");
    }
    let before = store.read().snapshot();
    stop(raft, shutdown).await;
    let error = store.write(Timestamp(9), vec![]).await.expect_err("stopped");
    assert!(matches!(error, ProposeError::Stopped(_)), "{error}");

    let (store, raft, shutdown) = start(&folder.0).await.expect("starts");
    assert_eq!(store.read().snapshot(), before);
    store.write(Timestamp(9), vec![network("after", "after")]).await.expect("written");
    stop(raft, shutdown).await;
}

#[tokio::test]
async fn an_entry_of_a_newer_format_is_refused_with_the_reason() {
    let folder = TempDir::new("replica-newer");
    let (store, raft, shutdown) = start(&folder.0).await.expect("starts");
    let newer = FEATURE_LEVELS.newest + 1;
    let error = raft.propose(format!(r#"{{"format":{newer},"new":"shape"}}"#).into_bytes()).await.expect_err("stops");
    let text = format!("format {newer}");
    assert!(matches!(&error, RaftError::Stopped(why) if why.contains(&text) && why.contains("newer skep")), "{error}");
    assert!(store.write(Timestamp(1), vec![]).await.is_err());
    stop(raft, shutdown).await;
    let error = start(&folder.0).await.err().expect("the older skep does not start");
    assert!(format!("{error:#}").contains("newer skep"), "{error:#}");
}

/// What earlier builds do not know of a snapshot.
fn has_level_2(store: &StoreHandle) -> bool {
    String::from_utf8(store.read().snapshot()).expect("text").contains("\"applied\"")
}

#[tokio::test]
async fn conditions_plans_and_fields_are_in_the_log_once_every_manager_reads_them() {
    let folder = TempDir::new("replica-levels");
    let (store, raft, shutdown) = start(&folder.0).await.expect("starts");
    let cluster = Cluster { feature_level: 1, ..recorded_store::cluster() };
    let id = cluster.id.clone();
    store.write(Timestamp(50), vec![Action::create(cluster), network("a", "front")]).await.expect("written");
    let rotation = |token: &str| {
        let update = FieldUpdate::JoinToken { id: id.clone(), role: Role::Worker, token: token.into() };
        Transaction::new(Timestamp(40), vec![Action::Set(update)]).require([Condition::present(Kind::Network, "a")])
    };
    let missing = |outcome| matches!(outcome, Err(ProposeError::Refused(StoreError::NotFound { kind: Kind::Network, .. })));
    let planned = store.read().index();
    store.propose(rotation("first").planned_from(planned)).await.expect("holds");
    store.propose(rotation("second").planned_from(planned)).await.expect("level 1 has no plans");
    assert!(missing(store.propose(rotation("no").require([Condition::present(Kind::Network, "b")])).await));
    let stored = store.read().cluster().expect("stored").clone();
    assert_eq!((stored.tokens.worker.expose().as_str(), stored.meta.updated_at), ("second", Timestamp(40)));
    assert!(!has_level_2(&store), "a manager of the release before must read the snapshot");

    store.write(Timestamp(60), vec![Action::update(Cluster { feature_level: 2, ..stored })]).await.expect("raised");
    assert!(!has_level_2(&store), "the entry that raises the level is one of the level before");
    let planned = store.read().index();
    store.propose(rotation("third").planned_from(planned)).await.expect("holds");
    let stale = store.propose(rotation("again").planned_from(planned)).await;
    assert!(matches!(stale, Err(ProposeError::Refused(StoreError::StalePlan))), "{stale:?}");
    assert!(missing(store.propose(rotation("no").require([Condition::present(Kind::Network, "b")])).await));
    let stored = store.read().cluster().expect("stored").clone();
    assert_eq!(stored.tokens.worker.expose(), "third");
    store.write(Timestamp(30), vec![network("b", "back")]).await.expect("written");
    let (rotated, created) = (stored.meta.updated_at, store.read().network(&"b".into()).expect("stored").meta.created_at);
    assert!(rotated < created, "times do not go back: {rotated:?} {created:?}");
    assert!(has_level_2(&store));
    stop(raft, shutdown).await;

    let (store, raft, shutdown) = start(&folder.0).await.expect("both levels of the log are read");
    assert_eq!(store.read().cluster().expect("stored").tokens.worker.expose(), "third");
    stop(raft, shutdown).await;
}
