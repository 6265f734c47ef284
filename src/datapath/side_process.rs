//! Processes beside the daemon that outlive it: their pid files, and whether they run this build.

mod pid_file;
mod program;

pub use pid_file::{is_zombie, kill_locked, lock_pid_file};
pub use program::is_run_by;
