//! Logs of tasks: a manager dials the node (on its mesh address, so through the tunnel) and names tasks, the node answers with
//! their lines. A connection of its own for each reader: TCP holds the node back when the reader is slow, and nothing of a
//! session waits for it. [`client`] is the manager's side, [`server`] the node's, [`collect`] what both have in common.

mod client;
mod collect;
mod server;
pub(super) mod wire;

pub use client::LogLink;
pub use collect::{LogReader, read_here};
pub use server::{LogService, ManagerAt};

use std::time::Duration;

/// Time between signs of life in each direction.
const ALIVE: Duration = Duration::from_secs(5);
/// A side that was not heard for so long, while it was listened to, is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// Pieces that wait on the way of one connection; each has [`crate::model::logs::MAX_LOG_PIECE`] at most.
const QUEUE: usize = 16;
/// Tasks that one connection may name.
const MAX_TASKS: usize = 16_384;
