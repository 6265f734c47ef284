//! HTTP ingress: hosts and paths to tasks, on every node.
//!
//! The listeners and all requests are in the process `skep http serve`, which outlives the daemon. The daemon follows the view,
//! makes the table from it ([`table`]) and sends all of it to the process; the process replaces the table it has. Without a
//! route there is no process.
//!
//! Here the types are that both share.

mod access_log;
mod answer_body;
mod answer_head;
mod app;
mod apr1;
mod certificates;
mod certified;
mod challenges;
mod checks;
mod client;
mod compression;
mod connector;
mod context;
mod counters;
mod counts;
mod credentials;
mod direct;
mod exemplars;
mod follower;
mod forwarded;
mod guard;
mod health;
mod held;
mod http2;
mod index;
mod limits;
mod listeners;
mod log_format;
mod log_lines;
mod mirror;
mod path;
mod plain_client;
mod plain_head;
mod process;
mod progress;
mod protocol;
mod proxy;
mod proxy_header;
mod rate_limit;
mod rates;
mod refusals;
mod reply;
mod request_copy;
mod rewriting;
mod route_load;
mod routes;
mod rules;
mod server;
mod state;
mod stream;
mod stream_client;
mod table;
mod task_connection;
mod tls;
mod upgrade;
mod upgrade_stream;
mod upstream;

pub use crate::model::http::claims::HttpClaim;
pub use client::{HttpProcessConfig, stop};
pub use counts::{LATENCY_BOUNDS_MS, RouteCounts};
pub use exemplars::HttpExemplar;
pub use follower::{HttpChannels, run};
pub use limits::HttpLimits;
pub use log_format::HttpAccessLog;
pub use process::{HttpServeArgs, process_main};
pub use protocol::dashboard_socket;
pub use rates::RouteRates;
pub use state::{HttpListenerStatus, HttpRouteStatus, HttpStatus};
pub use table::{HttpOptions, HttpPorts, HttpTable, table};
