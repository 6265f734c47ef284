//! The replicated log of the managers: the tikv `raft` crate driven by a core without IO ([`Core`]), its log and
//! snapshots on disk ([`Disk`], one redb file), one thread that carries out the core's effects, and a handle ([`Raft`]).
//!
//! Knows bytes, raft ids and two traits: the [`StateMachine`] that entries are applied to and the [`Transport`] that
//! carries messages to the other managers. Knows neither the content of entries nor addresses of peers, nor which managers
//! may join.

mod check;
mod config;
mod core;
mod disk;
mod handle;
#[cfg(test)]
mod hostile_tests;
mod log;
mod logger;
mod request;
mod retries;
mod rewrite;
mod shell;
mod snapshot_thread;
mod turns;

pub use self::config::{LogCipher, NoCipher, RaftConfig, RaftError, RaftStatus, StateMachine, Transport};
pub use self::core::{Core, CoreFailure, Effect, Event, MembershipChange, is_snapshot, sender};
pub use self::disk::{Disk, DiskError, FILE, SealAgainError};
pub use self::handle::Raft;
pub use self::log::{Log, LogBatch};
pub use self::rewrite::{LogSummary, rebuild, replay};
pub use self::shell::{join, start};
