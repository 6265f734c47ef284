//! A running raft: thread, disk and handle.

use super::fixture::{RunningManager, TempDir, config};
use skep::raft::{LogCipher, MembershipChange, Raft, RaftConfig, RaftError, Transport};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[tokio::test]
async fn a_single_manager_leads_when_it_is_started_and_keeps_what_it_acknowledged() {
    let folder = TempDir::new("single");
    let first = RunningManager::start(config(&folder.0), true).await.expect("starts");
    assert!(first.raft.status().borrow().is_leader);
    for i in 0..20 {
        let (_, count) = first.write(&format!("entry {i}")).await.expect("written");
        assert_eq!(count, i + 1);
    }
    let texts = first.machine.texts();
    first.stop().await;

    // `bootstrap` changes nothing about an existing log.
    for bootstrap in [true, false] {
        let again = RunningManager::start(config(&folder.0), bootstrap).await.expect("starts");
        assert!(again.raft.status().borrow().is_leader, "it leads again at once");
        assert_eq!(again.machine.texts(), texts);
        assert_eq!(again.machine.applied(), texts.len(), "each entry is applied once");
        again.stop().await;
    }
}

#[tokio::test]
async fn an_acknowledged_entry_is_durable() {
    let (folder, copy) = (TempDir::new("crash"), TempDir::new("crash-copy"));
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
    for i in 0..10 {
        running.write(&format!("entry {i}")).await.expect("written");
        // What remains after a crash: the file as it is, not closed.
        std::fs::copy(folder.0.join("raft.redb"), copy.0.join("raft.redb")).expect("copied");
        let revived = RunningManager::start(config(&copy.0), false).await.expect("starts");
        assert_eq!(revived.machine.texts(), running.machine.texts());
        revived.stop().await;
    }
    running.stop().await;
}

#[tokio::test]
async fn many_proposals_at_once_are_all_written_in_one_order() {
    let folder = TempDir::new("many");
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
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
    assert_eq!((indexes.len(), running.machine.texts().len()), (500, 500));
    running.stop().await;
}

#[tokio::test]
async fn entries_committed_together_are_published_once_and_before_their_outcomes() {
    let folder = TempDir::new("publish");
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
    let all = (0..300).map(|i| {
        let (raft, machine) = (running.raft.clone(), running.machine.clone());
        tokio::spawn(async move {
            let (_, entries) = raft.propose(format!("entry {i}").into_bytes()).await.expect("written");
            assert!(machine.published() >= entries, "a proposer reads what it has written");
        })
    });
    for written in all.collect::<Vec<_>>() {
        written.await.expect("no panic");
    }
    running.stop().await;
    let again = RunningManager::start(config(&folder.0), false).await.expect("starts");
    assert_eq!((again.machine.applied(), again.machine.published()), (300, 300));
    assert!(again.machine.publications() <= 3, "{} publications for one log", again.machine.publications());
    again.stop().await;
}

#[tokio::test]
async fn the_log_is_compacted_behind_a_snapshot() {
    let folder = TempDir::new("snapshot");
    let config = RaftConfig { snapshot_every: 50, keep_entries: 10, ..config(&folder.0) };
    let running = RunningManager::start(config.clone(), true).await.expect("starts");
    for i in 0..220 {
        running.write(&format!("entry {i}")).await.expect("written");
    }
    let texts = running.machine.texts();
    running.stop().await;
    let again = RunningManager::start(config.clone(), false).await.expect("starts");
    assert_eq!(again.machine.texts(), texts);
    assert!(again.machine.applied() < 60, "{} entries were replayed", again.machine.applied());
    again.stop().await;
    let (_, log) = skep::raft::Disk::open(&config.dir, 1).expect("opens");
    assert!(log.len() < 70, "{} entries are on the disk", log.len());
}

#[tokio::test]
async fn few_large_entries_are_compacted_as_many_small_ones_are() {
    const LARGE: usize = 100_000;
    let folder = TempDir::new("snapshot-bytes");
    // Ten entries of either bound.
    let bytes = 10 * LARGE as u64;
    let config = RaftConfig { snapshot_bytes: bytes, keep_bytes: bytes, ..config(&folder.0) };
    let running = RunningManager::start(config.clone(), true).await.expect("starts");
    for i in 0..45 {
        running.write(&format!("{i} {}", "x".repeat(LARGE))).await.expect("written");
    }
    let texts = running.machine.texts();
    running.stop().await;
    let again = RunningManager::start(config.clone(), false).await.expect("starts");
    assert_eq!(again.machine.texts(), texts);
    // Snapshots are made beside further entries; without one all are replayed.
    assert!(again.machine.applied() < 44, "{} entries were replayed", again.machine.applied());
    again.stop().await;
    let (_, log) = skep::raft::Disk::open(&config.dir, 1).expect("opens");
    assert!(log.len() < 45, "{} entries are on the disk", log.len());
}

#[tokio::test]
async fn the_state_may_say_how_often_snapshots_are_made_within_bounds() {
    for (asked, most) in [(120, 130), (1, 110)] {
        let folder = TempDir::new(&format!("snapshots-{asked}"));
        let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
        running.write(&format!("snapshots {asked}")).await.expect("written");
        for i in 0..230 {
            running.write(&format!("entry {i}")).await.expect("written");
        }
        running.stop().await;
        let again = RunningManager::start(config(&folder.0), false).await.expect("starts");
        let replayed = again.machine.applied();
        assert!((20..most).contains(&replayed), "asked for each {asked}: {replayed} entries were replayed");
        again.stop().await;
    }
}

#[tokio::test]
async fn another_raft_id_and_a_second_process_are_refused() {
    let folder = TempDir::new("foreign");
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
    let error = RunningManager::start(config(&folder.0), true).await.err().expect("refused").to_string();
    assert!(error.contains("raft.redb") && error.contains("in use"), "{error}");
    running.stop().await;
    let other = RaftConfig { id: 2, ..config(&folder.0) };
    let error = RunningManager::start(other, true).await.err().expect("refused").to_string();
    assert!(error.contains("raft id 1") && error.contains("raft id 2") && error.contains("raft.redb"), "{error}");
    let error = RunningManager::start(RaftConfig { id: 0, ..config(&folder.0) }, true).await.err().expect("refused").to_string();
    assert!(error.contains("raft id"), "{error}");
    RunningManager::start(config(&folder.0), true).await.expect("the right one still starts").stop().await;
}

#[tokio::test]
async fn a_manager_without_its_log_does_not_start_with_an_empty_one() {
    let folder = TempDir::new("lost");
    let error = RunningManager::start(config(&folder.0), false).await.err().expect("refused").to_string();
    assert!(error.contains("raft.redb is missing") && error.contains("backup"), "{error}");
    assert!(!folder.0.join("raft.redb").exists());
    // A manager that joins does, and waits for a leader without becoming one.
    skep::raft::join(&config(&folder.0)).expect("an empty log");
    let running = RunningManager::start(config(&folder.0), false).await.expect("starts");
    assert!(matches!(running.write("no").await, Err(RaftError::NotLeader { leader: None })));
    running.stop().await;
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_stops_the_manager_with_the_reason() {
    let folder = TempDir::new("unreadable");
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
    running.write("good").await.expect("written");
    let error = running.raft.propose(vec![0xff, 0xfe]).await.expect_err("refused");
    assert!(matches!(&error, RaftError::Stopped(why) if why.contains("cannot be read")), "{error}");
    let error = running.write("more").await.expect_err("stopped");
    assert!(matches!(error, RaftError::Stopped(_)));
    assert!(!running.raft.status().borrow().is_leader);
    assert!(running.raft.status().borrow().problem.is_some());
    running.stop().await;
    let error = RunningManager::start(config(&folder.0), false).await.err().expect("the entry is still there");
    assert!(format!("{error:#}").contains("not a text"), "{error:#}");
}

#[tokio::test]
async fn an_entry_that_is_too_large_is_refused_and_a_stopped_raft_reports_that() {
    let folder = TempDir::new("large");
    let running = RunningManager::start(config(&folder.0), true).await.expect("starts");
    let error = running.raft.propose(vec![b'x'; 9 << 20]).await.expect_err("refused");
    assert!(matches!(error, RaftError::TooLarge { .. }), "{error}");
    running.raft.propose(vec![b'x'; 7 << 20]).await.expect("written");
    let raft = running.raft.clone();
    running.stop().await;
    assert!(matches!(raft.propose(b"late".to_vec()).await, Err(RaftError::Stopped(_))));
}

/// A file system of 4 MiB.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(name: &str) -> Self {
        let folder = TempDir::new(name);
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
    let running = RunningManager::start(config(&disk.0.0.join("data")), true).await.expect("starts");
    let mut written = Vec::new();
    let error = loop {
        let text = format!("{} {}", written.len(), "x".repeat(200_000));
        match running.write(&text).await {
            Ok(_) => written.push(text),
            Err(error) => break error,
        }
        assert!(written.len() < 100, "20 MB do not fit in 4 MiB");
    };
    assert!(matches!(&error, RaftError::Stopped(why) if why.contains("raft.redb") && why.contains("free space")), "{error}");
    assert!(running.raft.status().borrow().problem.is_some());
    assert_eq!(running.machine.texts(), written, "nothing is applied that is not durable");

    SmallDisk::mount(&["-o", "remount,size=64m"], &disk.0.0);
    let mut status = running.raft.status();
    let recovered = status.wait_for(|s| s.is_leader && s.problem.is_none());
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("in time").expect("still runs");
    // The entry that failed may be on the disk or not; all acknowledged ones are, in order.
    running.write("after").await.expect("writes continue");
    let texts = running.machine.texts();
    assert_eq!(texts[..written.len()], written);
    assert_eq!(texts.last().map(String::as_str), Some("after"));
    running.stop().await;
}

/// A file system on a loop device whose file is in a small one: its writes are accepted, and fail when they are to reach the disk.
struct LyingDisk {
    below: SmallDisk,
    folder: TempDir,
}

impl LyingDisk {
    /// `None` where the kernel has no loop devices: `raft::disk::tests` has the failed sync alone.
    fn new(name: &str) -> Option<Self> {
        let (below, folder) = (SmallDisk::new(&format!("{name}-below")), TempDir::new(&format!("{name}-mounted")));
        let file = below.0.0.join("disk");
        std::fs::File::create(&file).and_then(|file| file.set_len(256 << 20)).expect("a file with holes");
        let options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard"];
        let made = std::process::Command::new("mkfs.ext4").args(options).arg(&file).status().expect("mkfs.ext4 runs");
        assert!(made.success(), "mkfs.ext4");
        let mount = ["-o", "loop,errors=continue", file.to_str().expect("a plain path")];
        let mounted = std::process::Command::new("mount").args(mount).arg(&folder.0).status().expect("mount runs");
        assert!(
            mounted.success() || !Path::new("/dev/loop-control").exists(),
            "this machine has loop devices and mounts no file"
        );
        mounted.success().then_some(Self { below, folder })
    }
}

impl Drop for LyingDisk {
    fn drop(&mut self) {
        // What it has not written needs room, or it holds the file below for as long as it tries.
        let _ = std::process::Command::new("mount").args(["-o", "remount,size=512m"]).arg(&self.below.0.0).status();
        let _ = std::process::Command::new("umount").arg(&self.folder.0).status();
    }
}

#[tokio::test]
async fn a_disk_that_has_lost_a_write_is_written_no_more_also_when_it_works_again() {
    let Some(disk) = LyingDisk::new("lying") else {
        // Not `eprintln`: what a test that passes has printed with it is not shown.
        let said = "SKIPPED: a disk that has lost a write is not tested, as this kernel has no loop devices";
        return writeln!(std::io::stderr(), "{said}").expect("standard error");
    };
    let running = RunningManager::start(config(&disk.folder.0.join("data")), true).await.expect("starts");
    let mut written = Vec::new();
    let error = loop {
        let text = format!("{} {}", written.len(), "x".repeat(200_000));
        match running.write(&text).await {
            Ok(_) => written.push(text),
            Err(error) => break error,
        }
        assert!(written.len() < 100, "20 MB do not fit in 4 MiB");
    };
    let is_final = |error: &RaftError| matches!(error, RaftError::Stopped(why) if why.contains("replace the disk"));
    assert!(is_final(&error), "{error}");
    assert_eq!(running.machine.texts(), written, "nothing is applied that is not durable");

    SmallDisk::mount(&["-o", "remount,size=512m"], &disk.below.0.0);
    // A full disk is tried again each second.
    let mut status = running.raft.status();
    let recovered = status.wait_for(|s| s.is_leader || s.problem.is_none());
    tokio::time::timeout(Duration::from_secs(4), recovered).await.expect_err("it takes part again");
    assert!(is_final(&running.write("after").await.expect_err("refused")));
    assert!(matches!(running.raft.seal_again().await, Err(error) if is_final(&error)));
    let problem = running.raft.status().borrow().problem.clone().expect("shown");
    assert!(problem.contains("raft.redb") && problem.contains("restore the data directory from a backup"), "{problem}");
    running.stop().await;
}

/// Election ticks for several managers: one to two seconds, so that a slow disk does not look like a dead leader.
const SLOW_ELECTION: (usize, usize) = (50, 100);

/// Carries messages between managers of one process.
#[derive(Default)]
struct LocalTransport(Mutex<BTreeMap<u64, Raft<usize>>>);

impl Transport for LocalTransport {
    fn send(&self, to: u64, message: Vec<u8>) {
        if let Some(raft) = self.0.lock().expect("lock").get(&to) {
            raft.step(skep::raft::sender(&message).expect("a sender"), message);
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

/// Three managers with a configuration that is changed, of which the first made the cluster.
async fn three(
    folder: &TempDir,
    transport: &Arc<LocalTransport>,
    change: impl Fn(&mut RaftConfig),
) -> BTreeMap<u64, RunningManager> {
    let mut managers = BTreeMap::new();
    for id in 1..=3_u64 {
        let mut config = RaftConfig { id, ..config(&folder.0.join(id.to_string())) };
        change(&mut config);
        if id > 1 {
            skep::raft::join(&config).expect("an empty log");
        }
        let running = RunningManager::start_with(config, id == 1, transport.clone()).await.expect("starts");
        transport.0.lock().expect("lock").insert(id, running.raft.clone());
        managers.insert(id, running);
    }
    for id in [2, 3] {
        managers[&1].raft.change(MembershipChange::AddVoter(id)).await.expect("added");
        let voters = usize::try_from(id).expect("small");
        eventually("it has the new membership", || managers[&id].raft.status().borrow().voters.len() == voters).await;
    }
    managers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_running_managers_continue_without_their_leader() {
    let folder = TempDir::new("three");
    let transport = Arc::new(LocalTransport::default());
    let mut managers = three(&folder, &transport, |config| config.election_ticks = SLOW_ELECTION).await;
    managers[&1].write("by the first").await.expect("written");
    eventually("all have it", || managers.values().all(|m| m.machine.texts() == ["by the first"])).await;

    transport.0.lock().expect("lock").remove(&1);
    managers.remove(&1).expect("first").stop().await;
    eventually("another leads", || managers.values().any(|m| m.raft.status().borrow().is_leader)).await;
    let (leader, follower) = if managers[&2].raft.status().borrow().is_leader {
        (&managers[&2], &managers[&3])
    } else {
        (&managers[&3], &managers[&2])
    };
    leader.write("by the second").await.expect("written");
    assert!(matches!(follower.write("no").await, Err(RaftError::NotLeader { leader: Some(_) })));
    eventually("the other has it", || follower.machine.texts() == ["by the first", "by the second"]).await;
    for (_, manager) in managers {
        manager.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged() {
    let folder = TempDir::new("minority");
    let transport = Arc::new(LocalTransport::default());
    let settings = |id: u64| RaftConfig {
        id,
        propose_timeout: Duration::from_secs(2),
        election_ticks: SLOW_ELECTION,
        ..config(&folder.0.join(id.to_string()))
    };
    skep::raft::join(&settings(2)).expect("an empty log");
    let first = RunningManager::start_with(settings(1), true, transport.clone()).await.expect("starts");
    let second = RunningManager::start_with(settings(2), false, transport.clone()).await.expect("starts");
    transport.0.lock().expect("lock").extend([(1, first.raft.clone()), (2, second.raft.clone())]);
    first.raft.change(MembershipChange::AddVoter(2)).await.expect("added");
    eventually("the second votes", || second.raft.status().borrow().voters == [1, 2]).await;

    transport.0.lock().expect("lock").remove(&2);
    second.stop().await;
    let error = first.write("alone").await.expect_err("not written");
    assert!(matches!(error, RaftError::TimedOut | RaftError::NotLeader { .. }), "{error}");
    assert!(first.machine.texts().is_empty());
    eventually("it steps down", || !first.raft.status().borrow().is_leader).await;
    assert!(matches!(first.write("alone").await, Err(RaftError::NotLeader { leader: None })));
    first.stop().await;
}

/// A disk that answers no write while it is held.
#[derive(Debug, Default)]
struct HeldDisk {
    held: Mutex<bool>,
    released: Condvar,
}

impl HeldDisk {
    fn hold(&self, held: bool) {
        *self.held.lock().expect("lock") = held;
        self.released.notify_all();
    }
}

/// Sealing a row is a part of writing it.
impl LogCipher for HeldDisk {
    fn key(&self) -> Option<String> {
        Some("key".to_owned())
    }
    fn seal(&self, _: &str, _: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        let held = self.held.lock().expect("lock");
        drop(self.released.wait_while(held, |held| *held).expect("lock"));
        Ok(row.to_vec())
    }
    fn open(&self, _: &str, _: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        Ok(row.to_vec())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_does_not_answer_leads_no_more() {
    let folder = TempDir::new("held");
    let (disk, transport) = (Arc::new(HeldDisk::default()), Arc::new(LocalTransport::default()));
    let mut managers = three(&folder, &transport, |config| {
        config.election_ticks = (25, 50);
        if config.id == 1 {
            config.cipher = disk.clone();
        }
    })
    .await;
    let mut status = managers[&1].raft.status();
    status.wait_for(|status| status.is_leader).await.expect("it leads");
    let raft = managers[&1].raft.clone();
    let watching = tokio::spawn(async move { raft.watch_turns().await });

    disk.hold(true);
    let raft = managers[&1].raft.clone();
    let held = tokio::spawn(async move { raft.propose(b"held".to_vec()).await });
    // All that goes by the status would take it for the leader, and keep the sessions of all nodes.
    let lost = status.wait_for(|status| status.leader.is_none() && !status.is_leader);
    tokio::time::timeout(Duration::from_secs(4), lost).await.expect("it says so").expect("it runs");
    let leads = |id: u64| managers[&id].raft.status().borrow().is_leader;
    eventually("another leads", || leads(2) || leads(3)).await;
    let leader = if leads(2) { 2 } else { 3 };
    managers[&leader].write("meanwhile").await.expect("written");
    let problem = status.wait_for(|status| status.problem.is_some()).await.expect("it runs").problem.clone();
    assert!(problem.is_some_and(|why| why.contains("raft.redb") && why.contains("does not answer")));

    disk.hold(false);
    let after = status.wait_for(|status| status.leader.is_some()).await.expect("it runs").clone();
    assert_eq!((after.leader, after.is_leader, after.problem), (Some(leader), false, None), "it has heard of the other first");
    eventually("it has what was written", || managers[&1].machine.texts() == managers[&leader].machine.texts()).await;
    assert!(managers[&1].machine.texts().contains(&"meanwhile".to_owned()));
    let _ = held.await.expect("no panic");

    // A daemon that is to stop does not wait for such a disk.
    disk.hold(true);
    managers[&leader].write("more").await.expect("written");
    let first = managers.remove(&1).expect("first");
    let raft = first.raft.clone();
    let stopping = tokio::spawn(first.stop());
    assert!(!raft.closed_unless_held(Duration::from_millis(500)).await);
    disk.hold(false);
    assert!(raft.closed_unless_held(Duration::from_secs(20)).await);
    stopping.await.expect("no panic");
    watching.await.expect("it ends with the thread");
    for (_, manager) in managers {
        manager.stop().await;
    }
}
