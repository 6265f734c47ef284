//! The disk under the data directory: kind, room, and how long a synchronised write takes.

use super::super::facts::DiskFacts;
use crate::durable;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Writes that are timed.
const WRITES: usize = 9;
/// Bytes of each.
const BLOCK: [u8; 4096] = [0; 4096];

/// Of the nearest folder at or above `data_dir` that exists. Writes a small file there and removes it.
pub(super) fn facts(data_dir: &Path) -> Result<DiskFacts, String> {
    let folder = data_dir.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    let named = |error: io::Error| format!("{}: {error}", folder.display());
    Ok(DiskFacts {
        path: folder.display().to_string(),
        in_memory: durable::is_in_memory(folder).map_err(named)?,
        free: free(folder).map_err(named)?,
        sync: sync_time(folder).map_err(named)?,
    })
}

/// Bytes that root can still write to the file system of `path`.
pub(super) fn free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bfree.saturating_mul(stat.f_frsize))
}

/// Median of the timed writes.
fn sync_time(folder: &Path) -> io::Result<Duration> {
    let probe = TimedFile::create(folder)?;
    let mut times = Vec::with_capacity(WRITES);
    for _ in 0..WRITES {
        let begin = Instant::now();
        (&probe.file).write_all(&BLOCK)?;
        probe.file.sync_data()?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    Ok(times[WRITES / 2])
}

/// The file that is written; removed at the end.
struct TimedFile {
    file: File,
    path: PathBuf,
}

impl TimedFile {
    fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!(".skep-doctor-{}", std::process::id()));
        Ok(Self { file: File::create_new(&path)?, path })
    }
}

impl Drop for TimedFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a file of the doctor");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_above_is_looked_at_and_nothing_is_left_there() {
        let folder = std::env::temp_dir().join(format!("skep-doctor-test-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let facts = facts(&folder.join("not/there")).unwrap();
        assert_eq!(facts.path, folder.display().to_string());
        assert!(facts.free > 0);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }
}
