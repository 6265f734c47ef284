//! The manager's loops: what runs on the leader and on no other node.
//!
//! Every loop is a pure planner, `plan(&Store, …) -> Vec<Action>`; [`round`] runs them in order over one snapshot and
//! makes one transaction of their actions. [`dispatcher`] is the sans-IO core that makes the nodes' views, `term` runs both.
//! [`liveness`] is the sans-IO core that keeps the sessions, answers heartbeats and finds out which nodes are alive; it has a
//! loop of its own, so that no node is judged by how long planning takes. [`leader`] starts and supervises both loops. Loops
//! meet only in the store and in the [`inbox`]. No loop knows raft, sockets or engines.
//!
//! ```text
//! sessions ─▶ liveness ─▶ dispatcher ─┐
//!                                     ▼
//!   store ─▶ orchestrator ─▶ allocator ─▶ scheduler ─▶ reaper ─▶ one transaction ─▶ store ─▶ dispatcher ─▶ views
//! ```

pub mod allocator;
pub mod autoscaler;
pub mod bounds;
pub mod dispatcher;
mod entry;
mod feature_level;
pub mod inbox;
pub mod invariants;
mod key_changes;
pub mod known_managers;
pub mod leader;
pub mod limits;
pub mod liveness;
mod liveness_loop;
pub mod lowest_applied;
pub mod new_cluster;
pub mod node_allocation;
pub mod orchestrator;
mod outboxes;
mod outcomes;
mod payload_keys;
mod proposer;
pub mod reaper;
pub mod replica;
pub mod roles;
pub mod root_rotation;
pub mod round;
pub mod round_scope;
pub mod scheduler;
pub mod session;
pub mod sessions;
pub mod settings;
pub mod state_copy;
mod term;
mod transaction_draft;
pub mod transaction_limits;

pub use entry::ApplyOutcome;
pub use leader::{LeaderHealth, Leadership, Manager, start};
pub use lowest_applied::LowestApplied;
pub use node_allocation::{JoiningNode, NodeAllocation, NodeAllocationError, bootstrap, next_node_allocation};
pub use proposer::{Forward, Proposer};
pub use session::SessionId;
pub use sessions::Sessions;
pub use settings::ManagerSettings;
