//! The swarm kit of the tests.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../it/swarm/kit.rs"]
pub mod kit;
