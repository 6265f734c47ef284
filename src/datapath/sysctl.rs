//! Network sysctls of the calling thread's namespace (`/proc/sys/net` shows those of the reading thread).

use std::fs;
use std::io;
use std::path::PathBuf;

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(key)
}

/// Reads `net/<key>`; `None` if the key does not exist (the device is gone).
pub(super) fn read(key: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes `net/<key>`.
pub(super) fn write(key: &str, value: &str) -> io::Result<()> {
    fs::write(path(key), value).map_err(|error| io::Error::new(error.kind(), format!("sysctl net/{key} = {value}: {error}")))
}
