//! The manager's loops: what runs on the leader and on no other node.
//!
//! Every loop is a pure planner, `plan(&Store, …) -> Vec<Action>`; [`round`] runs them in order over one snapshot and
//! makes one transaction of their actions. [`dispatcher`] is the sans-IO core that keeps sessions with the nodes, and
//! [`leader`] is the one shell around both. Loops meet only in the store. No loop knows raft, sockets or engines.
//!
//! ```text
//! status reports ─▶ dispatcher ─┐
//!                               ▼
//!   store ─▶ orchestrator ─▶ allocator ─▶ scheduler ─▶ reaper ─▶ one transaction ─▶ store ─▶ dispatcher ─▶ views
//! ```

pub mod allocator;
pub mod dispatcher;
mod feature_level;
pub mod invariants;
pub mod leader;
pub mod limits;
pub mod lowest_applied;
pub mod node_allocation;
pub mod orchestrator;
pub mod reaper;
pub mod replica;
pub mod round;
pub mod scheduler;
pub mod sessions;
pub mod settings;

pub use dispatcher::SessionId;
pub use leader::{Manager, start};
pub use lowest_applied::LowestApplied;
pub use node_allocation::{JoiningNode, NodeAllocation, NodeAllocationError, bootstrap, next_node_allocation};
pub use sessions::Sessions;
pub use settings::ManagerSettings;
