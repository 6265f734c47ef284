//! # skep: a swarm of Docker hosts
//!
//! One binary beside an unmodified Docker Engine.

pub mod admin;
pub mod agent;
pub mod api;
pub mod balance;
pub mod cli;
pub mod clock;
pub mod datapath;
pub mod dns;
pub mod durable;
pub mod http;
pub mod lab;
pub mod manager;
pub mod model;
mod node;
pub mod overlay;
pub mod raft;
pub mod rpc;
pub mod runtime;
pub mod settings;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod trust;
