//! Raft: a simulated network of cores from a seed, the log on disk, and the running thread.

mod disk;
mod elections;
pub mod fixture;
mod managers;
mod replica;
mod running;
mod simulation;
mod snapshots;
