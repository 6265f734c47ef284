//! The daemon as its parts see it.

use super::environment::Environment;
use super::lifecycle::Lifecycle;
use super::locked_node::LockedNode;
use super::member::Member;
use std::sync::Arc;

/// The node daemon.
pub(super) struct Daemon {
    pub env: Arc<Environment>,
    pub lifecycle: Lifecycle<Member, LockedNode>,
}
