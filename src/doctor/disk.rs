//! The disk under the data directory.

use super::facts::{DiskFacts, Facts};
use super::finding::Finding;
use std::time::Duration;

/// A manager writes its log with `fdatasync` before it answers: above this, writes to the swarm are slow.
const SLOW: Duration = Duration::from_millis(50);
/// Bytes below which the log soon cannot be written.
const LITTLE: u64 = 1 << 30;
/// Bytes below which it cannot be.
const NOTHING: u64 = 16 << 20;

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    match &facts.disk {
        Ok(disk) => vec![kind(disk), space(disk), speed(disk)],
        Err(error) => {
            vec![Finding::error(
                "disk",
                format!("the data directory cannot be written: {error}"),
                "look at the mount and at the kernel's log (dmesg)",
            )]
        }
    }
}

fn kind(disk: &DiskFacts) -> Finding {
    if disk.in_memory {
        return Finding::error(
            "disk",
            format!("{} is kept in memory: the node forgets its swarm when the host restarts", disk.path),
            "set data_dir to a folder on a disk",
        );
    }
    Finding::ok("disk", format!("{} is writable", disk.path))
}

fn space(disk: &DiskFacts) -> Finding {
    let found = format!("{} MiB free at {}", disk.free >> 20, disk.path);
    let help = format!("df -h {0}; du -xsh {0}/*", disk.path);
    if disk.free < NOTHING {
        return Finding::error("disk space", found, help);
    }
    if disk.free < LITTLE {
        return Finding::warning("disk space", found, help);
    }
    Finding::ok("disk space", found)
}

fn speed(disk: &DiskFacts) -> Finding {
    let found = format!("a synchronised write takes {:.1} ms", disk.sync.as_secs_f64() * 1000.0);
    if disk.sync > SLOW {
        return Finding::warning(
            "disk speed",
            format!("{found}: a manager here slows every write"),
            "a faster disk for data_dir, or demote this node",
        );
    }
    Finding::ok("disk speed", found)
}
