//! The file has the same content as a log in memory, and names its format.

use super::*;
use crate::raft::Log;
use proptest::prelude::*;
use raft::eraftpb::{ConfState, SnapshotMetadata};
use redb::StorageBackend as _;
use redb::backends::FileBackend;
use std::sync::atomic::{AtomicBool, Ordering};

fn plain() -> Arc<dyn LogCipher> {
    Arc::new(NoCipher)
}

struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("raft-unit-{name}-{}", std::process::id()));
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

fn snapshot(index: u64, term: u64) -> Snapshot {
    let metadata = SnapshotMetadata {
        conf_state: Some(ConfState { voters: vec![1], ..ConfState::default() }).into(),
        index,
        term,
        ..SnapshotMetadata::default()
    };
    Snapshot { data: vec![7; 100].into(), metadata: Some(metadata).into(), ..Snapshot::default() }
}

/// A batch that raft may write next, selected by the numbers.
fn batch(log: &Log, (choice, a, b): (u8, u64, u64)) -> LogBatch {
    let term = log.hard_state.term + b % 2;
    let hard = |commit| Some(HardState { term, vote: 1, commit, ..HardState::default() });
    match choice {
        // Entries at the end, or replacing some that are not committed.
        0 => {
            let commit = log.hard_state.commit;
            let first = commit + 1 + a % (log.last() - commit + 1);
            let make = |i| Entry { index: first + i, term, data: vec![0; 50].into(), ..Entry::default() };
            LogBatch { entries: (0..=b).map(make).collect(), hard_state: hard(commit), ..LogBatch::default() }
        }
        1 => LogBatch {
            hard_state: hard(log.hard_state.commit + a % (log.last() - log.hard_state.commit + 1)),
            ..LogBatch::default()
        },
        2 => {
            let index = log.snapshot_index() + a % (log.hard_state.commit - log.snapshot_index() + 1);
            let cut = log.compacted.0 + b % (index - log.compacted.0 + 1);
            let term_of = |i| log.term_of(i).expect("within");
            let compacted = Some((cut, term_of(cut)));
            LogBatch { snapshot: Some(snapshot(index, term_of(index))), compacted, ..LogBatch::default() }
        }
        _ => {
            let index = log.last() + 1 + a;
            LogBatch { snapshot: Some(snapshot(index, term)), reset: true, hard_state: hard(index), ..LogBatch::default() }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disk_and_memory_agree(steps in proptest::collection::vec((0..4_u8, 0..8_u64, 0..4_u64), 1..25)) {
        let folder = TempDir::new("agree");
        let mut expected = Log::bootstrap(1, b"new".to_vec());
        Disk::create(&folder.0, 1, &expected, &plain()).expect("made");
        let (mut disk, found) = Disk::open(&folder.0, 1).expect("opens");
        prop_assert_eq!(&found, &expected);
        for (i, step) in steps.into_iter().enumerate() {
            let batch = batch(&expected, step);
            expected.write(&batch);
            disk.write(&batch).expect("written");
            if i % 5 == 4 {
                drop(disk);
                let found;
                (disk, found) = Disk::open(&folder.0, 1).expect("opens");
                prop_assert_eq!(&found, &expected);
            }
        }
        drop(disk);
        prop_assert_eq!(Disk::open(&folder.0, 1).expect("opens").1, expected);
    }
}

#[test]
fn a_newer_file_and_an_inconsistent_one_are_refused() {
    let folder = TempDir::new("newer");
    Disk::create(&folder.0, 1, &Log::bootstrap(1, Vec::new()), &plain()).expect("made");
    let (disk, _) = Disk::open(&folder.0, 1).expect("opens");
    disk.transact(|t| Ok(t.open_table(META)?.insert("format", 9_u64.to_le_bytes().as_slice()).map(|_| ())?))
        .map_err(drop)
        .expect("written");
    drop(disk);
    let error = Disk::open(&folder.0, 1).expect_err("refused");
    assert!(matches!(error, DiskError::Newer { found: 9, .. }));
    assert!(error.to_string().contains("newer skep"), "{error}");
    // The format is checked before anything else: a newer file may store its owner in another place.
    assert!(matches!(Disk::open(&folder.0, 2), Err(DiskError::Newer { .. })));

    let gap = TempDir::new("gap");
    Disk::create(&gap.0, 1, &Log::bootstrap(1, Vec::new()), &plain()).expect("made");
    let (disk, _) = Disk::open(&gap.0, 1).expect("opens");
    let entry = |index| Entry { index, term: 1, ..Entry::default() };
    disk.write(&LogBatch { entries: vec![entry(2), entry(4)], ..LogBatch::default() }).expect("written");
    drop(disk);
    let error = Disk::open(&gap.0, 1).expect_err("refused");
    assert!(error.to_string().contains("entry 4 follows entry 2"), "{error}");
}

#[test]
fn a_write_is_tried_again_only_for_lack_of_space() {
    let error = |number: i32, doing| io_error("/data/raft.redb".into(), doing, &std::io::Error::from_raw_os_error(number));
    // ENOSPC, EDQUOT.
    for full in [28, 122] {
        assert!(matches!(error(full, "written"), DiskError::Io { .. }), "{full}");
    }
    // EIO, EROFS.
    for broken in [5, 30] {
        let text = error(broken, "written").to_string();
        assert!(matches!(error(broken, "written"), DiskError::Broken { .. }), "{text}");
        assert!(text.contains("/data/raft.redb") && text.contains("replace the disk"), "{text}");
        assert!(matches!(error(broken, "read"), DiskError::Io { .. }), "{broken}");
    }
}

/// Whatever the kernel's reason: a full disk below the file system reports the same as a full file system.
#[test]
fn a_log_whose_sync_has_failed_is_not_written_on() {
    // EIO, ENOSPC, EDQUOT.
    for number in [5, 28, 122] {
        let folder = TempDir::new(&format!("sync-{number}"));
        let log = Log::bootstrap(1, Vec::new());
        Disk::create(&folder.0, 1, &log, &plain()).expect("made");
        let fails = Arc::new(AtomicBool::new(false));
        let is_failing = fails.clone();
        let sync = move |file: &FileBackend| {
            if is_failing.load(Ordering::SeqCst) { Err(std::io::Error::from_raw_os_error(number)) } else { file.sync_data() }
        };
        let opened = Disk::open_with(&folder.0, &plain(), |path| LogFile::open_with(path, Box::new(sync)));
        let (disk, mut log, _) = opened.expect("opens");
        let first = batch(&log, (0, 0, 3));
        disk.write(&first).expect("written");
        log.write(&first);
        fails.store(true, Ordering::SeqCst);
        let error = disk.write(&batch(&log, (0, 0, 3))).expect_err("it is not on the disk");
        assert!(matches!(error, DiskError::Broken { .. }), "{number}: {error:?}");
        assert!(error.to_string().contains("raft.redb") && error.to_string().contains("replace the disk"), "{error}");
        fails.store(false, Ordering::SeqCst);
        disk.write(&batch(&log, (0, 0, 3))).expect_err("what the kernel has dropped is not written again");
        // Nor is it opened where what the opening writes cannot be synced.
        drop(disk);
        let failing = move |_: &FileBackend| Err(std::io::Error::from_raw_os_error(number));
        let opened = Disk::open_with(&folder.0, &plain(), |path| LogFile::open_with(path, Box::new(failing)));
        assert!(matches!(opened, Err(DiskError::Broken { .. })), "{number}: {opened:?}");
    }
}

/// Names a key, and seals with none.
#[derive(Debug)]
struct LostKey;

impl LogCipher for LostKey {
    fn key(&self) -> Option<String> {
        Some("lost".to_owned())
    }
    fn seal(&self, key: &str, _: &str, _: &[u8]) -> Result<Vec<u8>, String> {
        Err(format!("there is no key {key}"))
    }
    fn open(&self, key: &str, place: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        self.seal(key, place, row)
    }
}

#[test]
fn a_new_file_that_was_not_finished_is_removed_and_the_log_is_written_on() {
    let folder = TempDir::new("unfinished");
    let mut expected = Log::bootstrap(1, b"new".to_vec());
    Disk::create(&folder.0, 1, &expected, &plain()).expect("made");
    let (mut disk, _) = Disk::open_sealed(&folder.0, 1, &(Arc::new(LostKey) as _)).expect("it is not sealed");
    let batch = batch(&expected, (0, 0, 3));
    for _ in 0..2 {
        let error = disk.seal_again(&folder.0).expect_err("there is no key");
        assert!(matches!(error, SealAgainError::Unchanged(_)), "{error}");
        assert!(!folder.0.join(NEW).exists(), "it takes no space");
        disk.write(&batch).expect("written");
    }
    expected.write(&batch);
    drop(disk);
    assert_eq!(Disk::open(&folder.0, 1).expect("opens").1, expected);
}

/// A key that rows are not changed with.
#[derive(Debug)]
struct NamedKey;

impl LogCipher for NamedKey {
    fn key(&self) -> Option<String> {
        Some("named".to_owned())
    }
    fn seal(&self, _: &str, _: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        Ok(row.to_vec())
    }
    fn open(&self, _: &str, _: &str, row: &[u8]) -> Result<Vec<u8>, String> {
        Ok(row.to_vec())
    }
}

#[test]
fn a_log_in_whose_place_another_file_may_be_after_a_power_cut_is_not_used_on() {
    // EIO, ENOSPC, EROFS.
    for number in [5, 28, 30] {
        let folder = TempDir::new(&format!("folder-{number}"));
        Disk::create(&folder.0, 1, &Log::bootstrap(1, b"new".to_vec()), &plain()).expect("made");
        let cipher: Arc<dyn LogCipher> = Arc::new(NamedKey);
        let (mut disk, _) = Disk::open_sealed(&folder.0, 1, &cipher).expect("opens");
        let failed = disk.seal_again_with(&folder.0, |_| Err(std::io::Error::from_raw_os_error(number)));
        let error = failed.expect_err("the folder is not durable");
        let SealAgainError::Replaced(DiskError::Broken { path, .. }) = &error else { panic!("{number}: {error:?}") };
        assert_eq!(*path, folder.0.join(FILE));
        assert!(error.to_string().contains("replace the disk"), "{error}");
    }
    // Before anything was changed.
    let folder = TempDir::new("folder-gone");
    Disk::create(&folder.0, 1, &Log::bootstrap(1, b"new".to_vec()), &plain()).expect("made");
    let (mut disk, _) = Disk::open_sealed(&folder.0, 1, &(Arc::new(NamedKey) as _)).expect("opens");
    let error = disk.seal_again(&folder.0.join("gone")).expect_err("there is no such folder");
    assert!(matches!(error, SealAgainError::Unchanged(_)), "{error:?}");
    disk.seal_again(&folder.0).expect("sealed");
}
