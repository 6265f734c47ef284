//! The one integration binary: every further one would link hundreds of crates again.

mod agent;
mod api;
mod balance;
mod demo;
mod dns;
mod fast;
mod lab;
mod layers;
mod manager;
mod overlay;
mod ports;
mod raft;
mod rpc;
mod sockdiag;
mod store;
mod swarm;
mod tunnel;
