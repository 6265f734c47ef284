//! Keeps the newest view on disk, behind the loops: a change takes effect before it is written, and changes that come while one
//! is written are written together. A daemon that is killed in between starts from the view before: its tasks, peers and
//! addresses are those of a moment ago, and the next session corrects them.

use super::supervisor::Blockers;
use crate::agent::ledger::Ledger;
use crate::model::NodeView;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause after a write, for further changes.
const PAUSE: Duration = Duration::from_millis(200);
/// Pause after a write that failed, unless there is a newer view.
pub(super) const RETRY: Duration = Duration::from_secs(30);
/// Name of a file that was not written among the blockers.
const NAME: &str = "ledger.json";

/// Writes each newest view until `stop`; then the last one. One that was not written is a blocker, and is written again as a
/// whole, `retry` later.
pub(super) async fn run(
    ledger: Ledger,
    view: watch::Receiver<Option<Arc<NodeView>>>,
    blockers: Blockers,
    retry: Duration,
    stop: CancellationToken,
) {
    let store = move |view: Arc<NodeView>| {
        let ledger = ledger.clone();
        async move { tokio::task::spawn_blocking(move || ledger.store(&view)).await? }
    };
    follow(store, view, blockers, retry, stop).await;
}

async fn follow<F: Future<Output = anyhow::Result<()>> + Send>(
    mut store: impl FnMut(Arc<NodeView>) -> F + Send,
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    blockers: Blockers,
    retry: Duration,
    stop: CancellationToken,
) {
    let (mut stopped, mut failed) = (false, false);
    while !stopped {
        tokio::select! {
            () = stop.cancelled() => stopped = true,
            changed = view.changed() => stopped = changed.is_err(),
            () = tokio::time::sleep(retry), if failed => {}
        }
        if stopped && !failed && !view.has_changed().unwrap_or(true) {
            break;
        }
        let newest = view.borrow_and_update().clone();
        let written = match newest {
            Some(view) => store(view).await,
            None => Ok(()),
        };
        failed = written.is_err();
        match written {
            Ok(()) => blockers.clear(NAME),
            Err(error) => {
                let reason = format!("{error:#}; a restart without managers would start from an older view");
                tracing::error!(reason, "the ledger was not written");
                blockers.set(NAME, reason);
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    blockers.clear(NAME);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_burst_of_views_is_written_together_and_the_last_one_is_on_disk_at_the_end() {
        let path = std::env::temp_dir().join(format!("skep-ledger-writer-{}.json", std::process::id()));
        let ledger = Ledger::new(&path);
        let writes = Arc::new(AtomicU32::new(0));
        let (counted, stored) = (writes.clone(), ledger.clone());
        let store = move |view: Arc<NodeView>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let ledger = stored.clone();
            async move { tokio::task::spawn_blocking(move || ledger.store(&view)).await? }
        };
        let begun = tokio::time::Instant::now();
        let view = |index| Some(Arc::new(fixture::node_view(index, Vec::new(), fixture::cluster_part(Vec::new()))));
        let (sender, receiver) = watch::channel(view(1));
        let stop = CancellationToken::new();
        let writing = tokio::spawn(follow(store, receiver, Blockers::default(), RETRY, stop.clone()));
        for index in 2..1000 {
            sender.send_replace(view(index));
            tokio::time::sleep(PAUSE / 20).await;
        }
        stop.cancel();
        writing.await.unwrap();
        let last = ledger.load().unwrap().map(|view| view.revision.index);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(last, Some(999));
        // One at the beginning, one at the end, and one after each pause.
        let most = 2 + begun.elapsed().as_millis() / PAUSE.as_millis();
        assert!((1..=most).contains(&writes.load(Ordering::SeqCst).into()), "{writes:?} writes, at most {most}");
    }

    #[tokio::test]
    async fn a_view_that_was_not_written_is_a_blocker_and_is_written_later() {
        let dir = std::env::temp_dir().join(format!("skep-ledger-failed-{}", std::process::id()));
        let ledger = Ledger::new(dir.join("ledger.json"));
        let view = Some(Arc::new(fixture::node_view(7, Vec::new(), fixture::cluster_part(Vec::new()))));
        let (sender, mut receiver) = watch::channel(view);
        receiver.mark_changed();
        let (blockers, stop) = (Blockers::default(), CancellationToken::new());
        let writing = tokio::spawn(run(ledger.clone(), receiver, blockers.clone(), Duration::from_millis(20), stop.clone()));
        // There is no directory: the disk takes nothing.
        while blockers.now().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let reason = blockers.now()["ledger.json"].clone();
        assert!(reason.contains("cannot write the ledger") && reason.contains("older view"), "{reason}");
        std::fs::create_dir(&dir).unwrap();
        while !blockers.now().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ledger.load().unwrap().map(|view| view.revision.index), Some(7), "although there was no newer one");
        stop.cancel();
        writing.await.unwrap();
        drop(sender);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
