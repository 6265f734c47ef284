//! The log file: damage results in an error that names the file and the remedy, never in a panic or another state.

use super::fixture::{RunningManager, TempDir, config};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use skep::raft::{Disk, DiskError, FILE, Log};
use std::os::unix::fs::PermissionsExt as _;

/// A log with some entries, as bytes.
async fn sample(name: &str) -> (TempDir, Vec<u8>, Log) {
    let folder = TempDir::new(name);
    let config = skep::raft::RaftConfig { snapshot_every: 40, keep_entries: 10, ..config(&folder.0) };
    let running = RunningManager::start(config, true).await.expect("starts");
    for i in 0..100 {
        running.write(&format!("entry {i} {}", "x".repeat(i * 7))).await.expect("written");
    }
    running.stop().await;
    let bytes = std::fs::read(folder.0.join(FILE)).expect("read");
    let (_, log) = Disk::open(&folder.0, 1).expect("opens");
    (folder, bytes, log)
}

fn open_with(folder: &TempDir, bytes: &[u8]) -> Result<Log, DiskError> {
    std::fs::write(folder.0.join(FILE), bytes).expect("written");
    Disk::open(&folder.0, 1).map(|(_, log)| log)
}

#[tokio::test]
async fn a_truncated_file_is_an_error() {
    let (folder, bytes, log) = sample("truncated").await;
    let mut lengths: Vec<usize> = (0..40).map(|i| bytes.len() * i / 40).collect();
    lengths.extend([1, 63, 64, 320, 511, 512, 4095, 4096, 4097, bytes.len() - 1]);
    for length in lengths {
        match open_with(&folder, &bytes[..length]) {
            // The tail of the file may be free space.
            Ok(found) => assert_eq!(found, log, "{length} bytes are left"),
            Err(error) => {
                let text = error.to_string();
                assert!(matches!(error, DiskError::Damaged { .. }), "{length} bytes are left: {text}");
                assert!(text.contains(FILE) && text.contains("backup") && text.contains("join again"), "{text}");
            }
        }
    }
    let error = open_with(&folder, &[]).expect_err("an empty file is no new log");
    assert!(matches!(error, DiskError::Damaged { .. }), "{error}");
    let error = open_with(&folder, &b"not a database at all".repeat(1000)).expect_err("refused");
    assert!(matches!(error, DiskError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn flipped_bits_are_an_error_or_do_not_matter() {
    let (folder, bytes, log) = sample("flipped").await;
    let mut random = StdRng::seed_from_u64(11);
    let mut noticed = 0;
    for round in 0..150 {
        let mut damaged = bytes.clone();
        // Half of the damage is in the first page, which locates all others.
        let area = if round % 2 == 0 { 512 } else { damaged.len() };
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..area);
            damaged[at] ^= 1 << random.random_range(0..8);
        }
        match open_with(&folder, &damaged) {
            Ok(found) => assert_eq!(found, log, "round {round}"),
            Err(DiskError::Damaged { .. }) => noticed += 1,
            Err(other) => panic!("round {round}: {other}"),
        }
    }
    assert!(noticed > 10, "only {noticed} damaged files were detected");
}

#[tokio::test]
async fn a_manager_does_not_start_with_a_damaged_log_and_keeps_the_file() {
    let (folder, mut bytes, _) = sample("damaged").await;
    for at in (4096..bytes.len()).step_by(97) {
        bytes[at] ^= 0x55;
    }
    std::fs::write(folder.0.join(FILE), &bytes).expect("written");
    let error = RunningManager::start(config(&folder.0), true).await.err().expect("refused").to_string();
    assert!(error.contains(FILE) && error.contains("backup"), "{error}");
    assert_eq!(std::fs::metadata(folder.0.join(FILE)).expect("exists").len(), bytes.len() as u64, "it is not replaced");
}

#[test]
fn a_missing_log_is_reported_and_a_partly_written_one_is_no_log() {
    let folder = TempDir::new("absent");
    assert!(matches!(Disk::open(&folder.0, 1), Err(DiskError::Absent(_))));
    std::fs::write(folder.0.join(format!("{FILE}.new")), b"half").expect("written");
    Disk::create(&folder.0, 1, &Log::bootstrap(1, b"state".to_vec()), &(std::sync::Arc::new(skep::raft::NoCipher) as _))
        .expect("created");
    let (_, log) = Disk::open(&folder.0, 1).expect("opens");
    assert_eq!(log, Log::bootstrap(1, b"state".to_vec()));
    let mode = std::fs::metadata(folder.0.join(FILE)).expect("exists").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only root reads the cluster's secrets");
}
