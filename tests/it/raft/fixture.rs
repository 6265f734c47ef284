//! What the tests of raft have in common: a folder, a state machine that records its calls, and a running manager.

use anyhow::Context as _;
use skep::manager::Forward;
use skep::raft::{Raft, RaftConfig, RaftError, StateMachine, Transport, start};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A folder that is removed when the test ends.
pub struct TempDir(pub PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("raft-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("folder");
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Records its calls where the test can read them.
#[derive(Clone, Default)]
pub struct RecordingMachine(Arc<Mutex<Calls>>);

#[derive(Default)]
struct Calls {
    entries: Vec<(u64, String)>,
    applied: usize,
    restored: Vec<u64>,
    /// Number of entries that readers see.
    published: usize,
    publications: usize,
}

impl RecordingMachine {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().expect("lock").entries.iter().map(|(_, text)| text.clone()).collect()
    }
    /// Number of calls of `apply`.
    pub fn applied(&self) -> usize {
        self.0.lock().expect("lock").applied
    }
    /// Number of entries that readers see.
    pub fn published(&self) -> usize {
        self.0.lock().expect("lock").published
    }
    /// Number of calls of `publish`.
    pub fn publications(&self) -> usize {
        self.0.lock().expect("lock").publications
    }
}

impl StateMachine for RecordingMachine {
    /// How many entries there are now.
    type Outcome = usize;
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<usize> {
        let mut calls = self.0.lock().expect("lock");
        let text = String::from_utf8(data.to_vec()).context("not a text")?;
        assert!(calls.entries.last().is_none_or(|(last, _)| *last < index), "entry {index} is applied twice");
        calls.entries.push((index, text));
        calls.applied += 1;
        Ok(calls.entries.len())
    }
    fn publish(&mut self) {
        let mut calls = self.0.lock().expect("lock");
        calls.published = calls.entries.len();
        calls.publications += 1;
    }
    /// As the first entry says, if that is `snapshots N`.
    fn snapshot_every(&self) -> Option<u64> {
        self.0.lock().expect("lock").entries.first()?.1.strip_prefix("snapshots ")?.parse().ok()
    }
    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0.lock().expect("lock").entries).expect("plain data")
    }
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let mut calls = self.0.lock().expect("lock");
        calls.entries = serde_json::from_slice(bytes)?;
        calls.restored.push(index);
        Ok(())
    }
}

/// Drops all messages.
pub struct NoTransport;
impl Transport for NoTransport {
    fn send(&self, _: u64, _: Vec<u8>) {}
}

pub fn config(dir: &Path) -> RaftConfig {
    RaftConfig { tick: Duration::from_millis(20), ..RaftConfig::new(dir, 1) }
}

/// No other manager.
pub struct NoForward;

#[async_trait::async_trait]
impl Forward for NoForward {
    async fn forward(&self, leader: u64, _document: Vec<u8>) -> anyhow::Result<Vec<u8>> {
        anyhow::bail!("there is no manager {leader}")
    }
}

pub struct RunningManager {
    pub raft: Raft<usize>,
    pub machine: RecordingMachine,
    shutdown: CancellationToken,
}

impl RunningManager {
    pub async fn start(config: RaftConfig, bootstrap: bool) -> anyhow::Result<Self> {
        Self::start_with(config, bootstrap, Arc::new(NoTransport)).await
    }
    pub async fn start_with(config: RaftConfig, bootstrap: bool, transport: Arc<dyn Transport>) -> anyhow::Result<Self> {
        let (machine, shutdown) = (RecordingMachine::default(), CancellationToken::new());
        let raft = start(config, bootstrap, machine.clone(), transport, shutdown.clone()).await?;
        Ok(Self { raft, machine, shutdown })
    }
    pub async fn write(&self, text: &str) -> Result<(u64, usize), RaftError> {
        self.raft.propose(text.as_bytes().to_vec()).await
    }
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.raft.closed().await;
    }
}
