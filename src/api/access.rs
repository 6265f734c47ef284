//! The access point: one Docker API for the engines of all nodes, on managers, as the stand-alone Swarm had. Names are
//! `node/name`. [`route`] says what a request is about: one node ([`relay`] joins client and node, byte by byte), or several
//! ([`handlers`] asks them at the same time and merges). Every node is asked through [`nodes`]: its own API, by
//! [`super::control::NodeControl::node_api`]. [`planner`] chooses the node of a new container and is pure, as [`merge`] is;
//! [`reschedule`] runs containers again whose node is lost: what they are made of is sealed ([`lineage`]), since a node's word is not enough.

mod access_request;
mod archive;
mod context;
mod create;
mod engine_node;
mod events;
mod everywhere;
mod handlers;
mod info;
mod lineage;
mod locate;
mod merge;
mod nodes;
mod objects;
mod placements;
mod planner;
mod progress;
mod relay;
mod reply;
mod reschedule;
mod route;
mod seen;
mod server;
mod volumes;
mod watch;

pub use context::OwnApi;
pub use planner::PlacementRules;
pub use server::AccessPoint;
