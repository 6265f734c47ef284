//! The file holds what a log in memory would hold, and says what it is.

use super::*;
use crate::raft::Log;
use proptest::prelude::*;
use raft::eraftpb::{ConfState, SnapshotMetadata};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("raft-unit-{name}-{}", std::process::id()));
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

fn snapshot(index: u64, term: u64) -> Snapshot {
    let metadata = SnapshotMetadata {
        conf_state: Some(ConfState { voters: vec![1], ..ConfState::default() }).into(),
        index,
        term,
        ..SnapshotMetadata::default()
    };
    Snapshot { data: vec![7; 100].into(), metadata: Some(metadata).into(), ..Snapshot::default() }
}

/// What raft may ask for next, given the log: (choice, number, number).
fn batch(log: &Log, (choice, a, b): (u8, u64, u64)) -> Batch {
    let term = log.hard_state.term + b % 2;
    let hard = |commit| Some(HardState { term, vote: 1, commit, ..HardState::default() });
    match choice {
        // Entries at the end, or in place of some that are not committed.
        0 => {
            let commit = log.hard_state.commit;
            let first = commit + 1 + a % (log.last() - commit + 1);
            let make = |i| Entry { index: first + i, term, data: vec![0; 50].into(), ..Entry::default() };
            Batch { entries: (0..=b).map(make).collect(), hard_state: hard(commit), ..Batch::default() }
        }
        1 => Batch { hard_state: hard(log.hard_state.commit + a % (log.last() - log.hard_state.commit + 1)), ..Batch::default() },
        2 => {
            let index = log.snapshot_index() + a % (log.hard_state.commit - log.snapshot_index() + 1);
            let cut = log.compacted.0 + b % (index - log.compacted.0 + 1);
            let term_of = |i| log.term_of(i).expect("within");
            let compacted = Some((cut, term_of(cut)));
            Batch { snapshot: Some(snapshot(index, term_of(index))), compacted, ..Batch::default() }
        }
        _ => {
            let index = log.last() + 1 + a;
            Batch { snapshot: Some(snapshot(index, term)), reset: true, hard_state: hard(index), ..Batch::default() }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn disk_and_memory_agree(steps in proptest::collection::vec((0..4_u8, 0..8_u64, 0..4_u64), 1..25)) {
        let folder = Folder::new("agree");
        let mut expected = Log::bootstrap(1, b"fresh".to_vec());
        Disk::create(&folder.0, 1, &expected).expect("made");
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
fn a_newer_file_and_one_that_makes_no_sense_are_refused() {
    let folder = Folder::new("newer");
    Disk::create(&folder.0, 1, &Log::bootstrap(1, Vec::new())).expect("made");
    let (disk, _) = Disk::open(&folder.0, 1).expect("opens");
    disk.transact(|t| Ok(t.open_table(META)?.insert("format", 9_u64.to_le_bytes().as_slice()).map(|_| ())?))
        .map_err(drop)
        .expect("written");
    drop(disk);
    let error = Disk::open(&folder.0, 1).expect_err("refused");
    assert!(matches!(error, DiskError::Newer { found: 9, .. }));
    assert!(error.to_string().contains("newer skep"), "{error}");
    // The number is looked at before anything else: a newer file may keep its owner elsewhere.
    assert!(matches!(Disk::open(&folder.0, 2), Err(DiskError::Newer { .. })));

    let gap = Folder::new("gap");
    Disk::create(&gap.0, 1, &Log::bootstrap(1, Vec::new())).expect("made");
    let (disk, _) = Disk::open(&gap.0, 1).expect("opens");
    let entry = |index| Entry { index, term: 1, ..Entry::default() };
    disk.write(&Batch { entries: vec![entry(2), entry(4)], ..Batch::default() }).expect("written");
    drop(disk);
    let error = Disk::open(&gap.0, 1).expect_err("refused");
    assert!(error.to_string().contains("entry 4 follows entry 2"), "{error}");
}
