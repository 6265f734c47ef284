//! Which nodes are alive: sessions, heartbeats and grace times, apart from planning. [`Liveness`] is a sans-IO core: what nodes
//! send goes in; answers, verdicts and what concerns the dispatcher come out. It has a loop of its own
//! (`manager::liveness_loop`), which answers heartbeats while planning takes as long as it takes.
//!
//! A node is down when it alone is silent. When most nodes fall silent at once, the manager's own network is the likely
//! cause: they are held as unknown for a while, and no task is moved.

mod core;
mod event;
mod verdict;

pub use self::core::Liveness;
pub use event::{Event, Handled, Notice};
pub use verdict::{LivenessSnapshot, NodeLiveness, Verdict};
