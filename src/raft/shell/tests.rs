//! What the thread does about a log that cannot be sealed again, a snapshot that cannot be read, and a panic.

use super::super::config::LogCipher;
use super::*;
use ::raft::eraftpb::{ConfState, Message, MessageType, Snapshot, SnapshotMetadata};
use protobuf::Message as _;
use std::path::PathBuf;
use std::sync::Mutex;

struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Counts its entries.
struct Counter(u64);

impl StateMachine for Counter {
    type Outcome = u64;
    fn apply(&mut self, _: u64, _: &[u8]) -> anyhow::Result<u64> {
        self.0 += 1;
        Ok(self.0)
    }
    fn snapshot(&self) -> Vec<u8> {
        self.0.to_le_bytes().into()
    }
    fn restore(&mut self, _: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.0 = u64::from_le_bytes(bytes.try_into()?);
        Ok(())
    }
}

struct Alone;

impl Transport for Alone {
    fn send(&self, _: u64, _: Vec<u8>) {}
}

/// Has every key, and turns each bit around.
#[derive(Debug, Default)]
struct Inverter(Mutex<Option<String>>);

impl LogCipher for Inverter {
    fn key(&self) -> Option<String> {
        self.0.lock().unwrap().clone()
    }
    fn seal(&self, _: &str, _: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        Ok(row.iter().map(|byte| !byte).collect())
    }
    fn open(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        self.seal(key, place, row)
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_sealed_again_is_used_on_as_it_is() {
    let dir = TempDir(std::env::temp_dir().join(format!("raft-shell-seal-{}", std::process::id())));
    let _ = std::fs::remove_dir_all(&dir.0);
    let (cipher, shutdown) = (Arc::new(Inverter::default()), CancellationToken::new());
    let config = RaftConfig { cipher: cipher.clone(), tick: Duration::from_millis(20), ..RaftConfig::new(&dir.0, 1) };
    let raft = start(config.clone(), true, Counter(0), Arc::new(Alone), shutdown.clone()).await.unwrap();
    let mut status = raft.status();
    status.wait_for(|status| status.is_leader).await.unwrap();
    let term = status.borrow().term;
    assert_eq!(raft.propose(b"before".to_vec()).await.unwrap().1, 1);

    // The new file cannot be made: as on a disk that is full.
    let new = dir.0.join("raft.redb.new");
    std::fs::create_dir(&new).unwrap();
    *cipher.0.lock().unwrap() = Some("key".to_owned());
    for count in 2..5 {
        let error = raft.seal_again().await.expect_err("there is a directory in its place").to_string();
        assert!(error.contains("raft.redb.new"), "{error}");
        assert_eq!(raft.propose(b"meanwhile".to_vec()).await.expect("raft goes on").1, count);
    }
    let seen = status.borrow().clone();
    assert_eq!((seen.is_leader, seen.term, seen.problem), (true, term, None), "it leads as before, without an election");

    std::fs::remove_dir(&new).unwrap();
    raft.seal_again().await.unwrap();
    assert_eq!(raft.propose(b"after".to_vec()).await.unwrap().1, 5);
    assert_eq!(status.borrow().term, term);
    // Sealed already: what an attempt left is removed all the same.
    std::fs::write(&new, "left").unwrap();
    raft.seal_again().await.unwrap();
    assert!(!new.exists());

    shutdown.cancel();
    while status.changed().await.is_ok() {}
    assert!(Disk::open(&dir.0, 1).is_err(), "it is sealed");
    let cipher: Arc<dyn LogCipher> = cipher;
    let (_, log) = Disk::open_sealed(&dir.0, 1, &cipher).unwrap();
    let entries: Vec<&[u8]> = log.entries.iter().map(|entry| &*entry.data).filter(|data| !data.is_empty()).collect();
    assert_eq!(entries, [&b"before"[..], b"meanwhile", b"meanwhile", b"meanwhile", b"after"]);
}

/// As one of a newer build, or one that was damaged on its way.
#[tokio::test]
async fn a_snapshot_that_cannot_be_read_takes_the_place_of_no_log_and_the_next_one_is_read() {
    let dir = TempDir(std::env::temp_dir().join(format!("raft-shell-snapshot-{}", std::process::id())));
    let _ = std::fs::remove_dir_all(&dir.0);
    let config = RaftConfig { tick: Duration::from_millis(20), ..RaftConfig::new(&dir.0, 2) };
    join(&config).unwrap();
    let shutdown = CancellationToken::new();
    let raft = start(config.clone(), false, Counter(0), Arc::new(Alone), shutdown.clone()).await.unwrap();
    let snapshot = |data: &[u8]| {
        let members = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
        let metadata = SnapshotMetadata { conf_state: Some(members).into(), index: 9, term: 3, ..SnapshotMetadata::default() };
        let snapshot = Snapshot { data: data.to_vec().into(), metadata: Some(metadata).into(), ..Snapshot::default() };
        let mut message = Message { to: 2, from: 1, term: 3, snapshot: Some(snapshot).into(), ..Message::default() };
        message.set_msg_type(MessageType::MsgSnapshot);
        message.write_to_bytes().unwrap()
    };
    raft.step(1, snapshot(b"garbage"));
    let mut status = raft.status();
    let problem = status.wait_for(|status| status.problem.is_some()).await.unwrap().problem.clone().unwrap();
    assert!(problem.contains("the snapshot of entry 9 cannot be read"), "{problem}");
    assert_eq!(status.borrow().applied, 0);

    // The leader sends it again until it is taken.
    let good = snapshot(&7_u64.to_le_bytes());
    let taken = async {
        loop {
            raft.step(1, good.clone());
            let taken = status.wait_for(|status| status.applied == 9 && status.problem.is_none());
            if tokio::time::timeout(Duration::from_millis(50), taken).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), taken).await.expect("it takes part again");

    shutdown.cancel();
    while status.changed().await.is_ok() {}
    let (_, log) = Disk::open(&dir.0, 2).unwrap();
    assert_eq!((log.snapshot_index(), log.last()), (9, 9));
}

/// Counts its entries, and panics at each that says so, this many times.
struct Panics {
    counter: Counter,
    left: u32,
}

impl StateMachine for Panics {
    type Outcome = u64;
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<u64> {
        if data == b"panic" && self.left > 0 {
            self.left -= 1;
            panic!("a test");
        }
        self.counter.apply(index, data)
    }
    fn snapshot(&self) -> Vec<u8> {
        self.counter.snapshot()
    }
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.counter.restore(index, bytes)
    }
}

#[tokio::test]
async fn a_panic_is_no_end_of_a_manager() {
    let dir = TempDir(std::env::temp_dir().join(format!("raft-shell-panic-{}", std::process::id())));
    let _ = std::fs::remove_dir_all(&dir.0);
    let config = RaftConfig { tick: Duration::from_millis(20), ..RaftConfig::new(&dir.0, 1) };
    let shutdown = CancellationToken::new();
    let machine = Panics { counter: Counter(0), left: 1 };
    let raft = start(config, true, machine, Arc::new(Alone), shutdown.clone()).await.unwrap();
    assert_eq!(raft.propose(b"before".to_vec()).await.unwrap().1, 1);
    let error = raft.propose(b"panic".to_vec()).await.expect_err("its outcome is not known").to_string();
    assert!(error.contains("bug"), "{error}");
    let mut status = raft.status();
    let leads = status.wait_for(|status| status.is_leader && status.problem.is_none());
    tokio::time::timeout(Duration::from_secs(10), leads).await.expect("it takes part again").unwrap();
    assert_eq!(raft.propose(b"after".to_vec()).await.unwrap().1, 3, "each entry is applied once, that one too");
    shutdown.cancel();
    while status.changed().await.is_ok() {}
}
