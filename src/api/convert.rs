//! From the model to the wire. Pure.

pub mod network;
pub mod node;
pub mod service;
pub mod swarm;
pub mod task;
mod tls;
