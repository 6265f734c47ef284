//! This manager's copy of the state, or that in the data directory of a daemon that does not run.

use super::daemon::Daemon;
use super::keyring::Keyring;
use super::lifecycle::MembershipState;
use super::state_dir::{MembershipFile, StateDir};
use crate::manager::replica;
use crate::manager::state_copy::StateCopy;
use crate::raft::LogSummary;
use anyhow::Context as _;
use std::path::Path;
use std::sync::Arc;

/// The copy in a data directory. Blocks.
///
/// # Errors
/// The directory is not a manager's, a daemon runs on it, or its log cannot be read.
pub fn state_copy_in(data_dir: &Path) -> anyhow::Result<StateCopy> {
    let dir = StateDir::new(data_dir);
    let membership = MembershipFile::load(&dir)?.with_context(|| format!("{} has no membership", data_dir.display()))?;
    let (store, log) = replica::replayed(&dir.raft(), &(Arc::new(Keyring::new(&dir)) as _))?;
    Ok(StateCopy::new(data_dir.display().to_string(), &membership.node_id, &store, &log))
}

impl Daemon {
    /// The copy of this node, as a manager that runs.
    ///
    /// # Errors
    /// It is no manager, or its store is not served.
    pub(super) fn state_copy(&self) -> anyhow::Result<StateCopy> {
        let MembershipState::Active(member) = self.lifecycle.state() else { anyhow::bail!("this node is not part of a swarm") };
        let store = member.store().context("this node is not a manager, or its copy of the state is not served yet")?.read();
        let raft = member.raft_status().unwrap_or_default();
        let (last, last_term) = raft.last;
        let log = LogSummary { id: raft.id, term: raft.term, last, last_term, committed: store.index(), voters: raft.voters };
        let source = self.env.settings.data_dir.display().to_string();
        Ok(StateCopy::new(source, &member.membership.node_id, &store, &log))
    }
}
