//! Whether a running process is the program that the daemon would start.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether process `pid` runs the file `program`, or one with the same content. An upgrade replaces the file: the process goes on
/// with the old one. If that cannot be read, it is taken for the same: replacing it costs its sessions.
pub fn is_run_by(program: &Path, pid: u32) -> bool {
    compare(program, Path::new(&format!("/proc/{pid}/exe"))).unwrap_or(true)
}

fn compare(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (first, second) = (one.metadata()?, other.metadata()?);
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return Ok(true);
    }
    if first.len() != second.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        other.read_exact(&mut right[..length])?;
        if left[..length] != right[..length] {
            return Ok(false);
        }
    }
}
