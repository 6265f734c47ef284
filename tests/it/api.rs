//! The Docker API: exchanges recorded with a real swarm, raw connections, unsupported options, and the stock CLI.

#![expect(clippy::unwrap_used, clippy::duration_suboptimal_units, reason = "a test may panic")]

mod behind;
mod deviations;
mod docker_cli;
mod fixture;
mod proxy;
mod recorded_store;
mod replay;
mod unsupported;
