//! HTTP ingress: hosts and paths to tasks, on every node.
//!
//! The listeners and all requests are in the process `skep http serve`, which outlives the daemon. The daemon follows the view,
//! makes the table from it ([`table`]) and sends all of it to the process; the process replaces the table it has. Without a
//! route there is no process.
//!
//! Here the types are that both share.

mod access_log;
mod app;
mod certificates;
mod certified;
mod challenges;
mod claims;
mod client;
mod connector;
mod context;
mod counters;
mod credentials;
mod follower;
mod index;
mod listeners;
mod path;
mod process;
mod protocol;
mod proxy;
mod reply;
mod routes;
mod server;
mod state;
mod table;
mod tls;

pub use claims::HttpClaim;
pub use client::{HttpProcessConfig, stop};
pub use counters::{LATENCY_BOUNDS_MS, RouteCounts};
pub use follower::{HttpChannels, run};
pub use process::{HttpServeArgs, process_main};
pub use state::{HttpListenerStatus, HttpRouteStatus, HttpStatus};
pub use table::{HttpPorts, HttpTable, table};
