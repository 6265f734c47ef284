//! HTTP routes of services, as their labels describe them, and as every node sees them.

mod caddy;
pub mod claims;
mod duration;
mod host_and_path;
mod labels;
mod more_labels;
mod nginx_proxy;
mod own_conflicts;
mod route;
mod service;
mod size;
mod traefik;
mod traefik_middleware;
mod traefik_objects;
mod traefik_rule;
mod values;

pub use labels::{HTTP, HttpLabels};
pub use route::{BasicUser, HttpCheck, HttpEntry, HttpMirror, HttpRate, HttpRedirect, HttpRoute, HttpScheme, PrefixEnd};
pub use service::{HttpBackend, HttpService};
