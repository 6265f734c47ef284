//! Sessions with the nodes, as a sans-IO core: events in, effects out. Knows which nodes are alive, sends every node its view
//! when a part of it changed, and plans what the store needs to know of nodes and tasks. Knows no sockets and no raft;
//! heartbeats and applied revisions exist only here, in the leader's memory.

mod core;
mod drain_hold;
mod event;
mod registered_node;
mod reports;
mod unapplied_views;
mod view;

pub use self::core::Dispatcher;
pub use event::{Effect, Event, SessionId};
pub use view::{ViewIndex, view_of};
