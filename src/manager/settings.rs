//! How the manager behaves over time.

use crate::trust::PayloadVault;
use std::sync::Arc;
use std::time::Duration;

/// Intervals and timeouts of the leader. The node takes each of them from the daemon's settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManagerSettings {
    /// Time between the heartbeats of a node.
    pub heartbeat: Duration,
    /// A node is down after this long without a heartbeat.
    pub down_after: Duration,
    /// Time that a node has to open a session with a manager that has just become the leader: three attempts, each with its
    /// longest pause and its longest time to connect.
    pub takeover_grace: Duration,
    /// Nodes that fall silent together, most of all and at least two, are unknown for this long before they are down.
    pub disruption_hold: Duration,
    /// The tasks of a node that is down are kept for this long where no replacement runs: the node may return.
    pub return_window: Duration,
    /// Time that a node has from its admission to its first session: the join and its proof that UDP reaches the node.
    pub join_grace: Duration,
    /// A replacement starts when its predecessor has stopped, and at the latest this time after that had to be: `stop_hold` and its grace
    /// after the order to stop.
    pub replace_wait: Duration,
    /// The node of a task gets the order to stop it when no live node sends the task new traffic, and at the latest after
    /// this time.
    pub stop_hold: Duration,
    /// The order waits for this long after that: what was on the way to the task arrives, and its server accepts it.
    pub stop_pause: Duration,
    /// A live node that has not applied a view for this long is waited for no longer, and shown as degraded.
    pub node_lag: Duration,
    /// Tasks of a node are orphaned after it was down for this long.
    pub orphan_after: Duration,
    /// The feature level rises when every manager has had the next one for this long.
    pub rollback_window: Duration,
    /// Opens the contents of secrets and configs; without it nodes are sent none.
    pub vault: Option<Arc<PayloadVault>>,
}

impl Default for ManagerSettings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            down_after: Duration::from_secs(2),
            takeover_grace: Duration::from_secs(12),
            disruption_hold: Duration::from_secs(30),
            return_window: Duration::from_mins(1),
            join_grace: Duration::from_secs(20),
            replace_wait: Duration::from_mins(1),
            stop_hold: Duration::from_secs(5),
            stop_pause: Duration::from_millis(200),
            node_lag: Duration::from_secs(30),
            orphan_after: Duration::from_hours(24),
            rollback_window: Duration::from_mins(10),
            vault: None,
        }
    }
}
