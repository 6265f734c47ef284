//! A snapshot that takes long to make.

use super::fixture::{NoTransport, RecordingMachine, TempDir, config};
use skep::raft::{Raft, RaftConfig, StateMachine, start};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const WITHIN: Duration = Duration::from_secs(20);

/// Makes its first snapshot when the test lets it.
#[derive(Clone, Default)]
struct SlowMachine {
    inner: RecordingMachine,
    /// Number of snapshots that were asked for.
    asked: Arc<AtomicUsize>,
    held: Arc<Mutex<Option<Receiver<()>>>>,
}

impl StateMachine for SlowMachine {
    type Outcome = usize;
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<usize> {
        self.inner.apply(index, data)
    }
    fn publish(&mut self) {
        self.inner.publish();
    }
    fn snapshot(&self) -> Vec<u8> {
        self.inner.snapshot()
    }
    fn later_snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let (bytes, held) = (self.inner.snapshot(), self.held.lock().expect("lock").take());
        Box::new(move || {
            if let Some(held) = held {
                // A test that has failed has let go of its end.
                let _ = held.recv();
            }
            bytes
        })
    }
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.inner.restore(index, bytes)
    }
}

async fn write(raft: &Raft<usize>, text: String) -> usize {
    let written = tokio::time::timeout(WITHIN, raft.propose(text.into_bytes())).await;
    written.expect("raft goes on").expect("written").1
}

#[tokio::test]
async fn entries_are_applied_while_a_snapshot_is_made() {
    let folder = TempDir::new("slow-snapshot");
    let config = RaftConfig { snapshot_every: 50, keep_entries: 10, ..config(&folder.0) };
    let (release, held) = channel();
    let machine = SlowMachine { held: Arc::new(Mutex::new(Some(held))), ..SlowMachine::default() };
    let asked = || machine.asked.load(Ordering::SeqCst);
    let shutdown = CancellationToken::new();
    let raft = start(config.clone(), true, machine.clone(), Arc::new(NoTransport), shutdown.clone()).await.expect("starts");
    let mut entries = 0;
    while asked() == 0 {
        entries = write(&raft, format!("entry {entries}")).await;
        assert!(entries < 100, "no snapshot is made");
    }
    // Enough for several more.
    for _ in 0..200 {
        entries = write(&raft, format!("entry {entries}")).await;
    }
    assert_eq!(machine.inner.published(), entries, "all are applied");
    assert_eq!(asked(), 1, "the first one is not made yet");
    release.send(()).expect("it is being made");
    // The next one is asked for when raft has the first one.
    tokio::time::timeout(WITHIN, async {
        while asked() == 1 {
            entries = write(&raft, format!("entry {entries}")).await;
        }
    })
    .await
    .expect("the snapshot appears");
    let texts = machine.inner.texts();
    shutdown.cancel();
    raft.closed().await;

    let (again, shutdown) = (RecordingMachine::default(), CancellationToken::new());
    let raft = start(config, false, again.clone(), Arc::new(NoTransport), shutdown.clone()).await.expect("starts");
    assert_eq!(again.texts(), texts);
    assert!(again.applied() < texts.len(), "a snapshot was read, not each entry replayed");
    shutdown.cancel();
    raft.closed().await;
}
