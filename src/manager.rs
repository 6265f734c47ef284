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
pub mod bounds;
pub mod dispatcher;
mod feature_level;
pub mod inbox;
pub mod invariants;
pub mod leader;
pub mod limits;
pub mod liveness;
mod liveness_loop;
pub mod lowest_applied;
pub mod node_allocation;
pub mod orchestrator;
mod outboxes;
mod payload_keys;
pub mod reaper;
pub mod replica;
pub mod round;
pub mod scheduler;
pub mod session;
pub mod sessions;
pub mod settings;
mod term;
pub mod transaction_limits;

pub use leader::{LeaderHealth, Manager, start};
pub use lowest_applied::LowestApplied;
pub use node_allocation::{JoiningNode, NodeAllocation, NodeAllocationError, bootstrap, next_node_allocation};
pub use session::SessionId;
pub use sessions::Sessions;
pub use settings::ManagerSettings;
