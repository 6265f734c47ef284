//! The whole cluster in one thread from one seed: managers with their disks, nodes, clients, network and clocks are simulated; raft,
//! the store, liveness, dispatcher and planners are those of production. [`world`] moves time, [`manager`] carries out what raft's core
//! wants, [`leading`] is the leader's part, [`nodes`] the nodes' sessions, [`clients`] what users write and [`history`] what must hold
//! for it, [`faults`] what goes wrong. [`mutants`] are faults of skep itself, each of which a check must find.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod clients;
mod faults;
mod history;
mod leading;
mod manager;
mod mutants;
mod nodes;
mod walk;
mod world;
