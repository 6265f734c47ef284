//! The store as raft's state machine, as a manager runs it.

use super::fixture::{NoTransport, TempDir, config};
use skep::manager::replica::{ApplyOutcome, Replica};
use skep::model::network::{Network, NetworkSpec};
use skep::model::{Meta, NetworkId, Timestamp};
use skep::raft::{Raft, RaftConfig, RaftError};
use skep::store::{Action, FEATURE_LEVELS, ProposeError, StoreError, StoreHandle};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

async fn start(dir: &Path) -> anyhow::Result<(StoreHandle, Raft<ApplyOutcome>, CancellationToken)> {
    let shutdown = CancellationToken::new();
    let config = RaftConfig { snapshot_every: 10, keep_entries: 3, ..config(dir) };
    let (store, raft) = Replica::start(config, true, Arc::new(NoTransport), shutdown.clone()).await?;
    Ok((store, raft, shutdown))
}

async fn stop(raft: Raft<ApplyOutcome>, shutdown: CancellationToken) {
    shutdown.cancel();
    raft.closed().await;
}

fn network(id: &str, name: &str) -> Action {
    let spec = NetworkSpec { name: name.to_owned(), ..NetworkSpec::default() };
    Action::create(Network { id: NetworkId::from(id), meta: Meta::default(), spec, subnet: None, removing: false })
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
