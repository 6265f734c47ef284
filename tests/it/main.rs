//! The one integration binary: every further one would link hundreds of crates again.
#![allow(clippy::unwrap_used, clippy::format_collect, reason = "tests")]

mod acme;
mod agent;
mod api;
mod architecture;
mod bpf;
mod cluster;
mod compatibility;
mod dashboard;
mod demo;
mod differences;
mod dns;
mod ebpf;
mod ebpf_lifecycle;
mod failure_modes;
mod fixture;
mod formats;
mod http;
mod lab;

mod load;
mod manager;
mod metrics;
mod overlay;
mod packets;
mod port_cases;
mod ports;
mod raft;
mod rpc;
mod shared_fixture;
mod sockdiag;
mod store;
mod swarm;
mod tunnel;
mod userspace;
