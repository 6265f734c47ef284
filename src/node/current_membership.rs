//! The membership of a node that runs, in memory and in `node.json`: several loops change it, one at a time.

use super::state_dir::{MembershipFile, StateDir};
use crate::sync::lock;
use std::sync::Mutex;

/// The membership and its file.
pub(super) struct CurrentMembership {
    dir: StateDir,
    file: Mutex<MembershipFile>,
}

impl CurrentMembership {
    /// As it is on disk.
    pub(super) fn new(dir: StateDir, file: MembershipFile) -> Self {
        Self { dir, file: Mutex::new(file) }
    }

    pub(super) fn get(&self) -> MembershipFile {
        lock(&self.file).clone()
    }

    /// Writes what `next` makes of it, unless that is the same. Blocks.
    ///
    /// # Errors
    /// The disk is full or broken; nothing is changed.
    pub(super) fn change(&self, next: impl FnOnce(&MembershipFile) -> MembershipFile) -> anyhow::Result<()> {
        let mut file = lock(&self.file);
        let next = next(&file);
        if next != *file {
            next.store(&self.dir)?;
            *file = next;
        }
        Ok(())
    }
}
