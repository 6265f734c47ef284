//! The running thing: thread, disk and handle.

use anyhow::Context as _;
use skep::raft::{Change, Raft, RaftConfig, RaftError, StateMachine, Transport, start};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A folder that is gone when the test is.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("raft-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Remembers what it was told, where the test can see it.
#[derive(Clone, Default)]
pub struct Diary(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    entries: Vec<(u64, String)>,
    applied: usize,
    restored: Vec<u64>,
}

impl Diary {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().expect("lock").entries.iter().map(|(_, text)| text.clone()).collect()
    }
    fn applied(&self) -> usize {
        self.0.lock().expect("lock").applied
    }
}

impl StateMachine for Diary {
    /// How many entries there are now.
    type Outcome = usize;
    fn apply(&mut self, index: u64, data: &[u8]) -> anyhow::Result<usize> {
        let mut seen = self.0.lock().expect("lock");
        let text = String::from_utf8(data.to_vec()).context("not a text")?;
        assert!(seen.entries.last().is_none_or(|(last, _)| *last < index), "entry {index} is applied twice");
        seen.entries.push((index, text));
        seen.applied += 1;
        Ok(seen.entries.len())
    }
    fn snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0.lock().expect("lock").entries).expect("plain data")
    }
    fn restore(&mut self, index: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let mut seen = self.0.lock().expect("lock");
        seen.entries = serde_json::from_slice(bytes)?;
        seen.restored.push(index);
        Ok(())
    }
}

pub struct Nowhere;
impl Transport for Nowhere {
    fn send(&self, _: u64, _: Vec<u8>) {}
}

pub fn config(dir: &Path) -> RaftConfig {
    RaftConfig { tick: Duration::from_millis(20), ..RaftConfig::new(dir, 1, 7) }
}

pub struct Running {
    pub raft: Raft<usize>,
    pub diary: Diary,
    shutdown: CancellationToken,
}

impl Running {
    pub async fn start(config: RaftConfig, bootstrap: bool) -> anyhow::Result<Self> {
        Self::start_with(config, bootstrap, Arc::new(Nowhere)).await
    }
    async fn start_with(config: RaftConfig, bootstrap: bool, transport: Arc<dyn Transport>) -> anyhow::Result<Self> {
        let (diary, shutdown) = (Diary::default(), CancellationToken::new());
        let raft = start(config, bootstrap, diary.clone(), transport, shutdown.clone()).await?;
        Ok(Self { raft, diary, shutdown })
    }
    pub async fn write(&self, text: &str) -> Result<(u64, usize), RaftError> {
        self.raft.propose(text.as_bytes().to_vec()).await
    }
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.raft.closed().await;
    }
}

#[tokio::test]
async fn a_single_manager_leads_when_it_is_up_and_keeps_what_it_answered() {
    let folder = Folder::new("single");
    let first = Running::start(config(&folder.0), true).await.expect("starts");
    assert!(first.raft.status().borrow().is_leader);
    for i in 0..20 {
        let (_, count) = first.write(&format!("entry {i}")).await.expect("written");
        assert_eq!(count, i + 1);
    }
    let texts = first.diary.texts();
    first.stop().await;

    // `bootstrap` does not touch a log that is there, and without it the log is found just as well.
    for bootstrap in [true, false] {
        let again = Running::start(config(&folder.0), bootstrap).await.expect("starts");
        assert!(again.raft.status().borrow().is_leader, "it leads again at once");
        assert_eq!(again.diary.texts(), texts);
        assert_eq!(again.diary.applied(), texts.len(), "each entry is applied once");
        again.stop().await;
    }
}

#[tokio::test]
async fn what_was_answered_is_in_the_file_at_that_moment() {
    let (folder, copy) = (Folder::new("crash"), Folder::new("crash-copy"));
    let running = Running::start(config(&folder.0), true).await.expect("starts");
    for i in 0..10 {
        running.write(&format!("entry {i}")).await.expect("written");
        // What a crash would leave: the file as it is, not closed.
        std::fs::copy(folder.0.join("raft.redb"), copy.0.join("raft.redb")).expect("copied");
        let revived = Running::start(config(&copy.0), false).await.expect("starts");
        assert_eq!(revived.diary.texts(), running.diary.texts());
        revived.stop().await;
    }
    running.stop().await;
}

#[tokio::test]
async fn many_proposals_at_once_are_all_written_in_one_order() {
    let folder = Folder::new("many");
    let running = Running::start(config(&folder.0), true).await.expect("starts");
    let all = (0..500).map(|i| {
        let raft = running.raft.clone();
        tokio::spawn(async move { raft.propose(format!("entry {i}").into_bytes()).await.expect("written") })
    });
    let mut indexes = Vec::new();
    for written in all.collect::<Vec<_>>() {
        indexes.push(written.await.expect("no panic").0);
    }
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!((indexes.len(), running.diary.texts().len()), (500, 500));
    running.stop().await;
}

#[tokio::test]
async fn the_log_is_cut_behind_a_snapshot() {
    let folder = Folder::new("snapshot");
    let config = RaftConfig { snapshot_every: 50, keep_entries: 10, ..config(&folder.0) };
    let running = Running::start(config.clone(), true).await.expect("starts");
    for i in 0..220 {
        running.write(&format!("entry {i}")).await.expect("written");
    }
    let texts = running.diary.texts();
    running.stop().await;
    let again = Running::start(config.clone(), false).await.expect("starts");
    assert_eq!(again.diary.texts(), texts);
    assert!(again.diary.applied() < 60, "{} entries were replayed", again.diary.applied());
    again.stop().await;
    let (_, log) = skep::raft::Disk::open(&config.dir, 1).expect("opens");
    assert!(log.len() < 70, "{} entries are on the disk", log.len());
}

#[tokio::test]
async fn another_raft_id_and_a_second_process_are_refused() {
    let folder = Folder::new("foreign");
    let running = Running::start(config(&folder.0), true).await.expect("starts");
    let error = Running::start(config(&folder.0), true).await.err().expect("refused").to_string();
    assert!(error.contains("raft.redb") && error.contains("in use"), "{error}");
    running.stop().await;
    let other = RaftConfig { id: 2, ..config(&folder.0) };
    let error = Running::start(other, true).await.err().expect("refused").to_string();
    assert!(error.contains("raft id 1") && error.contains("raft id 2") && error.contains("raft.redb"), "{error}");
    let error = Running::start(RaftConfig { id: 0, ..config(&folder.0) }, true).await.err().expect("refused").to_string();
    assert!(error.contains("raft id"), "{error}");
    Running::start(config(&folder.0), true).await.expect("the right one still starts").stop().await;
}

#[tokio::test]
async fn a_manager_without_its_log_does_not_begin_anew() {
    let folder = Folder::new("lost");
    let error = Running::start(config(&folder.0), false).await.err().expect("refused").to_string();
    assert!(error.contains("raft.redb is missing") && error.contains("backup"), "{error}");
    assert!(!folder.0.join("raft.redb").exists());
    // One that joins does, and waits for a leader without becoming one.
    skep::raft::join(&config(&folder.0)).expect("an empty log");
    let running = Running::start(config(&folder.0), false).await.expect("starts");
    assert!(matches!(running.write("no").await, Err(RaftError::NotLeader { leader: None })));
    running.stop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_manager_with_the_reason() {
    let folder = Folder::new("unreadable");
    let running = Running::start(config(&folder.0), true).await.expect("starts");
    running.write("good").await.expect("written");
    let error = running.raft.propose(vec![0xff, 0xfe]).await.expect_err("refused");
    assert!(matches!(&error, RaftError::Stopped(why) if why.contains("cannot be read")), "{error}");
    let error = running.write("more").await.expect_err("stopped");
    assert!(matches!(error, RaftError::Stopped(_)));
    assert!(!running.raft.status().borrow().is_leader);
    assert!(running.raft.status().borrow().problem.is_some());
    running.stop().await;
    let error = Running::start(config(&folder.0), false).await.err().expect("the entry is still there");
    assert!(format!("{error:#}").contains("not a text"), "{error:#}");
}

#[tokio::test]
async fn too_large_an_entry_is_refused_and_a_stopped_raft_says_so() {
    let folder = Folder::new("large");
    let running = Running::start(config(&folder.0), true).await.expect("starts");
    let error = running.raft.propose(vec![b'x'; 9 << 20]).await.expect_err("refused");
    assert!(matches!(error, RaftError::TooLarge { .. }), "{error}");
    running.raft.propose(vec![b'x'; 7 << 20]).await.expect("written");
    let raft = running.raft.clone();
    running.stop().await;
    assert!(matches!(raft.propose(b"late".to_vec()).await, Err(RaftError::Stopped(_))));
}

/// A small disk of its own.
struct SmallDisk(Folder);

impl SmallDisk {
    fn new(name: &str) -> Self {
        let folder = Folder::new(name);
        Self::mount(&["-t", "tmpfs", "-o", "size=4m", "raft-test"], &folder.0);
        Self(folder)
    }
    fn mount(arguments: &[&str], path: &Path) {
        let status = std::process::Command::new("mount").args(arguments).arg(path).status().expect("mount runs");
        assert!(status.success(), "this test needs root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_writes_and_nothing_else() {
    let disk = SmallDisk::new("full");
    let running = Running::start(config(&disk.0.0.join("data")), true).await.expect("starts");
    let mut written = Vec::new();
    let error = loop {
        let text = format!("{} {}", written.len(), "x".repeat(200_000));
        match running.write(&text).await {
            Ok(_) => written.push(text),
            Err(error) => break error,
        }
        assert!(written.len() < 100, "4 MiB hold no 20 MB");
    };
    assert!(matches!(&error, RaftError::Stopped(why) if why.contains("raft.redb") && why.contains("free space")), "{error}");
    assert!(running.raft.status().borrow().problem.is_some());
    assert_eq!(running.diary.texts(), written, "nothing is applied that is not durable");

    SmallDisk::mount(&["-o", "remount,size=64m"], &disk.0.0);
    let mut status = running.raft.status();
    let recovered = status.wait_for(|s| s.is_leader && s.problem.is_none());
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("in time").expect("still runs");
    // The entry that failed may or may not have reached the disk; all that were answered did, and still are in order.
    running.write("after").await.expect("writes go on");
    let texts = running.diary.texts();
    assert_eq!(texts[..written.len()], written);
    assert_eq!(texts.last().map(String::as_str), Some("after"));
    running.stop().await;
}

/// Election ticks for several managers: one to two seconds, so that a busy machine's disk does not look like a dead leader.
const PATIENT: (usize, usize) = (50, 100);

/// Carries messages between managers of one process.
#[derive(Default)]
struct Wire(OnceLock<tokio::runtime::Handle>, Mutex<BTreeMap<u64, Raft<usize>>>);

impl Transport for Wire {
    fn send(&self, to: u64, message: Vec<u8>) {
        let raft = self.1.lock().expect("lock").get(&to).cloned();
        if let (Some(runtime), Some(raft)) = (self.0.get(), raft) {
            runtime.spawn(async move { raft.step(message).await });
        }
    }
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let all = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_running_managers_go_on_without_their_leader() {
    let folder = Folder::new("three");
    let wire = Arc::new(Wire::default());
    wire.0.set(tokio::runtime::Handle::current()).expect("set once");
    let mut managers = BTreeMap::new();
    for id in 1..=3_u64 {
        let config = RaftConfig { id, election_ticks: PATIENT, ..config(&folder.0.join(id.to_string())) };
        if id > 1 {
            skep::raft::join(&config).expect("an empty log");
        }
        let running = Running::start_with(config, id == 1, wire.clone()).await.expect("starts");
        wire.1.lock().expect("lock").insert(id, running.raft.clone());
        managers.insert(id, running);
    }
    for id in [2, 3] {
        managers[&1].raft.change(Change::AddVoter(id)).await.expect("added");
        let voters = usize::try_from(id).expect("small");
        eventually("it knows who votes", || managers[&id].raft.status().borrow().voters.len() == voters).await;
    }
    managers[&1].write("by the first").await.expect("written");
    eventually("all have it", || managers.values().all(|m| m.diary.texts() == ["by the first"])).await;

    wire.1.lock().expect("lock").remove(&1);
    managers.remove(&1).expect("first").stop().await;
    eventually("another leads", || managers.values().any(|m| m.raft.status().borrow().is_leader)).await;
    let (leader, follower) = if managers[&2].raft.status().borrow().is_leader {
        (&managers[&2], &managers[&3])
    } else {
        (&managers[&3], &managers[&2])
    };
    leader.write("by the second").await.expect("written");
    assert!(matches!(follower.write("no").await, Err(RaftError::NotLeader { leader: Some(_) })));
    eventually("the other has it", || follower.diary.texts() == ["by the first", "by the second"]).await;
    for (_, manager) in managers {
        manager.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_answered_as_written() {
    let folder = Folder::new("minority");
    let wire = Arc::new(Wire::default());
    wire.0.set(tokio::runtime::Handle::current()).expect("set once");
    let settings = |id: u64| RaftConfig {
        id,
        propose_timeout: Duration::from_secs(2),
        election_ticks: PATIENT,
        ..config(&folder.0.join(id.to_string()))
    };
    skep::raft::join(&settings(2)).expect("an empty log");
    let first = Running::start_with(settings(1), true, wire.clone()).await.expect("starts");
    let second = Running::start_with(settings(2), false, wire.clone()).await.expect("starts");
    wire.1.lock().expect("lock").extend([(1, first.raft.clone()), (2, second.raft.clone())]);
    first.raft.change(Change::AddVoter(2)).await.expect("added");
    eventually("the second votes", || second.raft.status().borrow().voters == [1, 2]).await;

    wire.1.lock().expect("lock").remove(&2);
    second.stop().await;
    let error = first.write("alone").await.expect_err("not written");
    assert!(matches!(error, RaftError::TimedOut | RaftError::NotLeader { .. }), "{error}");
    assert!(first.diary.texts().is_empty());
    eventually("it steps down", || !first.raft.status().borrow().is_leader).await;
    assert!(matches!(first.write("alone").await, Err(RaftError::NotLeader { leader: None })));
    first.stop().await;
}
