//! The manager's loops: golden plans, a simulated cluster under a virtual clock, and the shell over a store in memory.

#![allow(clippy::unwrap_used, reason = "a test's helpers are tests")]

mod agent;
mod build;
mod dispatcher;
mod fuzz;
mod golden;
mod scale;
mod scenarios;
mod shell;
mod sim;
