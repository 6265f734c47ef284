//! Bounds that the planners have in common.

/// A planner stops at the next object once it has this many actions; the next round continues. Keeps raft entries small.
pub const BATCH: usize = 200;
