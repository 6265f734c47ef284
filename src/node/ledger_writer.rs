//! Keeps the newest view on disk, behind the loops: a change takes effect before it is written, and changes that come while one
//! is written are written together. A daemon that is killed in between starts from the view before: its tasks, peers and
//! addresses are those of a moment ago, and the next session corrects them.

use crate::agent::ledger::Ledger;
use crate::model::NodeView;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause after a write, for further changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Writes each newest view until `stop`; then the last one.
pub(super) async fn run(ledger: Ledger, mut view: watch::Receiver<Option<Arc<NodeView>>>, stop: CancellationToken) {
    let mut stopped = false;
    while !stopped {
        tokio::select! {
            () = stop.cancelled() => stopped = true,
            changed = view.changed() => stopped = changed.is_err(),
        }
        if stopped && !view.has_changed().unwrap_or(true) {
            return;
        }
        let newest = view.borrow_and_update().clone();
        write(&ledger, newest).await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn write(ledger: &Ledger, view: Option<Arc<NodeView>>) {
    let (Some(view), ledger) = (view, ledger.clone()) else { return };
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || ledger.store(&view)).await {
        tracing::warn!(
            error = format!("{error:#}"),
            "the ledger was not written: a restart without managers would start from an older one"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;

    #[tokio::test]
    async fn a_burst_of_views_is_written_together_and_the_last_one_is_on_disk_at_the_end() {
        let path = std::env::temp_dir().join(format!("skep-ledger-writer-{}.json", std::process::id()));
        let ledger = Ledger::new(&path);
        let view = |index| Some(Arc::new(fixture::node_view(index, Vec::new(), fixture::cluster_part(Vec::new()))));
        let (sender, receiver) = watch::channel(view(1));
        let stop = CancellationToken::new();
        let writing = tokio::spawn(run(ledger.clone(), receiver, stop.clone()));
        for index in 2..1000 {
            sender.send_replace(view(index));
            tokio::task::yield_now().await;
        }
        stop.cancel();
        writing.await.unwrap();
        let last = ledger.load().unwrap().map(|view| view.revision.index);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(last, Some(999));
    }
}
