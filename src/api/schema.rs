//! The shapes of posted bodies as tables: [`decode`] reads a body by its table as Go would, [`unsupported_field`] finds
//! what skep cannot do yet. The tables hold all fields of Docker's API.

mod container;
mod decode;
#[cfg(test)]
mod effects_tests;
mod literals;
mod network;
mod payload;
#[cfg(test)]
mod readme_tests;
mod service;
mod support;
mod swarm;
mod types;

pub use decode::decode;
pub use literals::keep_literals;
pub use network::NETWORK;
pub use payload::{CONFIG_SPEC, SECRET_SPEC};
pub use service::SERVICE_SPEC;
pub use support::unsupported_field;
pub use swarm::{CLUSTER_SPEC, INIT, JOIN, NODE_SPEC, UNLOCK};
pub use types::Struct;
