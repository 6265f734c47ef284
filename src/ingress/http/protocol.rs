//! What the daemon and the process say to each other: HTTP and JSON on the process's socket.
//!
//! `GET /hello` identifies the process; `PUT /table` replaces its table; `GET /table` is for the process that takes over;
//! `GET /state` reports; `GET /waiting` is answered when another number of requests waits for a task; `POST /drain` ends it, when its clients have their answers; `GET /end` is answered by its end.

use serde::{Deserialize, Serialize};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

/// Incremented when a request or an answer changes its meaning: a process with another number is replaced.
pub(super) const PROTOCOL: u32 = 2;

/// Identifies the process. Read of any build of skep: what is missing has its default, what is unknown is ignored.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct HttpHello {
    pub protocol: u32,
    /// Version of the program, informative.
    pub version: String,
    pub pid: u32,
    /// Device and inode of the mesh namespace that it connects from.
    pub mesh: (u64, u64),
    pub listeners: Vec<ListenerFd>,
    /// It ends when its clients have their answers.
    pub draining: bool,
}

/// A listening socket, by its number in the process that has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct ListenerFd {
    /// `0.0.0.0:80`.
    pub address: String,
    pub fd: RawFd,
}

/// The control socket.
pub(super) fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("http.sock")
}

/// Where the daemon serves its page to this process, which asks for a password before.
#[must_use]
pub fn dashboard_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("dashboard.sock")
}

/// Contains the process id; the process that listens has it locked.
pub(super) fn pid_file(control: &Path) -> PathBuf {
    control.with_extension("pid")
}

#[cfg(test)]
mod tests {
    use super::super::state::HttpStatus;
    use super::super::table::HttpTable;
    use super::*;
    use crate::durable::recorded::RecordedNames;

    /// The daemon and the process may be of two builds.
    #[test]
    fn what_they_say_is_recorded_with_every_field() {
        let recorded = serde_json::from_slice(include_bytes!("../../../tests/it/formats/http.json")).unwrap();
        let names = RecordedNames::default();
        names.read_all::<HttpHello>(&recorded, "HttpHello");
        names.read_all::<HttpTable>(&recorded, "HttpTable");
        names.read_all::<HttpStatus>(&recorded, "HttpStatus");
        // Those of routes and of the authority's challenges are recorded with the view.
        let own = |name: &String| {
            !["HttpEntry", "HttpScheme", "HttpRedirect", "PrefixEnd", "AcmeChallengeKind"].iter().any(|o| name.starts_with(o))
        };
        assert_eq!(
            names.missing().into_iter().filter(own).collect::<Vec<_>>(),
            [""; 0],
            "record them in tests/it/formats/http.json"
        );
    }
}
