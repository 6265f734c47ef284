//! Small files that must outlive a power cut: each is replaced whole or not at all, and carries the number of its format.

pub mod recorded;
mod strict;

use crate::model::FormatRange;
use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Writes a file beside the old one, syncs it, and renames it over the old one; only root may read it. Each call writes a
/// file of its own: after a failed `fsync` the kernel takes pages for written that are not, so that another `fsync` of the
/// same file would succeed for nothing.
///
/// # Errors
/// [`ReplaceError`]: what of the new content is on the disk, and what to do.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), ReplaceError> {
    replace_with(path, bytes, File::sync_all)
}

/// Why a file was not replaced. After neither may the new content be taken for written.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// The old content is there as before.
    #[error("the old content stays: {}", advice(.0))]
    Unchanged(io::Error),
    /// The new content is in place of the old one, but the disk has not confirmed that.
    #[error("which of its contents outlives a power cut is unknown: {}", advice(.0))]
    Uncertain(io::Error),
}

fn advice(error: &io::Error) -> String {
    let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        _ if is_full => format!("{error}; free space on its disk"),
        Some(rustix::io::Errno::IO) => format!("{error}; the disk fails: look at the kernel's log (dmesg) and replace it"),
        _ => error.to_string(),
    }
}

fn replace_with(path: &Path, bytes: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> Result<(), ReplaceError> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let write = || {
        // Left by a run that was killed, or by a write that failed: never written to again.
        ignore_missing(std::fs::remove_file(&new))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        sync(&file)?;
        std::fs::rename(&new, path)
    };
    if let Err(error) = write() {
        // Best effort: the next call removes it too.
        let _ = std::fs::remove_file(&new);
        return Err(ReplaceError::Unchanged(error));
    }
    // The name is durable once its directory is.
    let Some(dir) = path.parent() else { return Ok(()) };
    File::open(dir).and_then(|dir| sync(&dir)).map_err(ReplaceError::Uncertain)
}

/// Whether the file system of `path` is kept in memory.
///
/// # Errors
/// The kernel's.
pub fn is_in_memory(path: &Path) -> io::Result<bool> {
    /// `statfs` types of tmpfs and ramfs.
    const IN_MEMORY: [i128; 2] = [0x0102_1994, 0x8584_58f6];
    Ok(IN_MEMORY.contains(&i128::from(rustix::fs::statfs(path)?.f_type)))
}

/// The result of a removal where the file may be gone already.
///
/// # Errors
/// Every other error of the removal.
pub fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It is not a document of this kind.
    #[error("it is damaged")]
    Damaged(#[source] serde_json::Error),
    /// Another build of skep wrote it.
    #[error("it has format {found}, this skep reads format {supported}: start the skep that wrote it")]
    Unsupported {
        /// The format that the document names.
        found: u32,
        /// The formats that this build reads.
        supported: FormatRange,
    },
    /// A newer build of skep wrote it: this one would drop what it does not know.
    #[error("written by a newer version of skep ({0}): start the skep that wrote it")]
    Unknown(String),
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// What becomes of fields that this build does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnknownFields {
    /// The document is not read: this build would write it again without them.
    Refused,
    /// They are skipped: the document is a copy, and its source still has them.
    Skipped,
}

/// Reads a JSON document that has a `format` number among its fields. The number is read first, so that the document of
/// another build is distinguished from a damaged one.
///
/// # Errors
/// See [`FormatError`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8], supported: FormatRange, unknown: UnknownFields) -> Result<T, FormatError> {
    let FormatOnly { format: found } = serde_json::from_slice(bytes).map_err(FormatError::Damaged)?;
    if !supported.contains(found) {
        return Err(FormatError::Unsupported { found, supported });
    }
    match unknown {
        UnknownFields::Skipped => serde_json::from_slice(bytes).map_err(FormatError::Damaged),
        UnknownFields::Refused => strict::from_slice(bytes).map_err(|error| match error {
            strict::StrictError::Unknown(what) => FormatError::Unknown(what),
            strict::StrictError::Json(error) => FormatError::Damaged(error),
        }),
    }
}

/// A kind of file with one JSON document that has a `format` number among its fields.
#[derive(Clone, Copy, Debug)]
pub struct DocumentFile {
    /// What the file is, for errors: `the ledger`.
    pub name: &'static str,
    /// Format that this build writes. It reads all formats from 1 to this one.
    pub format: u32,
    /// What becomes of fields of a newer build.
    pub unknown_fields: UnknownFields,
    /// What the user can do about a damaged file; `{path}` stands for its path.
    pub if_damaged: &'static str,
}

impl DocumentFile {
    /// Reads the file; `None` if there is none.
    ///
    /// # Errors
    /// It cannot be read, is damaged, or another build of skep wrote it; what to do is in the error.
    pub fn load<T: DeserializeOwned>(&self, path: &Path) -> anyhow::Result<Option<T>> {
        let (name, at) = (self.name, path.display());
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {name} {at}")),
        };
        decode(&bytes, FormatRange::new(1, self.format), self.unknown_fields).map(Some).map_err(|error| match error {
            FormatError::Damaged(source) => {
                let advice = self.if_damaged.replace("{path}", &at.to_string());
                anyhow::Error::new(source).context(format!("{name} {at} is damaged: {advice}"))
            }
            FormatError::Unsupported { .. } | FormatError::Unknown(_) => anyhow::anyhow!("cannot read {name} {at}: {error}"),
        })
    }

    /// Replaces the file; the new content outlives a power cut when this returns.
    ///
    /// # Errors
    /// The disk is full or broken: see [`ReplaceError`].
    pub fn store<T: Serialize>(&self, path: &Path, document: &T) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(document)?;
        replace(path, &bytes).with_context(|| format!("cannot write {} {}", self.name, path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(PartialEq, Debug, Serialize, Deserialize)]
    struct Document {
        format: u32,
        names: Vec<String>,
    }

    #[test]
    fn the_document_of_another_build_is_distinguished_from_a_damaged_one() {
        let read = |bytes: &[u8]| decode::<Document>(bytes, FormatRange::new(2, 3), UnknownFields::Refused);
        for (other, number) in [(&br#"{"names": {"a": 1}, "format": 4}"#[..], 4), (br#"{"format": 1}"#, 1)] {
            let error = read(other).unwrap_err();
            assert!(matches!(error, FormatError::Unsupported { found, .. } if found == number), "{error}");
            assert!(error.to_string().contains("this skep reads format 2 to 3"), "{error}");
        }
        for damaged in [&b""[..], b"{", b"[]", b"{}", br#"{"format": "2"}"#, br#"{"format": 2}"#] {
            assert!(matches!(read(damaged), Err(FormatError::Damaged(_))), "{damaged:?}");
        }
        for format in [2, 3] {
            let document = Document { format, names: vec!["a".to_owned()] };
            assert_eq!(read(&serde_json::to_vec(&document).unwrap()).unwrap(), document, "each format of the range is read");
        }
    }

    #[test]
    fn a_field_of_a_newer_build_is_refused_by_name_or_skipped() {
        let newer = br#"{"format": 2, "names": [], "colours": []}"#;
        let read = |unknown| decode::<Document>(newer, FormatRange::only(2), unknown);
        let error = read(UnknownFields::Refused).unwrap_err().to_string();
        assert!(error.contains("`colours`") && error.contains("written by a newer version of skep"), "{error}");
        assert_eq!(read(UnknownFields::Skipped).unwrap(), Document { format: 2, names: vec![] });
    }

    #[test]
    fn a_failed_sync_is_named_and_the_next_write_is_of_another_file() {
        use std::cell::{Cell, RefCell};
        use std::os::unix::fs::MetadataExt as _;
        let dir = std::env::temp_dir().join(format!("skep-replace-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("node.json");
        let content = || std::fs::read_to_string(&path).unwrap();
        replace(&path, b"old").unwrap();
        // The numbers of the files that were synced; the call that fails, and how: EIO, ENOSPC.
        let (synced, calls) = (RefCell::new(Vec::new()), Cell::new(0));
        let failing = |call: u32, number: i32| {
            let (synced, calls) = (&synced, &calls);
            calls.set(0);
            move |file: &File| {
                calls.set(calls.get() + 1);
                synced.borrow_mut().push(file.metadata()?.ino());
                if calls.get() == call { Err(io::Error::from_raw_os_error(number)) } else { file.sync_all() }
            }
        };
        for (number, words) in [(5, "dmesg"), (28, "free space")] {
            let error = replace_with(&path, b"new", failing(1, number)).unwrap_err();
            assert!(matches!(error, ReplaceError::Unchanged(_)), "{error}");
            assert!(error.to_string().contains("the old content stays") && error.to_string().contains(words), "{error}");
            assert_eq!(content(), "old");
            assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing is left to be taken for written");
        }
        let error = replace_with(&path, b"new", failing(2, 5)).unwrap_err();
        assert!(matches!(error, ReplaceError::Uncertain(_)), "{error}");
        assert!(error.to_string().contains("power cut") && error.to_string().contains("dmesg"), "{error}");
        assert_eq!(content(), "new", "it is in place, and the error does not deny it");

        // A file that a failed write has left is not written to again: its pages may count as clean.
        let left = dir.join("node.json.new");
        std::fs::write(&left, "half").unwrap();
        let open = File::open(&left).unwrap();
        synced.borrow_mut().clear();
        replace_with(&path, b"newer", failing(0, 5)).unwrap();
        assert_ne!(synced.borrow()[0], open.metadata().unwrap().ino());
        assert_eq!(content(), "newer");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_missing_file_is_none_and_a_damaged_one_says_what_to_do() {
        let dir = std::env::temp_dir().join(format!("skep-durable-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("names.json");
        let file = DocumentFile {
            name: "the list of names",
            format: 2,
            unknown_fields: UnknownFields::Refused,
            if_damaged: "remove {path}",
        };
        assert_eq!(file.load::<Document>(&path).unwrap(), None);
        let document = Document { format: 2, names: vec!["a".to_owned()] };
        file.store(&path, &document).unwrap();
        assert_eq!(file.load(&path).unwrap(), Some(document));
        std::fs::write(&path, "garbage").unwrap();
        let error = file.load::<Document>(&path).unwrap_err();
        let advice = format!("the list of names {0} is damaged: remove {0}", path.display());
        assert!(format!("{error:#}").starts_with(&advice), "{error:#}");
        ignore_missing(std::fs::remove_file(&path)).unwrap();
        ignore_missing(std::fs::remove_file(&path)).unwrap();
        std::fs::remove_dir(&dir).unwrap();
    }
}
