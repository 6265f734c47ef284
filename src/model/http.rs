//! HTTP routes of services, as their labels describe them, and as every node sees them.

mod duration;
mod labels;
mod route;
mod service;
mod size;

pub use labels::{HTTP, HttpLabels};
pub use route::{BasicUser, HttpRedirect, HttpRoute, HttpScheme};
pub use service::{HttpBackend, HttpService};
