//! The Docker API: recorded exchanges with a real swarm replayed against it, the front door, and the stock CLI.

mod cli;
mod door;
mod fake;
mod known;
mod replay;
mod seed;
