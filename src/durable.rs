//! The one way to write a small file that must outlive a power cut: whole or not at all.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Writes a file beside the old one, makes it durable, and puts it in the old one's place; only root may read it.
///
/// # Errors
/// The disk's; the old file is untouched then.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        // The name is durable once its directory is.
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
