//! From what was posted to specs: refuses what the real server refuses, in its words, and what skep does not support
//! yet; fills in the server's defaults. Pure.

mod autoscale;
mod change;
mod container;
mod http;
mod image;
mod json;
mod name;
mod network;
mod network_room;
mod payloads;
mod placement;
mod ports;
mod pull_auth;
mod remote;
mod resources;
mod service;
mod swarm;

pub use autoscale::warnings as autoscale_warnings;
pub use change::replaces_tasks;
pub use http::http_labels;
pub use image::is_reference;
pub use name::{network_name, random_name};
pub use network::{ingress_network, network_spec, network_subnet6, network_warning, pool_warning};
pub use network_room::small_networks;
pub use payloads::{payload_name, payload_references, payload_size};
pub use ports::{free_ports, reserved};
pub use pull_auth::pull_auth;
pub use remote::remote_addresses;
pub use service::{predefined_networks, service, service_spec};
pub use swarm::{address_pools, availability, checked, data_path_address, data_path_port, merge_over_defaults, replacing};
