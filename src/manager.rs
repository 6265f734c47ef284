//! The manager's loops: what runs on the leader and nowhere else.
//!
//! Every loop is a pure planner, `plan(&Store, …) -> Vec<Action>`; [`round`] runs them in order over one snapshot and
//! makes one transaction of what they say. [`dispatcher`] is the sans-IO core that keeps sessions with the nodes, and
//! [`leader`] is the one shell around both. Loops meet only in the store. Nothing in here knows raft, sockets or
//! engines.
//!
//! ```text
//! status reports ─▶ dispatcher ─┐
//!                               ▼
//!   store ─▶ orchestrator ─▶ allocator ─▶ scheduler ─▶ reaper ─▶ one transaction ─▶ store ─▶ dispatcher ─▶ views
//! ```

pub mod allocator;
pub mod dispatcher;
pub mod invariants;
pub mod leader;
pub mod node_allocation;
pub mod orchestrator;
pub mod reaper;
pub mod replica;
pub mod restart;
pub mod round;
pub mod scheduler;
pub mod sessions;

use crate::clock::Clock;
use crate::store::StoreHandle;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use node_allocation::{JoiningNode, NodeAllocation, NodeAllocationError, bootstrap, next_node_allocation};
pub use sessions::{SessionId, Sessions};

/// How the manager behaves over time. All of them are daemon settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManagerSettings {
    /// Time between the heartbeats of a node.
    pub heartbeat: Duration,
    /// A node is down after this long without one.
    pub down_after: Duration,
    /// A node that was just admitted has this long to open its first session (join and proof of the way).
    pub join_grace: Duration,
    /// A replacement does not start before its predecessor has stopped, but waits no longer than this.
    pub replace_wait: Duration,
    /// A task is told to stop once every live node sends it nothing new any more, but no later than after this.
    pub stop_hold: Duration,
    /// Tasks of a node that is down are given up after this long.
    pub orphan_after: Duration,
}

impl Default for ManagerSettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            down_after: Duration::from_secs(2),
            join_grace: Duration::from_secs(20),
            replace_wait: Duration::from_mins(1),
            stop_hold: Duration::from_secs(5),
            orphan_after: Duration::from_hours(24),
        }
    }
}

/// The running manager.
pub struct Manager {
    /// What the rpc server hands the nodes' sessions to.
    pub sessions: Sessions,
    /// Lowest revision that every live node has applied; default while this manager does not lead.
    pub applied: watch::Receiver<crate::model::Revision>,
    /// Ends when the shutdown token is cancelled or the store is gone.
    pub finished: tokio::task::JoinHandle<()>,
}

/// Starts the loop. It sleeps until `is_leader` is true and starts from nothing each time that it becomes so.
pub fn start(
    store: StoreHandle,
    is_leader: watch::Receiver<bool>,
    settings: ManagerSettings,
    clock: Arc<dyn Clock>,
    seed: u64,
    shutdown: CancellationToken,
) -> Manager {
    let (sessions, inbox) = sessions::channel();
    let (applied_out, applied) = watch::channel(crate::model::Revision::default());
    let leader = leader::Shell { store, is_leader, settings, clock, seed, shutdown, inbox, applied: applied_out };
    Manager { sessions, applied, finished: tokio::spawn(leader.run()) }
}
