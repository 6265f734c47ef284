//! The manager's loops: golden plans, a simulated cluster under a virtual clock, and the shell over a store in memory.

mod agent;
mod build;
mod fuzz;
mod golden;
mod scenarios;
mod shell;
mod sim;
