//! The replicated log of the managers: the tikv `raft` crate driven by a core without IO ([`Core`]), its log and
//! snapshots on disk ([`Disk`], one redb file), one thread that carries the core's effects out, and a handle ([`Raft`]).
//!
//! Knows bytes, raft ids and two traits: the [`StateMachine`] that entries are applied to and the [`Transport`] that
//! carries messages to the other managers. It does not know what an entry says, where a peer lives, or who may join.

mod check;
mod config;
mod core;
mod disk;
mod handle;
mod log;
mod logger;
mod shell;

pub use self::config::{RaftConfig, RaftError, RaftStatus, StateMachine, Transport};
pub use self::core::{Change, Core, Effect, Event, Failure};
pub use self::disk::{Disk, DiskError, FILE};
pub use self::handle::Raft;
pub use self::log::{Batch, Log};
pub use self::shell::{join, start};
