//! `skep doctor`: what on this host keeps skep from working, or will. [`observe`] reads the host, the engine and the daemon, each
//! within a bound; the checks are pure functions from [`Facts`] to lines. Changes nothing on the host.

mod cluster;
mod disk;
mod engine;
mod examine;
pub mod facts;
mod finding;
pub mod firewall;
mod host;
mod http;
mod network;
pub mod observe;

#[cfg(test)]
mod tests;

pub use examine::examine;
pub use facts::Facts;
pub use finding::{Finding, Level};
