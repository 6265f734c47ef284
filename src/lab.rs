//! Hosts on one machine, for `skep demo` and the tests. A host is a set of namespaces (network, mount, PID, UTS) with one
//! process that holds them, a private /run, a veth to the fabric's bridge and, on request, a Docker Engine and a
//! `skep daemon`. When the holding process ends, the kernel ends every process in its namespaces: none is left behind.

mod command;
mod engine;
mod fabric;
mod holder;
mod host;
mod image;

pub use command::{eventually, output};
pub use engine::EngineRoot;
pub use fabric::Lab;
pub use host::Host;
pub use image::{WHOAMI_IMAGE, whoami_image};
