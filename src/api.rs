//! The Docker Engine API on skep's own socket: swarm requests are answered here, all others are passed to the engine
//! byte by byte. Reads the store and writes to it through its handle; [`control::NodeControl`] reports whether this node
//! is in a swarm and lets it join or leave. Knows nothing of raft, containers or the datapath.
//!
//! The path of a request: [`server`] accepts the connection, [`proxy`] reads the head and routes it, [`handlers`]
//! answers swarm requests. [`body`] and [`schema`] decode what was posted and report errors in the real server's words,
//! [`validate`] refuses what a cluster would refuse, [`convert`] and [`wire`] write the replies. [`engine_http`] is the
//! client of the engine behind the API. [`access`] is the access point: one such API for the engines of all nodes. [`tls`] serves
//! either over TCP.

mod access;
mod body;
mod context;
pub mod control;
mod convert;
mod encoded;
mod engine_http;
mod error;
mod events;
mod handlers;
mod http_conflicts;
mod logs;
mod lookup;
mod proxy;
mod prune_filter;
mod query;
mod schema;
mod server;
mod tls;
mod validate;
mod wire;

pub use access::{AccessPoint, PlacementRules};
pub use server::Api;
pub use tls::{ApiTls, serve_tls};
