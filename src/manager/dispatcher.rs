//! What the nodes are sent and what they report, as a sans-IO core: events in, effects out. Sends every node its view when a
//! part of it changed, holds stops back until no node sends traffic, and plans what the store needs to know of nodes and
//! tasks. Knows no sockets and no raft, and does not judge which nodes are alive: [`super::liveness`] does.

mod attachments;
mod core;
mod drain_hold;
mod event;
mod payloads;
mod registered_node;
mod reports;
mod task_list;
mod unapplied_views;
mod view;
mod view_index;

pub use self::core::Dispatcher;
pub use super::session::{Effect, SessionId};
pub use event::{Event, NodeHello, NodeReports};
pub(super) use view::peer_alone;
pub use view_index::{ViewIndex, view_of};
