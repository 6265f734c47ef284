//! The contents of the mesh namespace as last read and changed since, so that a change costs what it changes and not what
//! the namespace contains.

use super::state::MeshState;
use crate::sync::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is known of the contents; nothing at first, and after a change of which the outcome is not known.
#[derive(Default)]
pub(super) struct KnownState {
    /// With the time of the reading.
    state: Mutex<Option<(MeshState, Instant)>>,
    reads: AtomicU64,
}

impl KnownState {
    /// Sets what was read.
    pub(super) fn set(&self, state: MeshState) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        *lock(&self.state) = Some((state, Instant::now()));
    }

    /// The contents, if they were read less than `age` ago.
    pub(super) fn recent(&self, age: Duration) -> Option<MeshState> {
        let known = lock(&self.state);
        known.as_ref().filter(|(_, read)| read.elapsed() < age).map(|(state, _)| state.clone())
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut MeshState)) {
        if let Some((state, _)) = &mut *lock(&self.state) {
            change(state);
        }
    }

    pub(super) fn forget(&self) {
        *lock(&self.state) = None;
    }

    /// How many times the contents were read.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}
