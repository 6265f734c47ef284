//! Files beside the control socket of the tunnel process.

use std::path::{Path, PathBuf};

/// Contains the process id; the process holds a lock on it.
pub(super) fn pid_file(control: &Path) -> PathBuf {
    control.with_extension("pid")
}

/// Standard output and standard error of the process.
pub(super) fn log_file(control: &Path) -> PathBuf {
    control.with_extension("log")
}
