//! Which entries of the desired datapath a change of the view affects.

use skep_ebpf::{Port, V4};
use std::collections::BTreeSet;

/// Keys of entries that may differ from what they were.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Dirty {
    /// Virtual addresses.
    pub vips: BTreeSet<V4>,
    /// Published ports.
    pub ports: BTreeSet<Port>,
    /// Addresses of containers.
    pub backends: BTreeSet<V4>,
    /// Devices or namespaces of this node's containers, which are compared whole.
    pub own_containers: bool,
}

/// Extent of a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Any entry may have changed.
    All,
    /// No entries but these.
    Only(Dirty),
}

impl Changed {
    /// The changed entries; `None` if any entry may have changed.
    pub(super) fn dirty(&self) -> Option<&Dirty> {
        match self {
            Self::All => None,
            Self::Only(dirty) => Some(dirty),
        }
    }
}
