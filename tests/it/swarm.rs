//! Whole swarms on hosts of this machine: real daemons, engines, tunnels, packets. What a user observes in normal
//! operation and above all on failures.

pub mod kit;

mod acceptance;
mod access;
mod acme;
mod autoscale;
mod bad_input;
mod certificates;
mod dashboard;
mod doctor;
mod http;
mod http_rollouts;
mod join_words;
mod life;
mod logs;
mod managers;
mod network;
mod networks;
mod outcomes;
mod payloads;
mod placement;
mod providers;
mod registry;
mod rollouts;
mod rotate_key;
mod secrets;
mod socket;
mod start;
mod subnets;
mod trust;
mod upgrade;
