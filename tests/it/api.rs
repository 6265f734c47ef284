//! The Docker API: recorded exchanges with a real swarm replayed against it, the front door, and the stock CLI.

#![expect(clippy::unwrap_used, clippy::duration_suboptimal_units, reason = "a test may panic")]

mod cli;
mod door;
mod fake;
mod known;
mod replay;
mod seed;
