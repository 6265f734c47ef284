//! The Docker API: exchanges recorded with a real swarm, raw connections, unsupported options, and the stock CLI.

#![expect(clippy::unwrap_used, clippy::duration_suboptimal_units, reason = "a test may panic")]

mod behind;
mod bounds;
mod clients;
mod commands;
mod course;
mod deviations;
mod docker_cli;
mod engine_versions;
mod events;
mod fixture;
mod fuzz;
mod logs;
mod managed;
mod managers;
mod membership;
mod networks;
mod node_updates;
mod payloads;
mod proxy;
mod prunes;
mod recorded_payloads;
pub mod recorded_store;
mod recording_engine;
mod replay;
mod service_updates;
mod stacks;
pub mod tls;
mod trust_words;
mod unsupported;
pub mod words;
