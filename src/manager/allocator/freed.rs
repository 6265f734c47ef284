//! What nodes know of an address or subnet that became free. Only data.

/// What nodes know of an address that no object has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freed {
    /// No node sends to the task that had it.
    Known,
    /// A node that is waited for may still send to the task that had it.
    Awaited,
    /// Only nodes that are down, or have not applied a view for too long, may still send to the task that had it.
    Suspect,
}
