//! From what was posted to specs: refuses what the real server refuses, in its words, and what skep does not support
//! yet; fills in the server's defaults. Pure.

mod change;
mod image;
mod name;
mod network;
mod ports;
mod pull_auth;
mod remote;
mod service;
mod swarm;

pub use change::replaces_tasks;
pub use name::{network_name, random_name};
pub use network::{ingress_network, network_spec, network_warning};
pub use ports::{free_ports, reserved};
pub use pull_auth::pull_auth;
pub use remote::remote_addresses;
pub use service::{allow_lists_fit, service, service_spec, sources_of};
pub use swarm::{address_pools, availability, checked, data_path_address, data_path_port, merge_over_defaults, replacing};
