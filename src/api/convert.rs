//! From objects of the model to the types of [`super::wire`]. Pure.

pub mod history;
pub mod network;
pub mod node;
pub mod payload;
pub mod service;
pub mod swarm;
pub mod task;
mod tls;
