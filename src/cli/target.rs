//! The daemon that a verb talks to.

use crate::http::UnixClient;
use std::path::PathBuf;

/// The flag that names a daemon by its run directory.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct DaemonTarget {
    /// Run directory of the daemon
    #[arg(long, env = "SKEP_RUN_DIR", default_value = "/run/skep", value_name = "DIR")]
    run_dir: PathBuf,
}

impl DaemonTarget {
    /// Client of the Docker API.
    pub(super) fn docker(&self) -> UnixClient {
        UnixClient::new(self.run_dir.join("docker.sock"))
    }
    /// Client of the admin socket.
    pub(super) fn admin(&self) -> UnixClient {
        UnixClient::new(self.run_dir.join("admin.sock"))
    }
    /// Pin of the mesh namespace.
    pub(super) fn mesh_pin(&self) -> PathBuf {
        self.run_dir.join("mesh")
    }
}
