//! The manager's loops: golden plans, a simulated cluster with a virtual clock, and the leader's loop over a store in memory.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod attachments;
mod bytes;
mod cost;
mod dispatcher;
mod drains;
mod dual_stack;
mod engine;
mod feature_level;
pub mod fixture;
mod fuzz;
mod global;
mod golden;
mod golden_moves;
mod golden_rollouts;
mod jobs;
mod large;
mod leader;
pub mod leader_cores;
mod limits;
mod listening;
mod liveness;
mod placement;
mod placement_changes;
mod proof;
mod rebalance;
mod restarts;
mod rollouts;
mod scale;
mod scenarios;
pub mod simulated_agent;
mod simulation;
mod swarm;
