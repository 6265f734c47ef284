//! The contents of backups until `skep backup` has encrypted them: below the run directory, which is in memory.

use crate::durable::{self, ignore_missing};
use anyhow::Context as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Where the contents of backups lie that were not fetched yet.
fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("backups")
}

/// Writes a content to a file that is named after the number, which only root may read. Blocks.
///
/// # Errors
/// There is no room for it.
pub(super) fn write(run_dir: &Path, content: &[u8], number: u64) -> anyhow::Result<PathBuf> {
    let folder = folder(run_dir);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.with_context(|| format!("cannot make {}", folder.display()))?;
    if !durable::is_in_memory(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        tracing::warn!(folder = %folder.display(), "the run directory is not in memory: a power cut may leave a backup's content there");
    }
    let path = folder.join(format!("{number:016x}"));
    durable::replace(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Removes the contents that were not fetched. Blocks.
///
/// # Errors
/// They cannot be removed.
pub(super) fn remove(run_dir: &Path) -> anyhow::Result<()> {
    let folder = folder(run_dir);
    ignore_missing(std::fs::remove_dir_all(&folder)).with_context(|| format!("cannot remove {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn each_content_has_a_file_of_its_own_for_root_and_a_start_removes_them() {
        let dir = std::env::temp_dir().join(format!("skep-backups-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        remove(&dir).unwrap();
        let paths = [(b"one", 1), (b"two", 2)].map(|(content, number)| write(&dir, content, number).unwrap());
        assert_eq!(paths.clone().map(|path| std::fs::read(path).unwrap()), [b"one", b"two"]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&paths[0]), mode(paths[0].parent().unwrap())), (0o600, 0o700));
        remove(&dir).unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        std::fs::remove_dir(&dir).unwrap();
    }
}
